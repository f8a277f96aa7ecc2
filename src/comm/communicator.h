// Collectives between the ranks of a model: self (one rank), threads (ranks in one process, for tests and debuggers). MPI stands in
// mpi_comm.h; starting and agreeing are left to session.h.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace pq {

struct RmsNormArgs;

// Ranks of one node exchange through shared memory in pieces of this size; each rank provides two of them and a page, and sees
// those of all ranks.
inline constexpr int64_t kWindowPieceBytes = int64_t{256} << 10;
inline constexpr int64_t kWindowRankBytes = 2 * kWindowPieceBytes + 4096;

// All calls are collective: every rank calls the same operation with the same count, in the same order. Pointers are host memory,
// but for sums where sums_on_device().
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::string name() const = 0;

  // In place, fp32, any count including 0. Values are added by one balanced binary tree in rank order, so every rank holds the same
  // bits and a tree over more units extends it. Throws ErrorKind::usage when size() is not a power of two.
  virtual void all_reduce_sum(float* data, int64_t count) = 0;
  // all_reduce_sum takes device memory of this rank's backend and is ordered on its stream.
  virtual bool sums_on_device() const { return false; }
  // Of a sum of `count` that passes by this communicator: compared over ranks first where all collectives are (checked_comm.h).
  virtual void announce_sum([[maybe_unused]] int64_t count) {}
  // As DeviceSum::try_sum_and_norm. Always false where sums are on the host.
  virtual bool try_sum_and_norm(const RmsNormArgs&) { return false; }

  // Concatenates `bytes` from each rank in rank order into `out` [size * bytes] on every rank.
  virtual void all_gather(const void* data, int64_t bytes, void* out) = 0;

  // As all_gather, with out filled on rank 0 only (null elsewhere).
  virtual void gather(const void* data, int64_t bytes, void* out) = 0;

  // Rank 0's bytes reach every rank. Over MPI the others wait without spinning: rank 0 may come much later.
  virtual void broadcast(void* data, int64_t bytes) = 0;

  virtual void barrier() = 0;
};

std::unique_ptr<Communicator> make_self_communicator();

// Runs body(communicator) on `ranks` threads of this process and rethrows the exception of the lowest rank that failed by itself
// after all have ended. A rank that throws, or ends early, wakes the others out of their collectives with ErrorKind::peer; ranks
// that call different collectives, or with different counts, get ErrorKind::internal.
void run_threads(int ranks, const std::function<void(Communicator&)>& body);

}  // namespace pq
