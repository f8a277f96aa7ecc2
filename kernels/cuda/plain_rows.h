// Rows of f32, bf16 and int4 matrices against fp32 activations, in the sixteen lanes of the contract, by one block of threads. What
// the lanes read lies in shared memory: a lane walks a row in steps of sixteen, so that from memory itself it would wait for every
// few values of it.
#pragma once

#include "kernels/cuda/device.h"

namespace pq::cuda {

inline constexpr int kPlainThreads = 256;
inline constexpr int kPlainRows = 4;
inline constexpr int kPlainTurn = 4;  // tokens side by side
inline constexpr int kPlainColumns = 1024;

// Columns at hand, half as many of two turns; rows of weights lie on different banks.
struct PlainArea {
  float weights[kPlainRows][kPlainColumns + 16];
  float inputs[kPlainTurn * kPlainColumns];
};
static_assert(kPlainRows * kPlainTurn * 16 == kPlainThreads);

// A pass over the weights takes one turn of tokens, or two: each thread then has one of either.
inline int plain_turns(int64_t tokens) { return tokens > kPlainTurn ? 2 : 1; }

// y [tokens][m.rows] of one unit: rows from first_row, tokens from first_token, as many of the block's as there are. x
// [tokens][m.cols]. All kPlainThreads threads call it.
template <int Turns>
__device__ inline void plain_rows(PlainArea& area, float* y, const float* x, const Matrix& m, int64_t unit, int64_t first_row,
                                  int64_t first_token, int64_t tokens) {
  const int lane = threadIdx.x % 16, row = threadIdx.x / 16 % kPlainRows, token = threadIdx.x / (16 * kPlainRows);
  const int rows = static_cast<int>(min(static_cast<int64_t>(kPlainRows), m.rows - first_row));
  const int count = static_cast<int>(min(static_cast<int64_t>(Turns * kPlainTurn), tokens - first_token));
  // Offsets from the first of the rows are 32 bits, which leaves a block of threads its registers.
  const int cols = static_cast<int>(m.cols / m.units), stride = static_cast<int>(m.cols);
  const int64_t first = (unit * m.rows + first_row) * cols;
  const float* input = x + first_token * m.cols + unit * cols;
  constexpr int columns = kPlainColumns / Turns;
  float sum[Turns] = {};
  for (int begin = 0; begin < cols; begin += columns) {
    const int size = min(columns, cols - begin);
    // All of a thread's loads are on their way before it waits for one; rows that are not there repeat the last.
    const auto fill = [&](const auto& weight) {
#pragma unroll 4
      for (int c = threadIdx.x; c < size; c += kPlainThreads) {
#pragma unroll
        for (int r = 0; r < kPlainRows; ++r) area.weights[r][c] = weight(min(r, rows - 1) * cols + begin + c);
      }
    };
    __syncthreads();
    if (m.format == WeightFormat::f32) {
      const auto* data = static_cast<const float*>(m.data) + first;
      fill([&](int i) { return data[i]; });
    } else if (m.format == WeightFormat::bf16) {
      const auto* data = static_cast<const uint16_t*>(m.data) + first;
      fill([&](int i) { return bf16_value(data[i]); });
    } else {
      fill([&](int i) { return int4_weight(m, first + i); });
    }
    for (int t = 0; t < count; ++t) {
#pragma unroll 2
      for (int c = threadIdx.x; c < size; c += kPlainThreads) area.inputs[t * columns + c] = input[t * stride + begin + c];
    }
    __syncthreads();
    if (token < count) {
#pragma unroll 4
      for (int c = lane; c < size; c += 16) {
#pragma unroll
        for (int i = 0; i < Turns; ++i)
          sum[i] = fmaf(area.weights[row][c], area.inputs[(i * kPlainTurn + token) * columns + c], sum[i]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < Turns; ++i) {
    const int own = i * kPlainTurn + token;
    const float total = fold_lanes(sum[i]);
    if (lane == 0 && row < rows && own < count) y[(first_token + own) * m.rows + first_row + row] = total;
  }
}

}  // namespace pq::cuda
