// Sums over ranks by NCCL, inside the CUDA plugin. Two files define the function: nccl_comm.cpp where the build finds nccl.h, and
// nccl_missing.cpp, which says that it did not.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "kernels/backend.h"
#include "kernels/device_sum.h"

namespace pq {

// What NCCL needs of the device of this rank.
struct NcclDevice {
  void* stream = nullptr;  // cudaStream_t
  std::function<Buffer(int64_t)> allocate;
  // y[i] = parts[0][i] + ... by the tree over ranks, on the stream; parts [ranks][count].
  std::function<void(float* y, const float* parts, int ranks, int64_t count)> add_ranks;
  // Called before the communicator ends: destroys the graphs that hold sums recorded on the stream, without waiting for it. False,
  // with nothing done, while one is being recorded.
  std::function<bool()> forget_graphs;
};

// Collective. Two ranks add by ncclAllReduce: a + b has one value. More gather and add by the tree, since NCCL's own order depends
// on its topology. libnccl.so.2 is opened at run time. Throws ErrorKind::environment when it is missing, older than 2.14 or refuses
// the ranks (two on one device), ErrorKind::peer when the ranks do not find each other within the limit.
std::unique_ptr<DeviceSum> make_nccl_sum(const NcclDevice& device, const RankExchange& exchange, double time_limit_seconds);

}  // namespace pq
