// The factory of emulated_backend.h.
#include "tests/support/simt/emulated_backend.h"

#include "kernels/cuda/cuda_backend.h"

namespace pq {

std::unique_ptr<Backend> make_emulated_cuda_backend(int device, int64_t memory_limit) {
  return std::make_unique<cuda::CudaBackend>(device, memory_limit);
}

}  // namespace pq
