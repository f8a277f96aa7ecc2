// The job that makes a store: shards shared out over ranks, each written once and published when whole, so that a killed job goes
// on where it stopped and the result is the same bytes at any rank count. A signal that asks for a stop (base/signals.h) lets every
// rank finish its shard.
//
// While it runs, DST holds job.json (what is being made) and beside each finished shard shard-N.json (what it holds); manifest.json
// comes last and both are then removed. source.json (source_record.h) stays, so that neither a job that goes on nor a store that is
// found complete is taken for one of a source whose weights have changed. A rank that fails makes job.failed, at which the others
// stop; the next run removes it. Every byte of the source is read once in total: two tensors that are the same bytes of the source,
// cut and coded alike (a tied head), are stored once; where a policy gives them different formats the source is read for each.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "store/manifest.h"
#include "store/policy.h"
#include "store/tensor_spec.h"

namespace pq {

struct StoreJob {
  std::string source;       // checkpoint directory
  std::string destination;  // store directory; all ranks see the same one
  std::vector<TensorSpec> specs{};
  Recipe recipe{};
  bool force = false;  // replace a store, finished or not, that was made otherwise
};

// Runs a step on all ranks and returns when all have done it, so that all learn of a failure: Session::agree.
using Agree = std::function<void(const std::string& where, const std::function<void()>& work)>;

struct ClassReport {
  std::string name;  // TensorSpec::tensor_class, or a tensor
  std::string format;
  int64_t weights = 0;
  int64_t bytes = 0;
  double squared_error = 0;
  double squared_norm = 0;
  // Squared error over squared norm; negative when codes were taken over from the source and no error is known.
  double relative_error() const { return squared_norm > 0 ? squared_error / squared_norm : -1; }
};

// On rank 0; elsewhere stopped_by alone.
struct StoreReport {
  int stopped_by = 0;  // a signal: shards are left to do, shards and shards_kept count all and the finished ones
  bool already_complete = false;
  int64_t shards = 0;
  int64_t shards_kept = 0;  // found finished
  int64_t matrix_weights = 0;
  int64_t matrix_bytes = 0;
  int64_t store_bytes = 0;  // of all shard files
  double bits_per_weight() const { return matrix_weights > 0 ? 8.0 * matrix_bytes / matrix_weights : 0; }
  std::vector<ClassReport> classes;  // matrices by class and format
  std::vector<ClassReport> worst;    // matrices by relative error, the largest first, at most 10
  std::vector<std::string> warnings;
  int64_t skipped_vision = 0;  // tensors of the source that the text model does not have
  int64_t skipped_mtp = 0;
  double seconds = 0;
  std::vector<int64_t> peak_rss_bytes;  // by rank
  std::string source;
  std::string recipe;
};

// Collective. Throws ErrorKind::usage when DST holds something else and `force` is not set, ErrorKind::input for a bad source or
// one that changed.
StoreReport quantize_store(const StoreJob& job, Backend& backend, Communicator& comm, const Agree& agree);

// Which rank writes which shard: the largest first, each to the rank with the least so far. work[i] is the size of shard i;
// result[i] its rank.
std::vector<int> assign_shards(const std::vector<int64_t>& work, int ranks);

}  // namespace pq
