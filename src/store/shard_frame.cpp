// Labels and frames of shard_frame.h.
#include "store/shard_frame.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "base/hash.h"
#include "store/quantizer.h"

namespace pq {
namespace {

constexpr std::string_view kLabelMark = "pq-shard ";
constexpr int64_t kReadBytes = 1 << 20;

struct Range {
  int64_t begin, end;
};

}  // namespace

std::string shard_content(const std::vector<TensorRecord>& tensors, int64_t shard) {
  Xxh3Stream hash;
  for (const TensorRecord& record : tensors)
    if (record.spec.shard == shard)
      for (const PlaneRecord& plane : record.planes)
        hash.update(plane.checksums.data(), static_cast<int64_t>(plane.checksums.size() * sizeof(uint64_t)));
  return hex64(hash.digest());
}

std::string label_text(const ShardLabel& label) {
  std::string text = fmt::format("{}{} {:05} {} ", kLabelMark, label.fingerprint, label.shard, label.content);
  text += hex64(xxh3(text.data(), static_cast<int64_t>(text.size()))).substr(0, 12);
  require(static_cast<int64_t>(text.size()) <= kLabelBytes, "shard: the label is too long");
  text.resize(kLabelBytes, '\0');
  return text;
}

bool try_read_label(const File& file, ShardLabel* label) {
  std::string start(static_cast<size_t>(std::min(file.size(), kLabelSearchBytes)), '\0');
  file.read_at(start.data(), static_cast<int64_t>(start.size()), 0);
  for (size_t at = start.find(kLabelMark); at != std::string::npos; at = start.find(kLabelMark, at + 1)) {
    const std::string text = start.substr(at, kLabelBytes);
    constexpr size_t kFingerprint = kLabelMark.size(), kShard = kFingerprint + 17, kContent = kShard + 6;
    if (text.size() < static_cast<size_t>(kLabelBytes)) return false;
    ShardLabel found{text.substr(kFingerprint, 16), 0, text.substr(kContent, 16)};
    std::from_chars(text.data() + kShard, text.data() + kShard + 5, found.shard);
    if (found.shard < 0 || label_text(found) != text) continue;
    *label = found;
    return true;
  }
  return false;
}

uint64_t frame_hash(const File& file, int64_t bytes, const std::vector<TensorRecord>& tensors, int64_t shard) {
  std::vector<Range> planes;
  for (const TensorRecord& record : tensors)
    for (int plane = 0; plane < kPlanes; ++plane)
      if (record.spec.shard == shard && !record.planes[plane].checksums.empty())
        planes.push_back({record.planes[plane].offset,
                          record.planes[plane].offset + record.spec.pieces * piece_bytes(record.spec, record.encoding, plane)});
  std::sort(planes.begin(), planes.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  planes.push_back({bytes, bytes});
  Xxh3Stream hash;
  std::string buffer;
  int64_t at = 0;
  for (const Range& plane : planes) {
    while (at < plane.begin) {
      buffer.resize(static_cast<size_t>(std::min(plane.begin - at, kReadBytes)));
      file.read_at(buffer.data(), static_cast<int64_t>(buffer.size()), at);
      hash.update(buffer.data(), static_cast<int64_t>(buffer.size()));
      at += static_cast<int64_t>(buffer.size());
    }
    at = plane.end;
  }
  return hash.digest();
}

void check_shard(const File& file, const Manifest& manifest, int64_t shard) {
  const auto refuse = [&](const std::string& what) { throw Error(ErrorKind::input, file.path() + " " + what); };
  const ShardRecord& record = manifest.shards[static_cast<size_t>(shard)];
  ShardLabel label;
  if (record.frame && try_read_label(file, &label)) {
    if (label.fingerprint != manifest.fingerprint)
      refuse(fmt::format("belongs to another store ({}, this one is {}): of another model, recipe or version; copy the right one",
                         label.fingerprint, manifest.fingerprint));
    if (label.shard != shard)
      refuse(fmt::format("is {} of this store under another name; give the shards their names back", shard_file_name(label.shard)));
    if (const std::string content = shard_content(manifest.tensors, shard); label.content != content)
      refuse(fmt::format("holds other weights ({}) than the manifest says ({}): of another model of this shape; copy the right one",
                         label.content, content));
  }
  if (const int64_t bytes = file.size(); bytes != record.bytes)
    refuse(fmt::format("has {} bytes, the manifest says {}; copy it again", bytes, record.bytes));
  if (!record.frame) return;
  if (const uint64_t sum = frame_hash(file, record.bytes, manifest.tensors, shard); sum != *record.frame)
    refuse(fmt::format("is damaged outside the weights: checksum {}, the manifest says {}; copy it again", hex64(sum),
                       hex64(*record.frame)));
}

}  // namespace pq
