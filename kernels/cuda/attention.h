// What the kernels of attention share: rows of the cache, read two and four
// elements at a time.
#pragma once

#include "kernels/cuda/device.h"

namespace pq::cuda {

// A row of the keys or values at `data`, aligned to 2 bytes (q8) or 16 (the
// others).
template <KvType type>
__device__ float2 cached2(const char* data, int64_t dim, int64_t i) {
  if constexpr (type == KvType::f16) {
    const uint32_t pair = *reinterpret_cast<const uint32_t*>(data + 2 * i);
    return make_float2(half_value(static_cast<uint16_t>(pair)), half_value(static_cast<uint16_t>(pair >> 16)));
  } else if constexpr (type == KvType::f32) {
    return *reinterpret_cast<const float2*>(data + 4 * i);
  } else {
    const float scale = half_value(reinterpret_cast<const uint16_t*>(data + dim)[i / kKvGroup]);
    const uint16_t pair = *reinterpret_cast<const uint16_t*>(data + i);
    return make_float2(scale * static_cast<float>(static_cast<int8_t>(pair)),
                       scale * static_cast<float>(static_cast<int8_t>(pair >> 8)));
  }
}

template <KvType type>
__device__ float4 cached4(const char* data, int64_t dim, int64_t i) {
  if constexpr (type == KvType::f16) {
    const uint2 four = *reinterpret_cast<const uint2*>(data + 2 * i);
    return make_float4(half_value(static_cast<uint16_t>(four.x)), half_value(static_cast<uint16_t>(four.x >> 16)),
                       half_value(static_cast<uint16_t>(four.y)), half_value(static_cast<uint16_t>(four.y >> 16)));
  } else if constexpr (type == KvType::f32) {
    return *reinterpret_cast<const float4*>(data + 4 * i);
  } else {
    // Two pairs: rows of 32 and 96 elements begin at any even byte.
    const float2 low = cached2<type>(data, dim, i), high = cached2<type>(data, dim, i + 2);
    return make_float4(low.x, low.y, high.x, high.y);
  }
}

// Calls visitor.run<type>().
template <typename Visitor>
void with_kv_type(KvType type, const Visitor& visitor) {
  switch (type) {
    case KvType::f16:
      return visitor.template run<KvType::f16>();
    case KvType::f32:
      return visitor.template run<KvType::f32>();
    case KvType::q8:
      return visitor.template run<KvType::q8>();
  }
}

}  // namespace pq::cuda
