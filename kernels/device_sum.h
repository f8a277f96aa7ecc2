// Sums over ranks of values in device memory: what the plugin offers and what it needs to set itself up. Which one a run takes is
// left to comm/sum_choice.h.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace pq {

struct RmsNormArgs;

// The other ranks, as far as setting up needs them. The functions are collective.
struct RankExchange {
  int rank = 0;
  int ranks = 1;
  bool one_node = true;                                         // all ranks share this machine
  std::function<void(const void*, int64_t, void*)> all_gather;  // as Communicator::all_gather, host memory
};

class DeviceSum {
 public:
  virtual ~DeviceSum() = default;
  // "nccl", "p2p" or "host".
  virtual std::string name() const = 0;
  // In place over `data` [count] in device memory, the same count on every rank, on the backend's stream; does not block. The order
  // of additions is that of Communicator::all_reduce_sum: one balanced binary tree in rank order.
  virtual void all_reduce_sum(float* data, int64_t count) = 0;
  // args.added, summed over ranks as above, then Backend::rms_norm(args), with the same bits, in one launch; args.added itself is
  // unspecified afterwards. args.added is there, and the same shapes on every rank. False, with nothing done, where the two calls
  // apart are the better way or the only one: the same answer on every rank.
  virtual bool try_sum_and_norm(const RmsNormArgs&) { return false; }
  // Throws ErrorKind::peer when a sum went wrong or waits for a rank beyond the time limit. Called while the host waits for the
  // stream.
  virtual void check() = 0;
  // Makes sums that wait give up, so that the stream comes to an end.
  virtual void abort() = 0;
};

}  // namespace pq
