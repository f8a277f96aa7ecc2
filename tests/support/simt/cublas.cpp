// The emulated cuBLAS: C = alpha op(A) op(B) + beta C by columns, bfloat16 into fp32, with sums in four interleaved parts, an order
// that is neither the contract's nor the reference's. Operands must lie in device memory as a whole, so that a wrong leading
// dimension or operation is refused; a product without a workspace of the caller's, which a new stream takes away, is refused too.
#include <cublas_v2.h>

#include <atomic>
#include <cstring>
#include <string>
#include <vector>

#include "base/tensor.h"
#include "kernels/cuda/cublas_library.h"

struct simt_cublas {
  cudaStream_t stream = nullptr;
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
  int math_mode = 0;
};

namespace {

std::atomic<int64_t> products{0};
std::atomic<bool> missing{false};
std::atomic<cublasStatus_t> failure{CUBLAS_STATUS_SUCCESS};

// Elements from the first of a column-major matrix to the end of its last.
size_t extent(int rows, int columns, int stride) { return static_cast<size_t>(columns - 1) * stride + rows; }

bool inside(const void* data, size_t bytes) { return simt::inside_allocation(data, bytes); }

// op(X) by columns of the other side: [count][k].
std::vector<float> widened(const uint16_t* x, int stride, bool k_by_column, int count, int k) {
  std::vector<float> out(static_cast<size_t>(count) * k);
  for (int i = 0; i < count; ++i) {
    for (int j = 0; j < k; ++j) {
      const size_t from = k_by_column ? static_cast<size_t>(i) * stride + j : static_cast<size_t>(j) * stride + i;
      out[static_cast<size_t>(i) * k + j] = pq::bf16_to_f32(x[from]);
    }
  }
  return out;
}

}  // namespace

cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  *handle = new simt_cublas;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetVersion(cublasHandle_t, int* version) {
  *version = 130100;
  return CUBLAS_STATUS_SUCCESS;
}
const char* cublasGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "success";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "the resource allocation failed";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "an unsupported value or parameter was passed to the function";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "the function failed to launch on the GPU";
    default:
      return "the functionality requested is not supported";
  }
}
cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  handle->workspace = nullptr;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace(cublasHandle_t handle, void* workspace, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(workspace) % 256 != 0 || !inside(workspace, bytes)) return CUBLAS_STATUS_INVALID_VALUE;
  handle->workspace = workspace;
  handle->workspace_bytes = bytes;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
  handle->math_mode = mode;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m, int n, int k,
                            const void* alpha, const void* a, cudaDataType a_type, int lda, const void* b, cudaDataType b_type,
                            int ldb, const void* beta, void* c, cudaDataType c_type, int ldc, cublasComputeType_t compute_type,
                            cublasGemmAlgo_t) {
  ++products;
  if (const cublasStatus_t status = failure; status != CUBLAS_STATUS_SUCCESS) return status;
  // The pool that a handle begins with is memory nobody has counted.
  if (handle->workspace == nullptr || handle->workspace_bytes == 0) return CUBLAS_STATUS_ALLOC_FAILED;
  if (a_type != CUDA_R_16BF || b_type != CUDA_R_16BF || c_type != CUDA_R_32F || compute_type != CUBLAS_COMPUTE_32F ||
      handle->math_mode != CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  const bool a_by_k = transa == CUBLAS_OP_T, b_by_k = transb == CUBLAS_OP_N;
  if (m < 1 || n < 1 || k < 1 || lda < (a_by_k ? k : m) || ldb < (b_by_k ? k : n) || ldc < m) return CUBLAS_STATUS_INVALID_VALUE;
  if (!inside(a, 2 * (a_by_k ? extent(k, m, lda) : extent(m, k, lda))) ||
      !inside(b, 2 * (b_by_k ? extent(k, n, ldb) : extent(n, k, ldb))) || !inside(c, 4 * extent(m, n, ldc)))
    return CUBLAS_STATUS_EXECUTION_FAILED;
  const float by = *static_cast<const float*>(alpha), kept = *static_cast<const float*>(beta);
  simt::submit(handle->stream, [=] {
    const std::vector<float> left = widened(static_cast<const uint16_t*>(a), lda, a_by_k, m, k);
    const std::vector<float> right = widened(static_cast<const uint16_t*>(b), ldb, b_by_k, n, k);
    for (int column = 0; column < n; ++column) {
      for (int row = 0; row < m; ++row) {
        const float *x = left.data() + static_cast<size_t>(row) * k, *y = right.data() + static_cast<size_t>(column) * k;
        float part[4] = {};
        for (int i = 0; i < k; ++i) part[i % 4] += x[i] * y[i];
        float& to = static_cast<float*>(c)[static_cast<size_t>(column) * ldc + row];
        const float sum = by * ((part[0] + part[1]) + (part[2] + part[3]));
        to = kept == 0.0f ? sum : sum + kept * to;
      }
    }
  });
  return CUBLAS_STATUS_SUCCESS;
}

namespace simt {

int64_t gemms() { return products.load(); }
void miss_cublas(bool on) { missing = on; }
void fail_gemms(cublasStatus_t status) { failure = status; }

}  // namespace simt

namespace pq::cuda {

const CublasLibrary& cublas_library() {
  static const CublasLibrary there{cublasCreate,          cublasDestroy,   cublasGetVersion,
                                   cublasGetStatusString, cublasSetStream, cublasSetWorkspace,
                                   cublasSetMathMode,     cublasGemmEx,    {}};
  static const CublasLibrary gone{.problem = "libcublas.so.13: no such file"};
  return missing ? gone : there;
}

}  // namespace pq::cuda
