// The CUDA backend of kernels/cuda, compiled as plain C++ and run by the emulator beside this header. For tests only.
#pragma once

#include <memory>
#include <string>

#include "kernels/backend.h"
#include "kernels/device_sum.h"

namespace pq {

// memory_limit and wide_tile_bytes as of pq::cuda::CudaBackend.
std::unique_ptr<Backend> make_emulated_cuda_backend(int device = 0, int64_t memory_limit = 0, int64_t wide_tile_bytes = 0);

// As make_cuda_sum; backend is one of make_emulated_cuda_backend, ranks are threads of this process.
std::unique_ptr<DeviceSum> make_emulated_sum(Backend& backend, const std::string& method, const RankExchange& exchange,
                                             double time_limit_seconds);

}  // namespace pq
