// Chooses the kernels of an instruction set once and walks the arguments of each operation.
#include "kernels/cpu/cpu_backend.h"

#include <fmt/format.h>

#include "base/error.h"
#include "kernels/reference/reference_backend.h"

namespace pq {
namespace {

class CpuBackend : public ReferenceBackend {
 public:
  explicit CpuBackend(Isa isa) : isa_(isa) {}
  std::string name() const override { return fmt::format("cpu ({})", isa_name(isa_)); }

 private:
  Isa isa_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(Isa isa) {
  if (!isa_supported(isa)) {
    throw Error(ErrorKind::environment, fmt::format("this machine has no {}; its best is {}", isa_name(isa), isa_name(best_isa())));
  }
  return std::make_unique<CpuBackend>(isa);
}

}  // namespace pq
