// The factory of emulated_backend.h.
#include "tests/support/simt/emulated_backend.h"

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/sums.h"

namespace pq {

std::unique_ptr<Backend> make_emulated_cuda_backend(int device, int64_t memory_limit, int64_t wide_tile_bytes) {
  return std::make_unique<cuda::CudaBackend>(device, memory_limit, wide_tile_bytes);
}

std::unique_ptr<DeviceSum> make_emulated_sum(Backend& backend, const std::string& method, const RankExchange& exchange,
                                             double time_limit_seconds) {
  return cuda::make_sum(dynamic_cast<cuda::CudaBackend&>(backend), method, exchange, time_limit_seconds);
}

}  // namespace pq
