// Products of coded matrices with int8 activations in any number of tokens: in any width and order, and in tiles by panels on
// tensor cores. A block's dot product is exact in int32; blocks are added in order inside a unit, as kernels/backend.h demands, so
// that the bits are those of the host backends for any number of tokens and ranks. A few tokens with matrices in tiles are left to
// row_products.cu.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/quarters.h"
#include "kernels/cuda/rows_choice.h"

namespace pq::cuda {
namespace {

constexpr int kWarps = 8;
constexpr unsigned kAll = 0xffffffffu;

struct Product {
  float* y;  // [units][tokens][rows], or [tokens][rows] when units is 1
  const uint8_t* data;
  const uint16_t* norms;
  const int8_t* codes;  // [tokens, dim]
  const float* scales;  // [tokens, dim / 128]
  int64_t rows;
  int64_t tokens;
  int64_t dim;
  int64_t blocks;  // of a unit
  float int_step;
};

// Any width and layout, one row a warp, T tokens, four weights a lane.
template <int T>
__global__ void __launch_bounds__(32 * kWarps) polar_rows_kernel(Product p, Matrix m, int count, const int16_t* values, int bits) {
  __shared__ int16_t table[256];
  for (int i = threadIdx.x; i < 1 << bits; i += blockDim.x) table[i] = values[i];
  __syncthreads();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= p.rows) return;
  const int lane = threadIdx.x % 32;
  const int64_t unit = blockIdx.y;
  float sum[T];
#pragma unroll
  for (int t = 0; t < T; ++t) sum[t] = 0.0f;
  for (int64_t b = 0; b < p.blocks; ++b) {
    const CodedBlock block = coded_block(m, bits, unit, row, b, p.blocks);
    int w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = table[code_at(block, bits, 4 * lane + i)];
    const float norm = half_value(p.norms[block.norm]);
    const int64_t column = unit * p.blocks + b;
#pragma unroll
    for (int t = 0; t < T; ++t) {
      const int64_t token = min(t, count - 1);
      const char4 x = reinterpret_cast<const char4*>(p.codes + token * p.dim + column * kBlock)[lane];
      const int dot = __reduce_add_sync(kAll, w[0] * x.x + w[1] * x.y + w[2] * x.z + w[3] * x.w);
      sum[t] = fmaf(static_cast<float>(dot), norm * (p.scales[token * (p.dim / kBlock) + column] * p.int_step), sum[t]);
    }
  }
  if (lane == 0) {
#pragma unroll
    for (int t = 0; t < T; ++t) {
      if (t < count) p.y[(unit * p.tokens + t) * p.rows + row] = sum[t];
    }
  }
}

constexpr int kPanelTokens = 64;
constexpr int kPanelWarps = 4;
constexpr int kPanelRows = 16 * kPanelWarps;

// 64 rows by 64 tokens on the integer tensor cores, a block of 128 columns at a time. Word k of quarter q is
// the k-th of both operands for the lanes of q: any order within a block will do, int32 sums are exact. blockIdx.z is the unit.
__global__ void __launch_bounds__(32 * kPanelWarps) polar5_panels_kernel(Product p, const int8_t* magnitudes) {
  __shared__ uint32_t inputs[kPanelTokens][32 + 4];  // word 4 k + q: codes 32 q + 4 k ..; padded against bank conflicts
  __shared__ float scales[kPanelTokens];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, q = lane % 4, place = lane / 4;
  const int64_t unit = blockIdx.z;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kPanelRows + 16 * warp;
  const int64_t first_token = static_cast<int64_t>(blockIdx.y) * kPanelTokens;
  // Rows beyond the matrix repeat the last one and are dropped.
  const auto place_of = [&](int r) {
    const int64_t row = min(first_row + place + 8 * r, p.rows - 1), tile = row / kTileRows * kTileRows;
    const int64_t first = (unit * p.rows + tile) * p.blocks;
    return Quarters(p.data + first * kTileBytesARow, p.norms + first,
                    static_cast<int>(min(static_cast<int64_t>(kTileRows), p.rows - tile)), static_cast<int>(row - tile), q, 1);
  };
  Quarters quarters[2] = {place_of(0), place_of(1)};
  uint32_t table[4];
  load_table(magnitudes, table);
  float sum[kPanelTokens / 8][4];
#pragma unroll
  for (auto& tile : sum) tile[0] = tile[1] = tile[2] = tile[3] = 0.0f;
  for (int b = 0; b < p.blocks; ++b) {
    const int64_t column = unit * p.blocks + b;
    __syncthreads();
    for (int i = threadIdx.x; i < kPanelTokens * 4; i += 32 * kPanelWarps) {
      const int64_t token = min(first_token + i / 4, p.tokens - 1);
      uint32_t x[8];
      load_activations(p.codes + token * p.dim + column * kBlock + 32 * (i % 4), x);
#pragma unroll
      for (int k = 0; k < 8; ++k) inputs[i / 4][4 * k + i % 4] = x[k];
      if (i % 4 == 0) scales[i / 4] = p.scales[token * (p.dim / kBlock) + column] * p.int_step;
    }
    uint32_t weights[2][8];
    float norm[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Quarter w = quarters[r].next();
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const EightWeights e = eight_weights(w, table, k);
#pragma unroll
        for (int i = 0; i < 2; ++i) weights[r][2 * k + i] = __vsub4(e.value[i], e.sign[i]);
      }
      norm[r] = half_value(w.norm);
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kPanelTokens / 8; ++n) {
      int dot[4] = {0, 0, 0, 0};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const uint32_t a[4] = {weights[0][2 * k], weights[1][2 * k], weights[0][2 * k + 1], weights[1][2 * k + 1]};
        multiply_tile(dot, a, inputs[8 * n + place][8 * k + q], inputs[8 * n + place][8 * k + 4 + q]);
      }
      const float left = scales[8 * n + 2 * q], right = scales[8 * n + 2 * q + 1];
      sum[n][0] = fmaf(static_cast<float>(dot[0]), norm[0] * left, sum[n][0]);
      sum[n][1] = fmaf(static_cast<float>(dot[1]), norm[0] * right, sum[n][1]);
      sum[n][2] = fmaf(static_cast<float>(dot[2]), norm[1] * left, sum[n][2]);
      sum[n][3] = fmaf(static_cast<float>(dot[3]), norm[1] * right, sum[n][3]);
    }
  }
#pragma unroll
  for (int n = 0; n < kPanelTokens / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t r = first_row + place + (i < 2 ? 0 : 8);
      const int64_t t = first_token + 8 * n + 2 * q + i % 2;
      if (r < p.rows && t < p.tokens) p.y[(unit * p.tokens + t) * p.rows + r] = sum[n][i];
    }
  }
}

template <int T>
void launch_rows(const Product& p, const Matrix& m, int count, const DeviceCodebook& book, cudaStream_t stream) {
  launch("polar_rows", polar_rows_kernel<T>, dim3(blocks_for(p.rows, kWarps), static_cast<unsigned>(m.units)), 32 * kWarps, 0,
         stream, p, m, count, book.values, book.bits);
}

}  // namespace

void launch_polar_int8(const LinearArgs& args, float* unit_sums, const DeviceCodebook& book, cudaStream_t stream) {
  const Matrix& w = args.w;
  Product p{.y = unit_sums,
            .data = static_cast<const uint8_t*>(w.data),
            .norms = w.scales,
            .codes = args.x.codes,
            .scales = args.x.scales,
            .rows = w.rows,
            .tokens = args.x.tokens,
            .dim = args.x.dim,
            .blocks = w.unit_cols() / kBlock,
            .int_step = book.int_step};
  if (choose_rows_kernel(w, p.tokens) == RowsKernel::panels) {
    const dim3 grid(blocks_for(p.rows, kPanelRows), blocks_for(p.tokens, kPanelTokens), static_cast<unsigned>(w.units));
    launch("polar5_panels", polar5_panels_kernel, grid, 32 * kPanelWarps, 0, stream, p, book.magnitudes);
    return;
  }
  for (int64_t token = 0; token < args.x.tokens; token += 8) {
    const int count = static_cast<int>(args.x.tokens - token < 8 ? args.x.tokens - token : 8);
    const auto rows = count == 1 ? launch_rows<1> : count == 2 ? launch_rows<2> : count <= 4 ? launch_rows<4> : launch_rows<8>;
    rows(p, w, count, book, stream);
    p.y += 8 * p.rows;
    p.codes += 8 * p.dim;
    p.scales += 8 * (p.dim / kBlock);
  }
}

}  // namespace pq::cuda
