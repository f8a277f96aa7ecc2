// The functions of cuBLAS that pq calls, found at run time. The tests' emulation puts its own in their place.
#pragma once

#include <cublas_v2.h>

#include <string>

namespace pq::cuda {

struct CublasLibrary {
  decltype(&cublasCreate) create = nullptr;
  decltype(&cublasDestroy) destroy = nullptr;
  decltype(&cublasGetVersion) get_version = nullptr;
  decltype(&cublasGetStatusString) status_string = nullptr;
  decltype(&cublasSetStream) set_stream = nullptr;
  decltype(&cublasSetWorkspace) set_workspace = nullptr;
  decltype(&cublasSetMathMode) set_math_mode = nullptr;
  // Written out, because the header overloads its name.
  cublasStatus_t (*gemm)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void*, const void*,
                         cudaDataType, int, const void*, cudaDataType, int, const void*, void*, cudaDataType, int,
                         cublasComputeType_t, cublasGemmAlgo_t) = nullptr;
  std::string problem;  // empty when the functions are there
};

// Opened once a process.
const CublasLibrary& cublas_library();

}  // namespace pq::cuda
