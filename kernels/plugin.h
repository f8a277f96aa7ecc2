// The door to libpq_cuda.so: what the programs ask of it, and the functions it exports. The library stands beside the programs and is
// opened only when a GPU is asked for, so that they start on machines without CUDA. What stands behind the door is left to
// kernels/cuda.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace pq {

class Backend;

// Exported by the plugin as pq_cuda_abi. Changes with every change of this header, of kernels/backend.h or of kernels/codebook.h.
inline constexpr int32_t kCudaAbi = 2;

struct CudaRequest {
  int32_t device = 0;        // index among the visible devices
  int64_t memory_limit = 0;  // bytes of device memory the backend may allocate; 0: all there is
  uint8_t identity[16] = {};  // answered by the factory: the UUID of the device
  int32_t error_kind = 0;    // an ErrorKind, and its message, when the request failed
  char error[512] = {};
};

// Of the plugin: the number of visible devices, 0 with an error when there is no driver; a backend that the caller deletes, or null.
using CudaDeviceCount = int32_t (*)(CudaRequest* request);
using CudaMakeBackend = Backend* (*)(CudaRequest* request);

// Devices that answer; 0 and the reason, one line, when there is none, no driver or no plugin of this version.
int cuda_device_count(std::string* reason);

// Throws ErrorKind::environment when there is no such device.
// identity [16], may be null: the device's UUID.
std::unique_ptr<Backend> make_cuda_backend(int device, int64_t memory_limit, uint8_t* identity);

}  // namespace pq
