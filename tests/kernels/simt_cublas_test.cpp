// The emulated cuBLAS itself: columns, transposes and leading dimensions as the library has them, and what it refuses.
#include <cublas_v2.h>
#include <gtest/gtest.h>

#include <vector>

#include "base/tensor.h"

namespace {

// Device memory that holds `values`.
template <typename T>
T* device_copy(const std::vector<T>& values) {
  void* data = nullptr;
  EXPECT_EQ(cudaMalloc(&data, values.size() * sizeof(T)), cudaSuccess);
  EXPECT_EQ(cudaMemcpyAsync(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice, nullptr), cudaSuccess);
  return static_cast<T*>(data);
}

constexpr auto kMath = static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);

class SimtCublas : public testing::Test {
 protected:
  void SetUp() override {
    workspace_ = device_copy(std::vector<char>(1024));
    ASSERT_EQ(cublasCreate(&handle_), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cublasSetWorkspace(handle_, workspace_, 1024), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cublasSetMathMode(handle_, kMath), CUBLAS_STATUS_SUCCESS);
  }
  void TearDown() override {
    cublasDestroy(handle_);
    cudaFree(workspace_);
  }

  cublasStatus_t gemm(cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k, const uint16_t* a, int lda,
                      const uint16_t* b, int ldb, float* c, int ldc, float beta = 0.0f, cudaDataType a_type = CUDA_R_16BF,
                      cublasComputeType_t compute = CUBLAS_COMPUTE_32F) {
    const float alpha = 2.0f;
    return cublasGemmEx(handle_, ta, tb, m, n, k, &alpha, a, a_type, lda, b, CUDA_R_16BF, ldb, &beta, c, CUDA_R_32F, ldc, compute,
                        CUBLAS_GEMM_DEFAULT);
  }

  cublasHandle_t handle_ = nullptr;
  char* workspace_ = nullptr;
};

// Small integers, so that every sum is exact: against the definition by indices, with strides larger than the matrices.
TEST_F(SimtCublas, MultipliesByColumns) {
  constexpr int m = 3, n = 4, k = 5, lda = 7, ldb = 6, ldc = 5;
  for (const cublasOperation_t ta : {CUBLAS_OP_N, CUBLAS_OP_T}) {
    for (const cublasOperation_t tb : {CUBLAS_OP_N, CUBLAS_OP_T}) {
      const auto value = [](int i) { return static_cast<float>(i * 7 % 11 - 5); };
      std::vector<uint16_t> a(lda * (ta == CUBLAS_OP_N ? k : m)), b(ldb * (tb == CUBLAS_OP_N ? n : k));
      for (size_t i = 0; i < a.size(); ++i) a[i] = pq::f32_to_bf16(value(static_cast<int>(i)));
      for (size_t i = 0; i < b.size(); ++i) b[i] = pq::f32_to_bf16(value(static_cast<int>(i) + 3));
      std::vector<float> c(ldc * n, 1.0f);
      uint16_t *da = device_copy(a), *db = device_copy(b);
      float* dc = device_copy(c);
      ASSERT_EQ(gemm(ta, tb, m, n, k, da, lda, db, ldb, dc, ldc, 3.0f), CUBLAS_STATUS_SUCCESS);
      for (int column = 0; column < n; ++column) {
        for (int row = 0; row < ldc; ++row) {
          float sum = 0;
          for (int i = 0; i < k; ++i) {
            const int left = ta == CUBLAS_OP_N ? i * lda + row : row * lda + i,
                      right = tb == CUBLAS_OP_N ? column * ldb + i : i * ldb + column;
            if (row < m) sum += value(left) * value(right + 3);
          }
          EXPECT_EQ(dc[column * ldc + row], row < m ? 2.0f * sum + 3.0f : 1.0f)
              << ta << tb << " row " << row << ", column " << column;
        }
      }
      // A stride beyond the memory, and one that is shorter than a column.
      EXPECT_EQ(gemm(ta, tb, m, n, k, da, lda + 3, db, ldb, dc, ldc), CUBLAS_STATUS_EXECUTION_FAILED);
      EXPECT_EQ(gemm(ta, tb, m, n, k, da, lda, db, ldb + 3, dc, ldc), CUBLAS_STATUS_EXECUTION_FAILED);
      EXPECT_EQ(gemm(ta, tb, m, n, k, da, lda, db, ldb, dc, ldc + 3), CUBLAS_STATUS_EXECUTION_FAILED);
      EXPECT_EQ(gemm(ta, tb, m, n, k, da, 2, db, ldb, dc, ldc), CUBLAS_STATUS_INVALID_VALUE);
      EXPECT_EQ(gemm(ta, tb, m, n, k, da, lda, db, 3, dc, ldc), CUBLAS_STATUS_INVALID_VALUE);
      EXPECT_EQ(gemm(ta, tb, m, n, k, da, lda, db, ldb, dc, 2), CUBLAS_STATUS_INVALID_VALUE);
      for (void* data : {static_cast<void*>(da), static_cast<void*>(db), static_cast<void*>(dc)}) cudaFree(data);
    }
  }
}

TEST_F(SimtCublas, RefusesOtherTypesAndMemoryThatIsNotCounted) {
  uint16_t* x = device_copy(std::vector<uint16_t>(16));
  float* y = device_copy(std::vector<float>(16));
  const auto product = [&](cudaDataType type = CUDA_R_16BF, cublasComputeType_t compute = CUBLAS_COMPUTE_32F) {
    return gemm(CUBLAS_OP_T, CUBLAS_OP_N, 2, 2, 2, x, 2, x, 2, y, 2, 0.0f, type, compute);
  };
  EXPECT_EQ(product(), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(product(CUDA_R_32F), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(product(CUDA_R_16BF, CUBLAS_COMPUTE_32F_PEDANTIC), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(cublasSetMathMode(handle_, CUBLAS_DEFAULT_MATH), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(product(), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(cublasSetMathMode(handle_, kMath), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(cublasSetStream(handle_, nullptr), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(product(), CUBLAS_STATUS_ALLOC_FAILED);
  EXPECT_EQ(cublasSetWorkspace(handle_, workspace_ + 1, 256), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(cublasSetWorkspace(handle_, workspace_, 2048), CUBLAS_STATUS_INVALID_VALUE);
  cudaFree(x);
  cudaFree(y);
}

}  // namespace
