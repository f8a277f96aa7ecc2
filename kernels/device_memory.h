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

// With which the error of a backend begins whose device, or limit, has no room for a buffer.
inline constexpr const char* kNoDeviceMemory = "no device memory";

// Before the first buffer: the CUDA context (250 to 350 MB on devices of this decade), the code of the kernels and their local
// memory. An allowance: the driver does not say it in advance.
inline constexpr int64_t kDeviceContextBytes = 380'000'000;
// The part of that which is taken after the backend is made: code that is loaded when it first runs, local memory.
inline constexpr int64_t kDeviceLaterBytes = 30'000'000;
// For recorded steps (CUDA graphs), an allowance too: 24 of 400 launches at 7 KB each. A line says when they take more.
inline constexpr int64_t kDeviceGraphBytes = 70'000'000;

// Through which ids and spans of a step reach the device.
inline constexpr int64_t kDeviceStagingBytes = int64_t{4} << 20;

// Through which matrices pass that are put into another order while a model is loaded.
inline constexpr int64_t kDeviceBounceBytes = int64_t{4} << 20;

// Products of many tokens by cuBLAS (BackendOptions::cublas): from so many tokens on, by way of weights widened a tile at a time.
// 32 MiB of cuBLAS's own is what NVIDIA advises for sm_90, others need less. Its handle, the pool that a handle begins with and the
// code of the products it chooses are an allowance: the library does not say them.
inline constexpr int64_t kWideTokens = 64;
inline constexpr int64_t kWideTileBytes = int64_t{32} << 20;
inline constexpr int64_t kCublasWorkspaceBytes = int64_t{32} << 20;
inline constexpr int64_t kCublasBytes = 200'000'000;
// Its inputs, of up to so many tokens and columns, as bfloat16.
constexpr int64_t wide_input_bytes(int64_t tokens, int64_t cols) { return tokens < kWideTokens ? 0 : 2 * tokens * cols; }

// What a device takes before the first buffer.
constexpr int64_t device_context_bytes(bool cublas) { return kDeviceContextBytes + (cublas ? kCublasBytes : 0); }
// What a plan counts that is no buffer of the backend.
constexpr int64_t device_allowance_bytes(bool cublas) { return device_context_bytes(cublas) + kDeviceGraphBytes; }
// What a plan may come to on a device that has so many bytes free, or in buffers of a backend that has been made.
constexpr int64_t device_room(int64_t free_or_held, bool cublas) {
  return free_or_held + device_context_bytes(cublas) - kDeviceLaterBytes;
}
// What the backend takes when it is made, and holds.
constexpr int64_t device_fixed_bytes(bool cublas) {
  return kDeviceStagingBytes + (cublas ? kWideTileBytes + kCublasWorkspaceBytes : 0);
}

// Sums by pushing: two sets of packets of so many values, 8 bytes each, for every sender.
inline constexpr int64_t kPushPieceFloats = int64_t{64} << 10;
constexpr int64_t push_sum_bytes(int ranks) { return 2 * 8 * kPushPieceFloats * ranks; }

// What a grid has room for along y or z.
inline constexpr int64_t kGridRows = 65535;

// Attention of single tokens keeps what each key block gives, of as many tokens at once as these floats hold, one at least.
inline constexpr int64_t kAttentionPartFloats = int64_t{4} << 20;
constexpr int64_t attention_part_floats(int64_t heads, int64_t head_dim, int64_t positions) {
  return heads * ((positions + kKeyBlock - 1) / kKeyBlock) * (head_dim + 2);
}
constexpr int64_t attention_rows_at_once(int64_t heads, int64_t head_dim, int64_t positions) {
  const int64_t rows = kAttentionPartFloats / attention_part_floats(heads, head_dim, positions);
  return rows < 1 ? 1 : rows < kGridRows ? rows : kGridRows;
}
// Of a call with `rows` such tokens.
constexpr int64_t attention_row_floats(int64_t heads, int64_t head_dim, int64_t positions, int64_t rows) {
  const int64_t at_once = attention_rows_at_once(heads, head_dim, positions);
  return (rows < at_once ? rows : at_once) * attention_part_floats(heads, head_dim, positions);
}

// A communicator of NCCL with its default channels, an allowance.
inline constexpr int64_t kNcclBytes = 200'000'000;

}  // namespace pq
