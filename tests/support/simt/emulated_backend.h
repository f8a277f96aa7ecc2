// The CUDA backend of kernels/cuda, compiled as plain C++ and run by the emulator beside this header. For tests only.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace pq {

// memory_limit as of pq::cuda::CudaBackend.
std::unique_ptr<Backend> make_emulated_cuda_backend(int device = 0, int64_t memory_limit = 0);

}  // namespace pq
