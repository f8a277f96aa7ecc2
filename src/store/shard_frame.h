// The bytes of a shard that are no weights: the HDF5 structure, the codebooks, the label that says which shard of which store the
// file is, and the gaps between planes. One checksum covers them, so that with those of the pieces no byte of a shard is unguarded;
// the label tells a strange shard from a damaged one. Nothing here calls HDF5.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/file.h"
#include "store/manifest.h"

namespace pq {

// "pq-shard FINGERPRINT INDEX CONTENT CHECK": a data set of its own, /label, in the first kLabelSearchBytes of the file. CONTENT
// sums up the checksums of all pieces, CHECK the text before it.
inline constexpr int64_t kLabelBytes = 64;
inline constexpr int64_t kLabelSearchBytes = int64_t{64} << 10;

struct ShardLabel {
  std::string fingerprint;  // of the store
  int64_t shard = 0;
  std::string content;  // 16 hexadecimal digits

  bool operator==(const ShardLabel&) const = default;
};

// XXH3-64 over the piece checksums of the tensors of `shard`, in their order.
std::string shard_content(const std::vector<TensorRecord>& tensors, int64_t shard);

// kLabelBytes characters.
std::string label_text(const ShardLabel& label);
// Looks for a label that is whole; false when there is none, as in stores before version 1.1 or when it is damaged.
bool try_read_label(const File& file, ShardLabel* label);

// XXH3-64 of the bytes of `file` [bytes] that belong to no plane of the tensors of `shard`, in file order. The planes lie in the
// file and do not overlap.
uint64_t frame_hash(const File& file, int64_t bytes, const std::vector<TensorRecord>& tensors, int64_t shard);

// Throws ErrorKind::input when the file is not shard `shard` of the manifest: another shard or another store by its label, another
// size, a damaged frame. Reads no weights.
void check_shard(const File& file, const Manifest& manifest, int64_t shard);

}  // namespace pq
