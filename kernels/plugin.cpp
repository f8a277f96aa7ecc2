// Opens libpq_cuda.so, once a process, from the directory of the program or beside its tests.
#include "kernels/plugin.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <iterator>

#include "base/error.h"
#include "kernels/backend.h"
#include "kernels/device_sum.h"

namespace pq {
namespace {

struct Plugin {
  CudaDeviceCount device_count = nullptr;
  CudaMakeBackend make_backend = nullptr;
  CudaMakeSum make_sum = nullptr;
  std::string problem;  // empty when the functions are there
};

Plugin open_plugin() {
  Plugin plugin;
  std::error_code ignored;
  const auto directory = std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();
  const std::string path = (directory / "libpq_cuda.so").string();
  if (!std::filesystem::exists(path, ignored)) {
    plugin.problem = path + " does not exist: this build has no CUDA";
    return plugin;
  }
  // Never closed: the CUDA runtime does not outlive being unloaded.
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    plugin.problem = dlerror();
    return plugin;
  }
  const auto* abi = static_cast<const int32_t*>(dlsym(library, "pq_cuda_abi"));
  plugin.device_count = reinterpret_cast<CudaDeviceCount>(dlsym(library, "pq_cuda_device_count"));
  plugin.make_backend = reinterpret_cast<CudaMakeBackend>(dlsym(library, "pq_cuda_make_backend"));
  plugin.make_sum = reinterpret_cast<CudaMakeSum>(dlsym(library, "pq_cuda_make_sum"));
  if (abi == nullptr || *abi != kCudaAbi || plugin.device_count == nullptr || plugin.make_backend == nullptr ||
      plugin.make_sum == nullptr)
    plugin.problem = fmt::format("{} is of another version of pq ({}, not {})", path, abi == nullptr ? 0 : *abi, kCudaAbi);
  return plugin;
}

const Plugin& plugin() {
  static const Plugin opened = open_plugin();
  return opened;
}

}  // namespace

int cuda_device_count(std::string* reason) {
  if (!plugin().problem.empty()) {
    *reason = plugin().problem;
    return 0;
  }
  CudaRequest request;
  const int count = plugin().device_count(&request);
  if (count == 0) *reason = request.error[0] != '\0' ? request.error : "the driver shows no device";
  return count;
}

std::unique_ptr<Backend> make_cuda_backend(int device, int64_t memory_limit, bool cublas, uint8_t* identity) {
  std::string reason;
  const int count = cuda_device_count(&reason);
  if (count == 0) throw Error(ErrorKind::environment, "no GPU: " + reason + "; run with --device cpu");
  if (device >= count)
    throw Error(ErrorKind::environment, fmt::format("device {} was asked for, but only {} are visible", device, count));
  CudaRequest request;
  request.device = device;
  request.memory_limit = memory_limit;
  request.cublas = cublas ? 1 : 0;
  Backend* backend = plugin().make_backend(&request);
  if (backend == nullptr) throw Error(static_cast<ErrorKind>(request.error_kind), request.error);
  if (identity != nullptr) std::copy(std::begin(request.identity), std::end(request.identity), identity);
  return std::unique_ptr<Backend>(backend);
}

std::unique_ptr<DeviceSum> make_cuda_sum(Backend& backend, const std::string& method, const RankExchange& exchange,
                                         double time_limit_seconds) {
  CudaRequest request;
  DeviceSum* sum = plugin().make_sum(&request, &backend, method.c_str(), &exchange, time_limit_seconds);
  if (sum == nullptr) throw Error(static_cast<ErrorKind>(request.error_kind), request.error);
  return std::unique_ptr<DeviceSum>(sum);
}

}  // namespace pq
