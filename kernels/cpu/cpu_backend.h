// The product backend for processors: inherits the reference and overrides what takes time, shared out over the threads of the rank.
#pragma once

#include <memory>

#include "kernels/backend.h"
#include "kernels/cpu/isa.h"

namespace pq {

// options.isa is not looked at. Throws ErrorKind::environment when this machine lacks `isa`.
std::unique_ptr<Backend> make_cpu_backend(Isa isa, const BackendOptions& options = {});

}  // namespace pq
