// A published PolarQuant checkpoint of one file: keys, tables, codes and norms. Input: header and, behind a NUL, data.
#include "fuzz/fuzz_support.h"
#include "kernels/backend.h"
#include "kernels/polar.h"
#include "store/polar_checkpoint.h"

using namespace pq;

namespace {

void read_all(const SafetensorsDirectory& tensors, const std::string& name) {
  const CodedTensor tensor = open_coded_tensor(tensors, name);
  const Codebook codebook = codebook_from_table(tensor.centroids);
  fuzz::expect(codebook.bits == tensor.bits, "the table has another width than the codes");
  // By halves of rows and of blocks, so that rows are read in parts too.
  for (int64_t half = 0; half < 4; ++half) {
    const int64_t row = half / 2 * (tensor.rows / 2), block = half % 2 * (tensor.blocks / 2);
    const int64_t rows = half / 2 ? tensor.rows - row : tensor.rows / 2,
                  blocks = half % 2 ? tensor.blocks - block : tensor.blocks / 2;
    std::string codes(static_cast<size_t>(rows * blocks * coded_block_bytes(tensor.bits)), '\0');
    std::string norms(static_cast<size_t>(rows * blocks * 2), '\0');
    read_coded_tensor(tensor, row, rows, block, blocks, reinterpret_cast<uint8_t*>(codes.data()),
                      reinterpret_cast<uint16_t*>(norms.data()), nullptr);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::Folder folder;
  std::string text = fuzz::text_of(data, size);
  const std::string header = fuzz::take_part(&text);
  folder.write("model.safetensors", fuzz::safetensors_bytes(header, text));
  fuzz::accepts([&] {
    const SafetensorsDirectory tensors = SafetensorsDirectory::open(folder.path());
    if (published_format(tensors) == PublishedFormat::none) return;
    for (const auto& [name, location] : tensors.tensors())
      if (name.ends_with(".codes")) read_all(tensors, name.substr(0, name.size() - 6));
  });
  return 0;
}
