// Stands in for cublas_gemm.cu in a build without cublas_v2.h.
#include "base/error.h"
#include "kernels/cuda/gemm.h"

namespace pq::cuda {

std::unique_ptr<Gemm> make_gemm(cudaStream_t, const Buffer&) {
  throw Error(ErrorKind::environment,
              "no cuBLAS: this build had no cublas_v2.h; build pq where it is, or run with --prefill codes");
}

}  // namespace pq::cuda
