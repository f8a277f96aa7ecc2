// Errors, launches and small device functions that all kernels of the plugin share.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "base/error.h"
#include "kernels/backend.h"
#include "kernels/cuda/ptx.h"

namespace pq::cuda {

// Throws ErrorKind::environment naming the call and what the runtime says.
inline void check(cudaError_t result, const char* call) {
  if (result != cudaSuccess) throw Error(ErrorKind::environment, std::string(call) + ": " + cudaGetErrorString(result));
}

// kernel(arguments...) on the stream; `name` is for the error. A function call rather than <<<>>>, so that the tests' emulation
// compiles the same text.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

inline unsigned blocks_for(int64_t count, int64_t each) { return static_cast<unsigned>((count + each - 1) / each); }

// Sum over the lanes of a warp by halves; every lane gets it.
__device__ inline float warp_sum(float x) {
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

__device__ inline float warp_max(float x) {
  for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
  return x;
}

// "Folded by halves" (kernels/backend.h): the sum over each half of a warp, lane l += lane l + 8, then + 4, + 2, + 1; all lanes get
// it.
__device__ inline float fold_lanes(float x) {
  for (int distance = 8; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

// The exp of the host backends (kernels/cpu/math_body.h), step by step, so that the bits agree.
__device__ inline float exp_as_host(float x) {
  x = -86.6f > x ? -86.6f : x;
  x = 88.37f < x ? 88.37f : x;
  const float shifted = fmaf(x, 1.44269504088896341f, 12582912.0f);
  const float n = shifted - 12582912.0f;
  const float r = fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, x));
  float p = 1.9875691500e-4f;
  p = fmaf(p, r, 1.3981999507e-3f);
  p = fmaf(p, r, 8.3334519073e-3f);
  p = fmaf(p, r, 4.1665795894e-2f);
  p = fmaf(p, r, 1.6666665459e-1f);
  p = fmaf(p, r, 5.0000001201e-1f);
  p = fmaf(p, r * r, r) + 1.0f;
  return __uint_as_float(__float_as_uint(p) + (__float_as_uint(shifted) << 23));
}

__device__ inline float one_plus_exp_minus(float x) { return 1.0f + exp_as_host(-x); }
__device__ inline float silu(float x) { return __fdiv_rn(x, one_plus_exp_minus(x)); }

// x . y in 16 lanes folded by halves: by the lanes of a half warp, or by both halves alike.
__device__ inline float dot_lanes(const float* x, const float* y, int64_t count) {
  float sum = 0.0f;
  for (int64_t i = threadIdx.x % 16; i < count; i += 16) sum = fmaf(x[i], y[i], sum);
  return fold_lanes(sum);
}

__device__ inline float bf16_value(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }
__device__ inline float half_value(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
__device__ inline uint16_t half_bits(float value) { return __half_as_ushort(__float2half_rn(value)); }
// To nearest, ties to even, of what is a number.
__device__ inline uint16_t bf16_bits(float value) {
  const uint32_t bits = __float_as_uint(value);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// A 128-block held as four values a lane, value i of lane l being element 4 l + i: v <- sqrt(128) H v, distances 1, 2, 4, ..., 64
// as in kernels/hadamard.h, so that the bits are those of the host backends.
__device__ inline void hadamard_block(float v[4]) {
  const float a = v[0] + v[1], b = v[0] - v[1], c = v[2] + v[3], d = v[2] - v[3];
  v[0] = a + c;
  v[1] = b + d;
  v[2] = a - c;
  v[3] = b - d;
  for (int distance = 1; distance < 32; distance *= 2) {
    const bool upper = (threadIdx.x & distance) != 0;
    for (int i = 0; i < 4; ++i) {
      const float other = __shfl_xor_sync(0xffffffffu, v[i], distance);
      v[i] = upper ? other - v[i] : v[i] + other;
    }
  }
}

// Magnitude indices are in planes (kernels/polar.h); the signed index 0 .. 2^bits - 1 of weight i of a block.
__device__ inline int code_at(const uint8_t* block, int bits, int i) {
  int magnitude = 0, shift = 0;
  int left = bits - 1;
  const uint8_t* plane = block;
  if (left >= 4) {
    magnitude = (plane[i % 64] >> (4 * (i / 64))) & 15;
    plane += 64;
    shift = 4;
    left -= 4;
  }
  if (left >= 2) {
    magnitude |= ((plane[i % 32] >> (2 * (i / 32))) & 3) << shift;
    plane += 32;
    shift += 2;
    left -= 2;
  }
  if (left == 1) {
    magnitude |= ((plane[i / 8] >> (i % 8)) & 1) << shift;
    plane += 16;
  }
  const int half = 1 << (bits - 1);
  const bool negative = (plane[i / 8] >> (i % 8)) & 1;
  return negative ? half - 1 - magnitude : half + magnitude;
}

// Weight `index` of the plane of an int4 matrix.
__device__ inline float int4_weight(const Matrix& m, int64_t index) {
  const int64_t group = index / kBlock;
  const int i = static_cast<int>(index % kBlock);
  const uint8_t byte = static_cast<const uint8_t*>(m.data)[group * 64 + i % 64];
  const int q = i < 64 ? byte & 15 : byte >> 4;
  const float zero = m.zeros != nullptr ? bf16_value(m.zeros[group]) : 0.0f;
  return static_cast<float>(q - 8) * bf16_value(m.scales[group]) + zero;
}

// Weight `c` of line `line` (unit * rows + row) of a matrix that is not coded.
__device__ inline float plain_weight(const Matrix& m, int64_t line, int64_t unit_cols, int64_t c) {
  const int64_t index = line * unit_cols + c;
  if (m.format == WeightFormat::f32) return static_cast<const float*>(m.data)[index];
  if (m.format == WeightFormat::bf16) return bf16_value(static_cast<const uint16_t*>(m.data)[index]);
  return int4_weight(m, index);
}

}  // namespace pq::cuda
