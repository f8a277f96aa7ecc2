// Rows of a key or value cache, element by element, as backend.h defines them. For the reference, the tests, and where speed does
// not count; the inner loops of a backend read rows in their own way.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "base/tensor.h"
#include "kernels/backend.h"

namespace pq {

// x [head_dim] -> row of kv_row_bytes(KvType::q8, head_dim), aligned to 2 bytes.
inline void store_q8_row(void* row, const float* x, int64_t head_dim) {
  int8_t* ints = static_cast<int8_t*>(row);
  uint16_t* scales = reinterpret_cast<uint16_t*>(ints + head_dim);
  // Added and taken away again, it leaves the nearest integer.
  constexpr float kRound = 12582912.0f;
  for (int64_t group = 0; group < head_dim / kKvGroup; ++group) {
    const float* from = x + group * kKvGroup;
    float largest = 0.0f;
    for (int64_t i = 0; i < kKvGroup; ++i) largest = std::max(largest, std::abs(from[i]));
    scales[group] = f32_to_f16(std::min(largest / 127.0f, 65504.0f));
    const float scale = f16_to_f32(scales[group]);
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    for (int64_t i = 0; i < kKvGroup; ++i) {
      const float clamped = std::clamp(from[i] * inverse, -127.0f, 127.0f);
      ints[group * kKvGroup + i] = static_cast<int8_t>(clamped + kRound - kRound);
    }
  }
}

inline float kv_value(KvType type, const void* row, int64_t head_dim, int64_t i) {
  if (type == KvType::f32) return static_cast<const float*>(row)[i];
  if (type == KvType::f16) return f16_to_f32(static_cast<const uint16_t*>(row)[i]);
  const int8_t* ints = static_cast<const int8_t*>(row);
  return f16_to_f32(reinterpret_cast<const uint16_t*>(ints + head_dim)[i / kKvGroup]) * static_cast<float>(ints[i]);
}

}  // namespace pq
