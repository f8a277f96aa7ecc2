// Stands in for cuda_fp16.h under emulation; see cuda_runtime.h beside it.
#pragma once

#include "base/tensor.h"
#include "tests/support/simt/cuda_runtime.h"

struct __half {
  uint16_t bits;
};
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline float __half2float(__half value) { return pq::f16_to_f32(value.bits); }
inline __half __float2half_rn(float value) { return {pq::f32_to_f16(value)}; }
