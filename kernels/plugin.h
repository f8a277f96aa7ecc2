// The door to libpq_cuda.so: what the programs ask of it, and the functions it exports. The library stands beside the programs and
// is opened only when a GPU is asked for, so that they start on machines without CUDA. What stands behind the door is left to
// kernels/cuda.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace pq {

class Backend;
class DeviceSum;
struct RankExchange;

// Exported by the plugin as pq_cuda_abi. Changes with every change of this header, of kernels/backend.h, device_measure.h,
// device_sum.h or codebook.h.
inline constexpr int32_t kCudaAbi = 9;

struct CudaRequest {
  int32_t device = 0;         // index among the visible devices
  int64_t memory_limit = 0;   // bytes of device memory the backend may allocate; 0: all there is
  int32_t cublas = 0;         // 1: products of many tokens by cuBLAS
  uint8_t identity[16] = {};  // answered by the factory: the UUID of the device
  int32_t error_kind = 0;     // an ErrorKind, and its message, when the request failed
  char error[512] = {};
};

// Of the plugin: the number of visible devices, 0 with an error when there is no driver; a backend that the caller deletes, or
// null.
using CudaDeviceCount = int32_t (*)(CudaRequest* request);
using CudaMakeBackend = Backend* (*)(CudaRequest* request);
// The sum of that name ("nccl", "p2p", "host") for a backend of this plugin, or null. Collective.
using CudaMakeSum = DeviceSum* (*)(CudaRequest* request, Backend* backend, const char* method, const RankExchange* exchange,
                                   double time_limit_seconds);

// Devices that answer; 0 and the reason, one line, when there is none, no driver or no plugin of this version.
int cuda_device_count(std::string* reason);

// Collective. A sum that waits for longer than the limit for another rank gives up. Throws ErrorKind::environment with the reason
// where the sum is impossible, ErrorKind::peer where setting it up failed.
std::unique_ptr<DeviceSum> make_cuda_sum(Backend& backend, const std::string& method, const RankExchange& exchange,
                                         double time_limit_seconds);

// Throws ErrorKind::environment when there is no such device, or no cuBLAS where that is asked for (BackendOptions::cublas).
// identity [16]: the device's UUID; may be null.
std::unique_ptr<Backend> make_cuda_backend(int device, int64_t memory_limit, bool cublas, uint8_t* identity);

}  // namespace pq
