// The product backend for processors: inherits the reference and overrides what takes time. Single-threaded: a rank is one core.
#pragma once

#include <memory>

#include "kernels/backend.h"
#include "kernels/cpu/isa.h"

namespace pq {

// Throws ErrorKind::environment when this machine lacks `isa`.
std::unique_ptr<Backend> make_cpu_backend(Isa isa);

}  // namespace pq
