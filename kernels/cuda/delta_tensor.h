// Products of the gated delta rule on tensor cores, for prompts whose bits need not be those of decode. Each operand is split into
// two values of TF32 (10 bits after the point each), and three of the four products are added in fp32: of x y the error is at most
// 2^-20 |x y|, about that of fp32 where the order of additions is free. Operands lie in shared memory; the four warps of a block
// share the columns of the result.
#pragma once

#include "kernels/cuda/device.h"

namespace pq::cuda {

// A fragment's values as hi + lo.
template <int N>
struct Split {
  uint32_t high[N];
  uint32_t low[N];

  __device__ void set(int i, float x) {
    high[i] = to_tf32(x);
    low[i] = to_tf32(x - __uint_as_float(high[i]));
  }
};

// Rows [0, 16) of a matrix [16][k], element (row, k) at x[row * row_stride + k * k_stride]; k in [first, first + 8).
__device__ inline Split<4> left_fragment(const float* x, int row_stride, int k_stride, int first) {
  const int group = threadIdx.x % 32 / 4, member = threadIdx.x % 4;
  Split<4> a;
#pragma unroll
  for (int i = 0; i < 4; ++i) a.set(i, x[(group + i % 2 * 8) * row_stride + (first + member + i / 2 * 4) * k_stride]);
  return a;
}

// Columns [0, 8) of a matrix [k][8], element (k, column) at x[k * k_stride + column * column_stride]; k in [first, first + 8).
__device__ inline Split<2> right_fragment(const float* x, int k_stride, int column_stride, int first) {
  const int group = threadIdx.x % 32 / 4, member = threadIdx.x % 4;
  Split<2> b;
#pragma unroll
  for (int i = 0; i < 2; ++i) b.set(i, x[(first + member + i * 4) * k_stride + group * column_stride]);
  return b;
}

// c += a b of one step of 8. The small products first.
__device__ inline void multiply_split(float c[4], const Split<4>& a, const Split<2>& b) {
  multiply_tile_tf32(c, a.low, b.high[0], b.high[1]);
  multiply_tile_tf32(c, a.high, b.low[0], b.low[1]);
  multiply_tile_tf32(c, a.high, b.high[0], b.high[1]);
}

// Where the two pairs of a result [16][8] of this thread lie: rows group and group + 8, columns 2 * member and the next.
__device__ inline int result_row(int pair) { return static_cast<int>(threadIdx.x % 32 / 4) + 8 * pair; }
__device__ inline int result_column() { return static_cast<int>(threadIdx.x % 4) * 2; }

}  // namespace pq::cuda
