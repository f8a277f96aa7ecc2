// Reads everything a store or a checkpoint holds and says what is wrong with it: the checksums of a store, and where a format has
// none, what must hold for its bytes (codes inside their table, norms and weights finite). Opening and its checks are left to
// store_reader.h and checkpoint.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "store/manifest.h"
#include "store/safetensors.h"

namespace pq {

// Of one rank.
struct VerifyReport {
  int64_t items = 0;  // checksums compared, or tensors read where there are none
  int64_t bytes = 0;
  std::vector<std::string> damage;  // one line each, in the order of the manifest or of the tensors' names
};

// The share of `rank` among `ranks`, on `threads` threads that read a few MiB at a time. Damage is reported, not thrown; a file
// that cannot be read is ErrorKind::io.
VerifyReport verify_store(const std::string& directory, const Manifest& manifest, int rank, int ranks, int threads);
VerifyReport verify_checkpoint(const SafetensorsDirectory& tensors, int rank, int ranks, int threads);

// Throws ErrorKind::input with the first line of damage and the number of others; nothing when there is none.
void throw_damage(const VerifyReport& report);

}  // namespace pq
