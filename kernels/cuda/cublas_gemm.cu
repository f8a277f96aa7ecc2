// The Gemm of gemm.h on cuBLAS, whose matrices lie by columns: what is [rows, cols] by rows here is its transpose there.
#include "base/error.h"
#include "kernels/cuda/cublas_library.h"
#include "kernels/cuda/gemm.h"

namespace pq::cuda {
namespace {

void check(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw Error(ErrorKind::environment, std::string(call) + ": " + cublas_library().status_string(status));
}

class CublasGemm : public Gemm {
 public:
  CublasGemm(cudaStream_t stream, const Buffer& workspace) : cublas_(cublas_library()) {
    if (!cublas_.problem.empty())
      throw Error(ErrorKind::environment, "no cuBLAS: " + cublas_.problem + "; install it, or run with --prefill codes");
    check(cublas_.create(&handle_), "cublasCreate");
    try {
      // In this order: a new stream takes the workspace away again.
      check(cublas_.set_stream(handle_, stream), "cublasSetStream");
      check(cublas_.set_workspace(handle_, workspace.data(), static_cast<size_t>(workspace.bytes())), "cublasSetWorkspace");
      // Tensor cores, with sums of fp32 from end to end; the pedantic mode would forbid tensor cores.
      check(cublas_.set_math_mode(
                handle_, static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)),
            "cublasSetMathMode");
      check(cublas_.get_version(handle_, &version_), "cublasGetVersion");
    } catch (...) {
      cublas_.destroy(handle_);
      throw;
    }
  }
  ~CublasGemm() override { cublas_.destroy(handle_); }

  std::string name() const override {
    return "cuBLAS " + std::to_string(version_ / 10000) + "." + std::to_string(version_ / 100 % 100) + "." +
           std::to_string(version_ % 100);
  }

  void multiply(float* y, int64_t y_stride, const uint16_t* w, const uint16_t* x, int64_t rows, int64_t tokens,
                int64_t cols) override {
    const float one = 1.0f, nothing = 0.0f;
    const int k = static_cast<int>(cols);
    check(cublas_.gemm(handle_, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(rows), static_cast<int>(tokens), k, &one, w, CUDA_R_16BF,
                       k, x, CUDA_R_16BF, k, &nothing, y, CUDA_R_32F, static_cast<int>(y_stride), CUBLAS_COMPUTE_32F,
                       CUBLAS_GEMM_DEFAULT),
          "cublasGemmEx");
  }

 private:
  const CublasLibrary& cublas_;
  cublasHandle_t handle_ = nullptr;
  int version_ = 0;
};

}  // namespace

std::unique_ptr<Gemm> make_gemm(cudaStream_t stream, const Buffer& workspace) {
  return std::make_unique<CublasGemm>(stream, workspace);
}

}  // namespace pq::cuda
