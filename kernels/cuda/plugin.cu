// The functions that libpq_cuda.so exports (kernels/plugin.h). No exception leaves them: errors travel in the request.
#include <cstdio>
#include <cstring>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/sums.h"
#include "kernels/device_problem.h"
#include "kernels/plugin.h"

namespace {

void fail(pq::CudaRequest* request, pq::ErrorKind kind, const char* message) {
  request->error_kind = static_cast<int32_t>(kind);
  std::snprintf(request->error, sizeof request->error, "%s", message);
}

}  // namespace

extern "C" {
__attribute__((visibility("default"))) extern const int32_t pq_cuda_abi = pq::kCudaAbi;
}

extern "C" __attribute__((visibility("default"))) int32_t pq_cuda_device_count(pq::CudaRequest* request) {
  int count = 0;
  if (const cudaError_t result = cudaGetDeviceCount(&count); result != cudaSuccess) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    const std::string text = pq::no_device_text(result, cudaGetErrorString(result), driver, runtime);
    fail(request, pq::ErrorKind::environment, text.c_str());
    return 0;
  }
  return count;
}

extern "C" __attribute__((visibility("default"))) pq::Backend* pq_cuda_make_backend(pq::CudaRequest* request) {
  try {
    auto backend = std::make_unique<pq::cuda::CudaBackend>(request->device, request->memory_limit,
                                                           request->cublas != 0 ? pq::kWideTileBytes : 0);
    cudaDeviceProp properties{};
    pq::cuda::check(cudaGetDeviceProperties(&properties, request->device), "cudaGetDeviceProperties");
    std::memcpy(request->identity, properties.uuid.bytes, sizeof request->identity);
    return backend.release();
  } catch (const pq::Error& error) {
    fail(request, error.kind(), error.what());
  } catch (const std::exception& error) {
    fail(request, pq::ErrorKind::internal, error.what());
  }
  return nullptr;
}

extern "C" __attribute__((visibility("default"))) pq::DeviceSum* pq_cuda_make_sum(pq::CudaRequest* request, pq::Backend* backend,
                                                                                  const char* method,
                                                                                  const pq::RankExchange* exchange,
                                                                                  double time_limit_seconds) {
  try {
    auto& cuda = dynamic_cast<pq::cuda::CudaBackend&>(*backend);
    return pq::cuda::make_sum(cuda, method, *exchange, time_limit_seconds).release();
  } catch (const pq::Error& error) {
    fail(request, error.kind(), error.what());
  } catch (const std::exception& error) {
    fail(request, pq::ErrorKind::internal, error.what());
  }
  return nullptr;
}
