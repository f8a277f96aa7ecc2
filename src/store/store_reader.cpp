// Checked opening and verified reads of a store.
#include "store/store_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/hash.h"
#include "base/limits.h"
#include "store/checkpoint.h"
#include "store/quantize_source.h"
#include "store/quantizer.h"
#include "store/shard_frame.h"

namespace pq {
namespace {

constexpr int64_t kCachedReadBytes = 256 << 10;

void check_copied_file(const std::string& path, const FileRecord& record) {
  if (!path_exists(path)) throw Error(ErrorKind::input, path + " is missing; the manifest names it");
  const std::string text = read_text_file(path, kMaxCopiedBytes);
  if (static_cast<int64_t>(text.size()) != record.bytes || xxh3(text.data(), record.bytes) != record.hash)
    throw Error(ErrorKind::input, path + " is not the one this store was made with (another model, or edited)");
}

}  // namespace

bool is_store(const std::string& directory) { return path_exists(directory + "/" + kManifestName); }

StoreReader::StoreReader(const std::string& directory, bool verify) : directory_(directory), verify_(verify) {
  const std::string path = directory + "/" + kManifestName;
  if (!path_exists(path))
    throw Error(ErrorKind::input, path_exists(directory + "/job.json")
                                      ? directory + " is an unfinished store; run the same pq-quantize again to finish it"
                                      : directory + " holds no " + kManifestName + ", so it is no store");
  manifest_ = parse_manifest(read_text_file(path, kMaxManifestBytes), path);
  for (const TensorRecord& record : manifest_.tensors) by_name_[record.spec.name] = &record;
  for (const ShardRecord& shard : manifest_.shards) {
    const std::string shard_path = directory + "/" + shard.file;
    if (!path_exists(shard_path)) throw Error(ErrorKind::input, fmt::format("{} is missing; the manifest names it", shard_path));
    shards_.push_back(File::open_read(shard_path));
    if (verify) check_shard(shards_.back(), manifest_, static_cast<int64_t>(shards_.size()) - 1);
  }
  if (manifest_.files.count("config.json") == 0) throw Error(ErrorKind::input, path + " does not name config.json");
  for (const auto& [name, file] : manifest_.files) check_copied_file(directory + "/" + name, file);
}

const TensorRecord& StoreReader::bytes_of(const std::string& name) const {
  auto it = by_name_.find(name);
  if (it != by_name_.end() && !it->second->same_as.empty()) it = by_name_.find(it->second->same_as);
  if (it == by_name_.end()) throw Error(ErrorKind::input, fmt::format("store {} lacks {}", directory_, name));
  return *it->second;
}

const TensorRecord& StoreReader::record(const TensorSpec& spec) const {
  const auto it = by_name_.find(spec.name);
  if (it == by_name_.end())
    throw Error(ErrorKind::input, fmt::format("store {} lacks {}; is it of this model?", directory_, spec.name));
  const TensorSpec& stored = it->second->spec;
  if (stored.rows != spec.rows || stored.cols != spec.cols)
    throw Error(ErrorKind::input, fmt::format("store {}: {} has shape [{}, {}], the model needs [{}, {}]", directory_, spec.name,
                                              stored.rows, stored.cols, spec.rows, spec.cols));
  if (stored.split != spec.split || stored.pieces != spec.pieces || stored.matrix != spec.matrix)
    throw Error(ErrorKind::input, fmt::format("store {}: {} is cut into {} pieces, the model needs {} of another kind or number; "
                                              "quantise it again with this version",
                                              directory_, spec.name, stored.pieces, spec.pieces));
  return *it->second;
}

WeightInfo StoreReader::info(const TensorSpec& spec) const {
  const TensorRecord& found = record(spec);
  const bool polar = found.encoding.format == WeightFormat::polar;
  return weight_info(spec, found.encoding, polar ? &manifest_.codebooks.at(found.codebook) : nullptr);
}

void StoreReader::read_piece(const TensorRecord& record, int plane, int64_t piece, void* out) const {
  const int64_t bytes = piece_bytes(record.spec, record.encoding, plane);
  const File& file = shards_[static_cast<size_t>(record.spec.shard)];
  const int64_t offset = record.planes[plane].offset + piece * bytes;
  if (!verify_) return file.read_at(out, bytes, offset);
  // What is in the page cache comes in parts that are hashed while they are in the processor's, and fill fresh pages while their
  // zeros are. A disk is asked for all of the rest at once: it gives twice as much then.
  char* to = static_cast<char*>(out);
  Xxh3Stream hash;
  for (int64_t done = 0; done < bytes;) {
    const int64_t part = std::min(kCachedReadBytes, bytes - done);
    int64_t count = file.read_cached(to + done, part, offset + done);
    if (count < part) {
      file.read_at(to + done + count, bytes - done - count, offset + done + count);
      count = bytes - done;
    }
    hash.update(to + done, count);
    done += count;
  }
  const uint64_t sum = hash.digest(), wanted = record.planes[plane].checksums[static_cast<size_t>(piece)];
  if (sum != wanted) throw Error(ErrorKind::input, damaged_piece_text(file.path(), record, plane, piece, sum));
}

void StoreReader::load(const TensorSpec& spec, int64_t first, int64_t count, void* data, uint16_t* scales, uint16_t* zeros) {
  record(spec);
  const TensorRecord& found = bytes_of(spec.name);
  require(first >= 0 && count > 0 && first + count <= spec.pieces, "store: no such pieces");
  uint8_t* out[kPlanes] = {static_cast<uint8_t*>(data), reinterpret_cast<uint8_t*>(scales), reinterpret_cast<uint8_t*>(zeros)};
  std::vector<uint8_t> kept;
  const bool convert = found.encoding.format == WeightFormat::f32 && found.encoding.dtype != DType::f32;
  if (convert) {
    kept.resize(static_cast<size_t>(count * piece_bytes(found.spec, found.encoding, 0)));
    out[0] = kept.data();
  }
  for (int plane = 0; plane < kPlanes; ++plane) {
    const int64_t bytes = piece_bytes(found.spec, found.encoding, plane);
    if (bytes == 0) continue;
    require(out[plane] != nullptr, "weights: a plane of the format has no memory to go to");
    for (int64_t piece = 0; piece < count; ++piece) read_piece(found, plane, first + piece, out[plane] + piece * bytes);
  }
  if (convert)
    convert_to_f32(kept.data(), found.encoding.dtype, count * piece_rows(spec) * piece_cols(spec), static_cast<float*>(data));
}

void StoreReader::verify_all() const {
  std::vector<uint8_t> piece;
  for (const TensorRecord& record : manifest_.tensors) {
    for (int plane = 0; plane < kPlanes; ++plane) {
      piece.resize(static_cast<size_t>(piece_bytes(record.spec, record.encoding, plane)));
      for (size_t i = 0; i < record.planes[plane].checksums.size(); ++i)
        read_piece(record, plane, static_cast<int64_t>(i), piece.data());
    }
  }
}

double StoreReader::bits_per_weight() const {
  double bytes = 0, weights = 0;
  for (const TensorRecord& record : manifest_.tensors) {
    if (!record.spec.matrix || !record.same_as.empty()) continue;
    bytes += static_cast<double>(tensor_bytes(record.spec, record.encoding));
    weights += static_cast<double>(record.spec.rows) * static_cast<double>(record.spec.cols);
  }
  return weights > 0 ? 8 * bytes / weights : 0;
}

std::string StoreReader::description() const {
  std::set<std::string> formats;
  for (const TensorRecord& record : manifest_.tensors)
    if (record.spec.matrix) formats.insert(encoding_name(record.encoding));
  std::string list;
  for (const std::string& format : formats) list += (list.empty() ? "" : " ") + format;
  return fmt::format("store {} ({}, {:.3f} bits per weight)", directory_, list, bits_per_weight());
}

}  // namespace pq
