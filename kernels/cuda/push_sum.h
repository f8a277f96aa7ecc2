// Sums over the ranks of one node by pushing: every rank writes its values, each with a cookie beside it, where the others look for
// them, and adds what arrives. One kernel a sum; no rank waits for more than the data it adds.
#pragma once

#include <memory>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/device_sum.h"

namespace pq::cuda {

inline constexpr int kMaxPushRanks = 8;

enum class PushMemory : int {
  peer,  // packets go into the memory of the other devices (CUDA IPC)
  host,  // packets lie in shared memory of the host that every device reads
};

// Collective. Throws ErrorKind::environment with the reason where this machine cannot: ranks on several nodes, more than
// kMaxPushRanks or no power of two, no peer access. time_limit_ns: a rank that waits for longer gives up.
std::unique_ptr<DeviceSum> make_push_sum(CudaBackend& backend, PushMemory memory, const RankExchange& exchange,
                                         uint64_t time_limit_ns);

}  // namespace pq::cuda
