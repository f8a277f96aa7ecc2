// The words of device_problem.h.
#include "kernels/device_problem.h"

namespace pq {
namespace {

std::string cuda_version(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

// The oldest driver branch that carries every minor version of a CUDA major version; 0 where none is known.
int oldest_driver(int runtime) {
  switch (runtime / 1000) {
    case 11:
      return 450;
    case 12:
      return 525;
    case 13:
      return 580;
    default:
      return 0;
  }
}

}  // namespace

std::string no_device_text(int error, const char* said, int driver, int runtime) {
  if (error == kCudaNoDevice) return "the driver shows no device (CUDA_VISIBLE_DEVICES may hide it)";
  if (error != kCudaInsufficientDriver) return said;
  const int oldest = oldest_driver(runtime);
  const std::string needed = oldest > 0 ? "driver " + std::to_string(oldest) + " or newer" : "a newer driver";
  if (driver == 0) return "there is no NVIDIA driver here; pq needs one of CUDA " + cuda_version(runtime) + ": install " + needed;
  return "the NVIDIA driver is of CUDA " + cuda_version(driver) + ", but pq needs CUDA " + cuda_version(runtime) + ": install " +
         needed;
}

std::string architecture_problem(int device, const char* name, int major, int minor, int image_error) {
  if (major >= 8 && image_error != kCudaNoKernelImage && image_error != kCudaUnsupportedPtx) return {};
  const std::string what = "device " + std::to_string(device) + " (" + name + ") is of compute capability " +
                           std::to_string(major) + "." + std::to_string(minor);
  if (major < 8) return what + "; pq needs 8.0; run with --device cpu";
  const std::string why =
      image_error == kCudaUnsupportedPtx
          ? ", for which this build has PTX alone, of a newer CUDA than the NVIDIA driver; install a newer driver, build"
          : ", for which this build has no kernels; build";
  return what + why + " pq with -DCMAKE_CUDA_ARCHITECTURES=" + std::to_string(major) + std::to_string(minor) +
         ", or run with --device cpu";
}

}  // namespace pq
