// What a GPU's memory is spent on beside the model, in numbers that the memory plan and the CUDA plugin share.
#pragma once

#include <cstdint>

#include "kernels/backend.h"

namespace pq {

// What a backend whose memory is not the host's offers beside its operations.
class PinnedMemory {
 public:
  virtual ~PinnedMemory() = default;
  // Zero-filled memory of the host that operations of the backend can read, for a table of which they read a row now and then.
  // Backend::host_pointer gives its address. Throws ErrorKind::environment when the host has none.
  virtual Buffer allocate_pinned(int64_t bytes) = 0;
};

// Before the first buffer: the CUDA context (250 to 400 MB on devices of this decade), the code of the kernels, their local memory,
// and the graphs of the steps. An allowance: the driver does not say it in advance.
inline constexpr int64_t kDeviceContextBytes = 450'000'000;

// Through which ids and spans of a step reach the device.
inline constexpr int64_t kDeviceStagingBytes = int64_t{4} << 20;

// Sums by pushing: two sets of packets of so many values, 8 bytes each, for every sender.
inline constexpr int64_t kPushPieceFloats = int64_t{64} << 10;
constexpr int64_t push_sum_bytes(int ranks) { return 2 * 8 * kPushPieceFloats * ranks; }

// A communicator of NCCL with its default channels, an allowance.
inline constexpr int64_t kNcclBytes = 200'000'000;

}  // namespace pq
