// Products with weights that are used as fp32, the tree over units, and matrices written out as fp32.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/plain_rows.h"
#include "kernels/cuda/tiles.h"

namespace pq::cuda {
namespace {

constexpr int kHalfWarps = 16;
constexpr int kTokens = 8;

template <int Turns>
__global__ void __launch_bounds__(kPlainThreads) plain_rows_kernel(float* unit_sums, const float* x, Matrix m, int64_t tokens) {
  __shared__ PlainArea area;
  const int64_t unit = blockIdx.z;
  plain_rows<Turns>(area, unit_sums + unit * tokens * m.rows, x, m, unit, static_cast<int64_t>(blockIdx.x) * kPlainRows,
                    static_cast<int64_t>(blockIdx.y) * Turns * kPlainTurn, tokens);
}

// One coded row and up to eight tokens a half warp, in the sixteen lanes of the contract, which are folded block by block;
// blockIdx.y the tokens, blockIdx.z the unit. A half warp without a row repeats the last one: the other half needs it in its
// shuffles.
__global__ void __launch_bounds__(16 * kHalfWarps)
    rotated_rows_kernel(float* unit_sums, const float* x, Matrix m, const float* centroids, int bits, int64_t tokens,
                        int64_t unit_cols) {
  const int64_t own = static_cast<int64_t>(blockIdx.x) * kHalfWarps + threadIdx.x / 16;
  const int64_t row = min(own, m.rows - 1);
  const int lane = threadIdx.x % 16;
  const int64_t unit = blockIdx.z, first = static_cast<int64_t>(blockIdx.y) * kTokens;
  const int64_t count = min(static_cast<int64_t>(kTokens), tokens - first);
  const int64_t blocks = unit_cols / kBlock;
  float sum[kTokens] = {};
  for (int64_t b = 0; b < blocks; ++b) {
    const CodedBlock block = coded_block(m, bits, unit, row, b, blocks);
    float w[kBlock / 16];
#pragma unroll
    for (int i = 0; i < kBlock / 16; ++i) w[i] = centroids[code_at(block, bits, 16 * i + lane)];
    const float factor = __fdiv_rn(half_value(m.scales[block.norm]), 11.313708498984761f);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (t >= count) break;
      const float* v = x + (first + t) * m.cols + unit * unit_cols + b * kBlock + lane;
      float dot = 0.0f;
#pragma unroll
      for (int i = 0; i < kBlock / 16; ++i) dot = fmaf(w[i], v[16 * i], dot);
      sum[t] = fmaf(fold_lanes(dot), factor, sum[t]);
    }
  }
  for (int t = 0; t < count; ++t) {
    if (lane == 0 && own == row) unit_sums[(unit * tokens + first + t) * m.rows + row] = sum[t];
  }
}

__global__ void unit_tree_kernel(float* y, const float* sums, int units, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float level[7];
  // A binary counter: after unit u the levels of its trailing ones are full and fold into the next.
  for (int u = 0; u < units; ++u) {
    float sum = sums[u * count + i];
#pragma unroll
    for (int l = 0; l < 7; ++l) {
      if (((u >> l) & 1) == 0) {
        level[l] = sum;
        break;
      }
      sum = level[l] + sum;
    }
  }
#pragma unroll
  for (int l = 0; l < 7; ++l) {
    if (units == 1 << l) y[i] = level[l];
  }
}

// One block of 128 a warp, in the original basis.
__global__ void decode_kernel(float* y, Matrix m, const float* centroids, int bits, int64_t unit_cols) {
  const int64_t blocks = (unit_cols + kBlock - 1) / kBlock;
  const int64_t place = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (place >= m.units * m.rows * blocks) return;
  const int lane = threadIdx.x % 32;
  const int64_t line = place / blocks, b = place % blocks;
  const int64_t unit = line / m.rows, row = line % m.rows;
  float v[4];
  if (m.format == WeightFormat::polar) {
    const CodedBlock block = coded_block(m, bits, unit, row, b, blocks);
    for (int i = 0; i < 4; ++i) v[i] = centroids[code_at(block, bits, 4 * lane + i)];
    hadamard_block(v);
    const float factor = half_value(m.scales[block.norm]) * (1.0f / 128.0f);
    for (float& value : v) value *= factor;
  }
  for (int i = 0; i < 4; ++i) {
    const int64_t c = b * kBlock + 4 * lane + i;
    if (c >= unit_cols) break;
    y[row * m.cols + unit * unit_cols + c] = m.format == WeightFormat::polar ? v[i] : plain_weight(m, line, unit_cols, c);
  }
}

}  // namespace

void launch_float_linear(const LinearArgs& args, float* unit_sums, const DeviceCodebook& book, cudaStream_t stream) {
  const Matrix& w = args.w;
  const auto units = static_cast<unsigned>(w.units);
  if (w.format == WeightFormat::polar) {
    const dim3 grid(blocks_for(w.rows, kHalfWarps), blocks_for(args.x.tokens, kTokens), units);
    launch("rotated_rows", rotated_rows_kernel, grid, 16 * kHalfWarps, 0, stream, unit_sums, args.x.rotated, w, book.centroids,
           book.bits, args.x.tokens, w.unit_cols());
  } else {
    const int turns = plain_turns(args.x.tokens);
    const dim3 grid(blocks_for(w.rows, kPlainRows), blocks_for(args.x.tokens, turns * kPlainTurn), units);
    launch("plain_rows", turns == 1 ? plain_rows_kernel<1> : plain_rows_kernel<2>, grid, kPlainThreads, 0, stream, unit_sums,
           args.x.raw, w, args.x.tokens);
  }
}

void launch_unit_tree(float* y, const float* unit_sums, int64_t units, int64_t count, cudaStream_t stream) {
  launch("unit_tree", unit_tree_kernel, blocks_for(count, 256), 256, 0, stream, y, unit_sums, static_cast<int>(units), count);
}

void launch_decode(const DecodeArgs& args, const DeviceCodebook& book, cudaStream_t stream) {
  const Matrix& m = args.matrix;
  const int64_t lines = m.units * m.rows * ((m.unit_cols() + kBlock - 1) / kBlock);
  launch("decode", decode_kernel, blocks_for(lines, 4), 128, 0, stream, args.w, m, book.centroids, book.bits, m.unit_cols());
}

}  // namespace pq::cuda
