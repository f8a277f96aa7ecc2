// Errors, launches and small device functions that all kernels of the plugin share.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "base/error.h"
#include "kernels/backend.h"

namespace pq::cuda {

// Throws ErrorKind::environment naming the call and what the runtime says.
inline void check(cudaError_t result, const char* call) {
  if (result != cudaSuccess) throw Error(ErrorKind::environment, std::string(call) + ": " + cudaGetErrorString(result));
}

inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

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

// Sum over a block of up to 1024 threads, a multiple of 32: warps by halves, then the warps' sums by halves. scratch [32].
__device__ inline float block_sum(float x, float* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  x = warp_sum(x);
  __syncthreads();
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  return warp_sum(lane < warps ? scratch[lane] : 0.0f);
}

__device__ inline float silu(float x) { return x / (1.0f + expf(-x)); }

__device__ inline float bf16_value(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }
__device__ inline float half_value(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }

// A 128-block held as four values a lane, value i of lane l being element 4 l + i: v <- sqrt(128) H v, distances 1, 2, 4, ..., 64 as
// in kernels/hadamard.h, so that the bits are those of the host backends.
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

// Weight `c` of line `line` (unit * rows + row) of a matrix that is not coded.
__device__ inline float plain_weight(const Matrix& m, int64_t line, int64_t unit_cols, int64_t c) {
  const int64_t index = line * unit_cols + c;
  if (m.format == WeightFormat::f32) return static_cast<const float*>(m.data)[index];
  if (m.format == WeightFormat::bf16) return bf16_value(static_cast<const uint16_t*>(m.data)[index]);
  const int64_t group = index / kBlock;
  const int i = static_cast<int>(index % kBlock);
  const uint8_t byte = static_cast<const uint8_t*>(m.data)[group * 64 + i % 64];
  const int q = i < 64 ? byte & 15 : byte >> 4;
  const float zero = m.zeros != nullptr ? bf16_value(m.zeros[group]) : 0.0f;
  return static_cast<float>(q - 8) * bf16_value(m.scales[group]) + zero;
}

}  // namespace pq::cuda
