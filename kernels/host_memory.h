// Host memory of the reference and cpu backends: zero-filled, aligned to 256 bytes, huge pages advised for large buffers.
#pragma once

#include <cstdint>

#include "kernels/backend.h"

namespace pq {

// Owns its mapping. bytes 0 gives an empty buffer whose data() is null. Throws ErrorKind::environment naming the size when the
// system refuses.
Buffer allocate_host(int64_t bytes);

}  // namespace pq
