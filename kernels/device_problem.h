// Why a device cannot be used, in the words of a user: what the CUDA runtime answered, turned into one line that says what is
// there, what is needed and the way out. Pure functions, so that the words are tested where there is neither driver nor device.
#pragma once

#include <string>

namespace pq {

// Of the runtime's answers, those that have words of their own; equal to the values of cudaError_t.
inline constexpr int kCudaInsufficientDriver = 35;
inline constexpr int kCudaNoDevice = 100;
inline constexpr int kCudaNoKernelImage = 209;
inline constexpr int kCudaUnsupportedPtx = 222;

// Why no device is visible. error: what cudaGetDeviceCount answered, `said` in words; driver and runtime: as cudaDriverGetVersion
// and cudaRuntimeGetVersion give them, 1000 * major + 10 * minor, driver 0 where there is none. The caller adds what happens
// instead.
std::string no_device_text(int error, const char* said, int driver, int runtime);

// Empty when kernels of this build run on a device of that compute capability. image_error: what cudaFuncGetAttributes answered for
// one of them.
std::string architecture_problem(int device, const char* name, int major, int minor, int image_error);

}  // namespace pq
