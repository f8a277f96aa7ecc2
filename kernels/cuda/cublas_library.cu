// Opens libcublas of the major version whose header pq was built with.
#include <dlfcn.h>

#include <type_traits>

#include "kernels/cuda/cublas_library.h"

namespace pq::cuda {
namespace {

CublasLibrary open_cublas() {
  CublasLibrary cublas;
  const std::string name = "libcublas.so." + std::to_string(CUBLAS_VER_MAJOR);
  // Never closed, as the CUDA runtime is not.
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    cublas.problem = dlerror();
    return cublas;
  }
  const auto find = [&](auto* function, const char* symbol) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(dlsym(library, symbol));
    if (*function == nullptr) cublas.problem = name + " has no " + symbol;
  };
  find(&cublas.create, "cublasCreate_v2");
  find(&cublas.destroy, "cublasDestroy_v2");
  find(&cublas.get_version, "cublasGetVersion_v2");
  find(&cublas.status_string, "cublasGetStatusString");
  find(&cublas.set_stream, "cublasSetStream_v2");
  find(&cublas.set_workspace, "cublasSetWorkspace_v2");
  find(&cublas.set_math_mode, "cublasSetMathMode");
  find(&cublas.gemm, "cublasGemmEx");
  return cublas;
}

}  // namespace

const CublasLibrary& cublas_library() {
  static const CublasLibrary opened = open_cublas();
  return opened;
}

}  // namespace pq::cuda
