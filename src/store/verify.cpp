// Shares of work over ranks and threads for verify.h.
#include "store/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <mutex>

#include "base/error.h"
#include "base/hash.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/polar.h"
#include "store/checkpoint.h"
#include "store/polar_checkpoint.h"
#include "store/quantizer.h"

namespace pq {
namespace {

constexpr int64_t kReadBytes = 4 << 20;

// body(item) returns a line for a damaged item, else nothing; items of this rank, in any order.
template <typename Body>
VerifyReport verify_items(int64_t items, int rank, int ranks, int threads, const Body& body) {
  const int64_t mine = items > rank ? (items - rank - 1) / ranks + 1 : 0;
  std::vector<std::string> lines(static_cast<size_t>(mine));
  std::vector<int64_t> bytes(static_cast<size_t>(mine));
  ThreadPool pool(threads, {}, false);
  pool.parallel_for(
      mine, [&](int64_t i, int) { lines[static_cast<size_t>(i)] = body(rank + i * ranks, &bytes[static_cast<size_t>(i)]); });
  VerifyReport report;
  report.items = mine;
  for (const int64_t count : bytes) report.bytes += count;
  for (std::string& line : lines)
    if (!line.empty()) report.damage.push_back(std::move(line));
  return report;
}

// Calls use(data, bytes) for [offset, offset + bytes) in parts.
template <typename Use>
void read_parts(const File& file, int64_t offset, int64_t bytes, const Use& use) {
  std::vector<uint8_t> buffer(static_cast<size_t>(std::min(bytes, kReadBytes)));
  for (int64_t done = 0; done < bytes;) {
    const int64_t part = std::min(bytes - done, kReadBytes);
    file.read_at(buffer.data(), part, offset + done);
    use(buffer.data(), part);
    done += part;
  }
}

struct PieceItem {
  const TensorRecord* record;
  int plane;
  int64_t piece;
};

std::string verify_codes(const SafetensorsDirectory& tensors, const std::string& name, int64_t* bytes) {
  try {
    const CodedTensor tensor = open_coded_tensor(tensors, name);
    codebook_from_table(tensor.centroids);
    *bytes = tensor.codes.entry->bytes + tensor.norms.entry->bytes;
    const int64_t step = std::max<int64_t>(1, kReadBytes / std::max<int64_t>(1, tensor.blocks * kBlock));
    std::vector<uint8_t> codes(static_cast<size_t>(step * tensor.blocks * coded_block_bytes(tensor.bits)));
    std::vector<uint16_t> norms(static_cast<size_t>(step * tensor.blocks));
    for (int64_t row = 0; row < tensor.rows; row += step)
      read_coded_tensor(tensor, row, std::min(step, tensor.rows - row), 0, tensor.blocks, codes.data(), norms.data(), nullptr);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::input) throw;
    return error.what();
  }
  return "";
}

bool is_float(DType dtype) { return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16; }

std::string verify_plain(const SafetensorsLocation& at, int64_t* bytes) {
  const SafetensorsEntry& entry = *at.entry;
  *bytes = entry.bytes;
  int64_t strange = 0;
  std::vector<float> values;
  read_parts(at.file->file(), entry.offset, entry.bytes, [&](const uint8_t* data, int64_t part) {
    if (!is_float(entry.dtype)) return;
    values.resize(static_cast<size_t>(part / dtype_bytes(entry.dtype)));
    convert_to_f32(data, entry.dtype, static_cast<int64_t>(values.size()), values.data());
    strange += std::count_if(values.begin(), values.end(), [](float v) { return !std::isfinite(v); });
  });
  if (strange == 0) return "";
  return fmt::format("{}: \"{}\" holds {} values that are infinite or no number; fetch it again", at.file->file().path(),
                     entry.name, strange);
}

}  // namespace

VerifyReport verify_store(const std::string& directory, const Manifest& manifest, int rank, int ranks, int threads) {
  std::vector<File> files;
  for (const ShardRecord& shard : manifest.shards) files.push_back(File::open_read(directory + "/" + shard.file));
  std::vector<PieceItem> items;
  for (const TensorRecord& record : manifest.tensors)
    for (int plane = 0; plane < kPlanes; ++plane)
      for (int64_t piece = 0; piece < static_cast<int64_t>(record.planes[plane].checksums.size()); ++piece)
        items.push_back({&record, plane, piece});
  return verify_items(static_cast<int64_t>(items.size()), rank, ranks, threads, [&](int64_t index, int64_t* bytes) -> std::string {
    const PieceItem& item = items[static_cast<size_t>(index)];
    const TensorRecord& record = *item.record;
    const File& file = files[static_cast<size_t>(record.spec.shard)];
    *bytes = piece_bytes(record.spec, record.encoding, item.plane);
    Xxh3Stream hash;
    read_parts(file, record.planes[item.plane].offset + item.piece * *bytes, *bytes,
               [&](const uint8_t* data, int64_t part) { hash.update(data, part); });
    const uint64_t sum = hash.digest(), wanted = record.planes[item.plane].checksums[static_cast<size_t>(item.piece)];
    if (sum == wanted) return "";
    return damaged_piece_text(file.path(), record, item.plane, item.piece, sum);
  });
}

VerifyReport verify_checkpoint(const SafetensorsDirectory& tensors, int rank, int ranks, int threads) {
  std::vector<std::string> names;
  for (const auto& [name, location] : tensors.tensors()) names.push_back(name);
  return verify_items(static_cast<int64_t>(names.size()), rank, ranks, threads, [&](int64_t index, int64_t* bytes) {
    const std::string& name = names[static_cast<size_t>(index)];
    const std::string suffix = ".codes";
    if (name.size() > suffix.size() && name.ends_with(suffix))
      return verify_codes(tensors, name.substr(0, name.size() - suffix.size()), bytes);
    return verify_plain(*tensors.find(name), bytes);
  });
}

void throw_damage(const VerifyReport& report) {
  if (report.damage.empty()) return;
  const size_t others = report.damage.size() - 1;
  throw Error(ErrorKind::input, report.damage[0] + (others > 0 ? fmt::format(" ({} others are damaged too)", others) : ""));
}

}  // namespace pq
