// One safetensors file. Input: the whole file after "raw:", or a header and, behind a NUL, the data; the length is then put in
// front.
#include "fuzz/fuzz_support.h"
#include "store/safetensors.h"

using namespace pq;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::Folder folder;
  std::string text = fuzz::text_of(data, size);
  if (text.starts_with("raw:")) {
    text = text.substr(4);
  } else {
    const std::string header = fuzz::take_part(&text);
    text = fuzz::safetensors_bytes(header, text);
  }
  const std::string path = folder.write("x.safetensors", text);
  fuzz::accepts([&] {
    const SafetensorsFile file = SafetensorsFile::open(path);
    int64_t bytes = 0;
    for (const SafetensorsEntry& entry : file.entries()) {
      fuzz::expect(entry.bytes == checked_count(entry.shape) * dtype_bytes(entry.dtype), "bytes do not fit the shape");
      fuzz::expect(entry.offset >= 8 && entry.offset + entry.bytes <= file.size(), "a tensor lies outside the file");
      std::string content(static_cast<size_t>(entry.bytes), '\0');
      file.file().read_at(content.data(), entry.bytes, entry.offset);
      bytes += entry.bytes;
    }
    fuzz::expect(bytes <= file.size(), "tensors overlap");
  });
  return 0;
}
