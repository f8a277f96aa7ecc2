// The choice of a backend by name.
#include <fmt/format.h>

#include "base/error.h"
#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/plugin.h"
#include "kernels/reference/reference_backend.h"

namespace pq {

std::unique_ptr<Backend> make_backend(const std::string& device, const BackendOptions& options) {
  if (device == "reference") return std::make_unique<ReferenceBackend>();
  if (device == "cpu") {
    const std::optional<Isa> isa = options.isa.empty() ? best_isa() : try_parse_isa(options.isa);
    if (!isa)
      throw Error(ErrorKind::usage, fmt::format("there is no instruction set '{}'; known are {}", options.isa, isa_names()));
    return make_cpu_backend(*isa, options);
  }
  if (device == "cuda") return make_cuda_backend(0, 0, options.cublas, nullptr);
  throw Error(ErrorKind::usage, fmt::format("there is no device '{}'; devices are cpu, cuda and reference", device));
}

}  // namespace pq
