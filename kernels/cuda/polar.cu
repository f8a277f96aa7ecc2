// Products of coded matrices with int8 activations. A block's dot product is exact in int32; blocks are added in order inside a
// unit and units by a tree, as kernels/backend.h demands, so that the bits are those of the host backends for any number of tokens
// and ranks.
//
// Matrices in tiles (kernels/cuda/tiles.h): four lanes a row, eight rows a warp, so that a warp loads a tile in two instructions of
// whole lines, its rows share the activations, and a lane finds 32 consecutive weights: eight words of four nibbles, which are byte
// selectors where they stand.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/rows_choice.h"
#include "kernels/cuda/tiles.h"

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

// Row `place` of a tile, quarter `q`: weights 32 q .. 32 q + 31.
struct Quarter {
  uint4 nibbles;
  uint32_t signs;
  uint16_t norm;
};

// tile: the first byte of a tile of n rows; norms: its n norms.
__device__ Quarter load_quarter(const uint8_t* tile, const uint16_t* norms, int n, int place, int q) {
  Quarter w;
  w.nibbles = __ldg(reinterpret_cast<const uint4*>(tile + 64 * place + 16 * q));
  w.signs = __ldg(reinterpret_cast<const uint32_t*>(tile + 64 * n + 16 * place + 4 * q));
  w.norm = __ldg(norms + place);
  return w;
}

// Magnitudes of weights 4 k .. 4 k + 3 of the quarter. A selector above 7 asks for the sign of the byte it names, which is 0, so
// the halves of the table can be joined without masks.
__device__ uint32_t magnitudes_of(const Quarter& w, const uint32_t table[4], int k) {
  const uint32_t words[4] = {w.nibbles.x, w.nibbles.y, w.nibbles.z, w.nibbles.w};
  const uint32_t nibbles = words[k / 2] >> (16 * (k % 2));
  const uint32_t upper = (words[k / 2] ^ 0x88888888u) >> (16 * (k % 2));
  return select_bytes(table[0], table[1], nibbles) | select_bytes(table[2], table[3], upper);
}

// Their signs as bytes of 0 or 255.
__device__ uint32_t signs_of(const Quarter& w, int k) { return spread_signs(w.signs << k); }

__device__ void load_table(const int8_t* magnitudes, uint32_t table[4]) {
  const uint4 words = *reinterpret_cast<const uint4*>(magnitudes);
  table[0] = words.x;
  table[1] = words.y;
  table[2] = words.z;
  table[3] = words.w;
}

__device__ void load_activations(const int8_t* codes, int q, uint32_t x[8]) {
  const uint4 low = __ldg(reinterpret_cast<const uint4*>(codes + 32 * q));
  const uint4 high = __ldg(reinterpret_cast<const uint4*>(codes + 32 * q + 16));
  x[0] = low.x;
  x[1] = low.y;
  x[2] = low.z;
  x[3] = low.w;
  x[4] = high.x;
  x[5] = high.y;
  x[6] = high.z;
  x[7] = high.w;
}

constexpr int kAhead = 4;   // tiles a warp has in flight
constexpr int kChunk = 32;  // blocks whose products wait in shared memory for their order

// T tokens, of which `count` are there; S warps share eight rows, warp s of them taking blocks s, s + S, ... Their products are
// then added in order by one thread a row and token. blockIdx.y is the unit.
template <int T, int S>
__global__ void __launch_bounds__(32 * kWarps) polar5_rows_kernel(Product p, int count, const int8_t* magnitudes) {
  constexpr int kGroups = kWarps / S;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, q = lane % 4, place = lane / 4;
  const int group = warp / S, part = warp % S;
  const int64_t unit = blockIdx.y;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kGroups + group) * kTileRows;
  if (S == 1 && first >= p.rows) return;
  // Warps and lanes without rows repeat the last one: the others need them at barriers and in shuffles.
  const int64_t first_row = min(first, (p.rows - 1) / kTileRows * kTileRows);
  const int n = static_cast<int>(min(static_cast<int64_t>(kTileRows), p.rows - first_row));
  const int row = min(place, n - 1);
  const uint8_t* data = p.data + (unit * p.rows + first_row) * p.blocks * kTileBytesARow;
  const uint16_t* norms = p.norms + (unit * p.rows + first_row) * p.blocks;
  const int8_t* codes = p.codes + unit * p.blocks * kBlock;
  const float* scales = p.scales + unit * p.blocks;
  uint32_t table[4];
  load_table(magnitudes, table);

  // The product of this lane's row with token t at a block, before the norm and the scale: all four lanes of the row get it.
  const auto products = [&](const Quarter& w, int64_t b, float value[T], float factor[T]) {
    uint32_t decoded[8], sign[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      sign[k] = signs_of(w, k);
      decoded[k] = magnitudes_of(w, table, k) ^ sign[k];
      // The complement of a magnitude m is -m - 1. Few tokens take the -1 back by a second product, many repair the weight.
      if (T > 2) decoded[k] = __vsub4(decoded[k], sign[k]);
    }
    const float norm = half_value(w.norm);
#pragma unroll
    for (int t = 0; t < T; ++t) {
      const int64_t token = min(t, count - 1);
      uint32_t x[8];
      load_activations(codes + token * p.dim + b * kBlock, q, x);
      int dot = 0, negative = 0;
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        dot = __dp4a(static_cast<int>(decoded[k]), static_cast<int>(x[k]), dot);
        if (T <= 2) negative = __dp4a(static_cast<int>(sign[k]), static_cast<int>(x[k]), negative);
      }
      dot -= negative;
      dot += __shfl_xor_sync(kAll, dot, 1);
      dot += __shfl_xor_sync(kAll, dot, 2);
      value[t] = static_cast<float>(dot);
      factor[t] = norm * (scales[token * (p.dim / kBlock) + b] * p.int_step);
    }
  };
  const auto load = [&](int64_t b) { return load_quarter(data + b * n * kTileBytesARow, norms + b * n, n, row, q); };
  const auto store = [&](int64_t r, int t, float sum) {
    if (r < p.rows && t < count) p.y[(unit * p.tokens + t) * p.rows + r] = sum;
  };

  if constexpr (S == 1) {
    float sum[T] = {};
    for (int64_t ahead = 0; ahead < p.blocks; ahead += kAhead) {
      Quarter w[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (ahead + i < p.blocks) w[i] = load(ahead + i);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (ahead + i >= p.blocks) break;
        float value[T], factor[T];
        products(w[i], ahead + i, value, factor);
#pragma unroll
        for (int t = 0; t < T; ++t) sum[t] = fmaf(value[t], factor[t], sum[t]);
      }
    }
#pragma unroll
    for (int t = 0; t < T; ++t) {
      if (q == 0 && place < n) store(first_row + place, t, sum[t]);
    }
  } else {
    __shared__ float2 pairs[kGroups][kChunk][kTileRows][T];
    const int own = threadIdx.x;  // of kGroups x kTileRows x T sums
    const int own_group = own / (kTileRows * T), own_row = own / T % kTileRows, own_token = own % T;
    float sum = 0.0f;
    for (int64_t chunk = 0; chunk < p.blocks; chunk += kChunk) {
      const int size = static_cast<int>(min(static_cast<int64_t>(kChunk), p.blocks - chunk));
      for (int ahead = part; ahead < size; ahead += kAhead * S) {
        Quarter w[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          if (ahead + i * S < size) w[i] = load(chunk + ahead + i * S);
        }
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          if (ahead + i * S >= size) break;
          float value[T], factor[T];
          products(w[i], chunk + ahead + i * S, value, factor);
          if (q == 0) {
#pragma unroll
            for (int t = 0; t < T; ++t) pairs[group][ahead + i * S][place][t] = make_float2(value[t], factor[t]);
          }
        }
      }
      __syncthreads();
      if (own < kGroups * kTileRows * T) {
        for (int b = 0; b < size; ++b) {
          const float2 pair = pairs[own_group][b][own_row][own_token];
          sum = fmaf(pair.x, pair.y, sum);
        }
      }
      __syncthreads();
    }
    if (own < kGroups * kTileRows * T) {
      store((static_cast<int64_t>(blockIdx.x) * kGroups + own_group) * kTileRows + own_row, own_token, sum);
    }
  }
}

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
  const uint8_t* data[2];
  const uint16_t* norms[2];
  int rows[2], within[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t row = min(first_row + place + 8 * r, p.rows - 1), tile = row / kTileRows * kTileRows;
    rows[r] = static_cast<int>(min(static_cast<int64_t>(kTileRows), p.rows - tile));
    within[r] = static_cast<int>(row - tile);
    data[r] = p.data + (unit * p.rows + tile) * p.blocks * kTileBytesARow;
    norms[r] = p.norms + (unit * p.rows + tile) * p.blocks;
  }
  uint32_t table[4];
  load_table(magnitudes, table);
  float sum[kPanelTokens / 8][4];
#pragma unroll
  for (auto& tile : sum) tile[0] = tile[1] = tile[2] = tile[3] = 0.0f;
  for (int64_t b = 0; b < p.blocks; ++b) {
    const int64_t column = unit * p.blocks + b;
    __syncthreads();
    for (int i = threadIdx.x; i < kPanelTokens * 4; i += 32 * kPanelWarps) {
      const int64_t token = min(first_token + i / 4, p.tokens - 1);
      uint32_t x[8];
      load_activations(p.codes + token * p.dim + column * kBlock, i % 4, x);
#pragma unroll
      for (int k = 0; k < 8; ++k) inputs[i / 4][4 * k + i % 4] = x[k];
      if (i % 4 == 0) scales[i / 4] = p.scales[token * (p.dim / kBlock) + column] * p.int_step;
    }
    uint32_t weights[2][8];
    float norm[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Quarter w = load_quarter(data[r] + b * rows[r] * kTileBytesARow, norms[r] + b * rows[r], rows[r], within[r], q);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const uint32_t sign = signs_of(w, k);
        weights[r][k] = __vsub4(magnitudes_of(w, table, k) ^ sign, sign);
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
void launch_rows(const Product& p, const Matrix& m, int count, const RowsChoice& choice, const DeviceCodebook& book,
                 cudaStream_t stream) {
  const auto units = static_cast<unsigned>(m.units);
  if (choice.kernel == RowsKernel::any) {
    launch("polar_rows", polar_rows_kernel<T>, dim3(blocks_for(p.rows, kWarps), units), 32 * kWarps, 0, stream, p, m, count,
           book.values, book.bits);
    return;
  }
  const dim3 grid(blocks_for(p.rows, kTileRows * kWarps / choice.split), units);
  if (choice.split == 1) {
    launch("polar5_rows", polar5_rows_kernel<T, 1>, grid, 32 * kWarps, 0, stream, p, count, book.magnitudes);
  } else {
    launch("polar5_rows", polar5_rows_kernel<T, kRowsSplit>, grid, 32 * kWarps, 0, stream, p, count, book.magnitudes);
  }
}

}  // namespace

void launch_polar_int8(const LinearArgs& args, float* unit_sums, const DeviceCodebook& book, int multiprocessors,
                       cudaStream_t stream) {
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
  const RowsChoice choice = choose_rows_kernel(w, p.tokens, multiprocessors);
  if (choice.kernel == RowsKernel::panels) {
    const dim3 grid(blocks_for(p.rows, kPanelRows), blocks_for(p.tokens, kPanelTokens), static_cast<unsigned>(w.units));
    launch("polar5_panels", polar5_panels_kernel, grid, 32 * kPanelWarps, 0, stream, p, book.magnitudes);
    return;
  }
  for (int64_t token = 0; token < args.x.tokens; token += 8) {
    const int count = static_cast<int>(args.x.tokens - token < 8 ? args.x.tokens - token : 8);
    const auto rows = count == 1 ? launch_rows<1> : count == 2 ? launch_rows<2> : count <= 4 ? launch_rows<4> : launch_rows<8>;
    rows(p, w, count, choice, book, stream);
    p.y += 8 * p.rows;
    p.codes += 8 * p.dim;
    p.scales += 8 * (p.dim / kBlock);
  }
}

}  // namespace pq::cuda
