// Products of coded matrices with int8 activations. A block's dot product is exact in int32; blocks are added in order inside a
// unit and units by a tree, as kernels/backend.h demands, so that the bits are those of the host backends for any number of tokens
// and ranks.
//
// Five bits: a lane takes 16 bytes of a block's nibble plane, which are weights 16 q .. 16 q + 15 (low nibbles) and 64 + 16 q ..
// (high nibbles). Eight nibbles of a word are used as byte selectors where they stand, so a word of four centroids holds weights i,
// 64 + i, i + 1, 65 + i; activations are brought into the same order. Any order within a block will do: int32 sums are exact.
#include "kernels/cuda/launch.h"

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

// Bit i of the lower half to bit 2 i.
__device__ uint32_t spread_bits(uint32_t x) {
  x = (x | (x << 8)) & 0x00ff00ffu;
  x = (x | (x << 4)) & 0x0f0f0f0fu;
  x = (x | (x << 2)) & 0x33333333u;
  return (x | (x << 1)) & 0x55555555u;
}

// Bytes of 0 or 255 from the four low bits.
__device__ uint32_t byte_mask(uint32_t bits) { return (((bits & 15u) * 0x00204081u) & 0x01010101u) * 0xffu; }

// Four bytes of a table of sixteen, selected by the four low nibbles.
__device__ uint32_t pick(const uint32_t table[4], uint32_t nibbles) {
  const uint32_t low = __byte_perm(table[0], table[1], nibbles & 0x7777u);
  const uint32_t high = __byte_perm(table[2], table[3], nibbles & 0x7777u);
  return __byte_perm(low, high, 0x3210u + ((nibbles >> 1) & 0x4444u));
}

// The lane's 32 weights of one block: magnitudes of word 2 w (nibbles of the lower half of input word w) and 2 w + 1, and their
// signs as bytes of 0 or 255.
struct Quarter {
  uint32_t magnitude[8];
  uint32_t sign[8];
};

__device__ Quarter decode_quarter(const uint8_t* block, int q, const uint32_t table[4]) {
  const uint4 nibbles = *reinterpret_cast<const uint4*>(block + 16 * q);
  const uint16_t* signs = reinterpret_cast<const uint16_t*>(block + 64);
  const uint32_t sign = spread_bits(signs[q]) | (spread_bits(signs[4 + q]) << 1);
  const uint32_t words[4] = {nibbles.x, nibbles.y, nibbles.z, nibbles.w};
  Quarter out;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    out.magnitude[2 * w] = pick(table, words[w]);
    out.magnitude[2 * w + 1] = pick(table, words[w] >> 16);
    out.sign[2 * w] = byte_mask(sign >> (8 * w));
    out.sign[2 * w + 1] = byte_mask(sign >> (8 * w + 4));
  }
  return out;
}

// The activations that meet the words of a quarter.
__device__ void order_activations(const int8_t* codes, int q, uint32_t x[8]) {
  const uint4 low = *reinterpret_cast<const uint4*>(codes + 16 * q);
  const uint4 high = *reinterpret_cast<const uint4*>(codes + 64 + 16 * q);
  const uint32_t lows[4] = {low.x, low.y, low.z, low.w};
  const uint32_t highs[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    x[2 * w] = __byte_perm(lows[w], highs[w], 0x5140u);
    x[2 * w + 1] = __byte_perm(lows[w], highs[w], 0x7362u);
  }
}

__device__ void load_table(const int8_t* magnitudes, uint32_t table[4]) {
  const uint4 words = *reinterpret_cast<const uint4*>(magnitudes);
  table[0] = words.x;
  table[1] = words.y;
  table[2] = words.z;
  table[3] = words.w;
}

// One row a warp, T tokens; four lanes a block, eight blocks at a time. blockIdx.y is the unit.
template <int T>
__global__ void __launch_bounds__(32 * kWarps) polar5_rows_kernel(Product p, const int8_t* magnitudes) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= p.rows) return;
  const int lane = threadIdx.x % 32, q = lane % 4, place = lane / 4;
  const int64_t unit = blockIdx.y;
  const uint8_t* data = p.data + (unit * p.rows + row) * p.blocks * 80;
  const uint16_t* norms = p.norms + (unit * p.rows + row) * p.blocks;
  const int8_t* codes = p.codes + unit * p.blocks * kBlock;
  const float* scales = p.scales + unit * p.blocks;
  uint32_t table[4];
  load_table(magnitudes, table);
  float sum[T];
#pragma unroll
  for (int t = 0; t < T; ++t) sum[t] = 0.0f;
  for (int64_t first = 0; first < p.blocks; first += 8) {
    const int64_t b = first + place;
    const bool present = b < p.blocks;
    Quarter w{};
    float norm = 0.0f;
    if (present) {
      w = decode_quarter(data + b * 80, q, table);
      norm = half_value(norms[b]);
    }
    const int count = p.blocks - first < 8 ? static_cast<int>(p.blocks - first) : 8;
#pragma unroll
    for (int t = 0; t < T; ++t) {
      int dot = 0;
      float factor = 0.0f;
      if (present) {
        uint32_t x[8];
        order_activations(codes + t * p.dim + b * kBlock, q, x);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          // The complement of a magnitude m is -m - 1; the second product takes the -1 back.
          dot = __dp4a(static_cast<int>(w.magnitude[i] ^ w.sign[i]), static_cast<int>(x[i]), dot);
          dot -= __dp4a(static_cast<int>(w.sign[i]), static_cast<int>(x[i]), 0);
        }
        factor = norm * (scales[t * (p.dim / kBlock) + b] * p.int_step);
      }
      dot += __shfl_xor_sync(kAll, dot, 1);
      dot += __shfl_xor_sync(kAll, dot, 2);
      const float value = static_cast<float>(dot);
      for (int i = 0; i < count; ++i) sum[t] = fmaf(__shfl_sync(kAll, value, 4 * i), __shfl_sync(kAll, factor, 4 * i), sum[t]);
    }
  }
  if (lane == 0) {
#pragma unroll
    for (int t = 0; t < T; ++t) p.y[(unit * p.tokens + t) * p.rows + row] = sum[t];
  }
}

// Any width, one row a warp, T tokens, four weights a lane.
template <int T>
__global__ void __launch_bounds__(32 * kWarps) polar_rows_kernel(Product p, const int16_t* values, int bits) {
  __shared__ int16_t table[256];
  for (int i = threadIdx.x; i < 1 << bits; i += blockDim.x) table[i] = values[i];
  __syncthreads();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= p.rows) return;
  const int lane = threadIdx.x % 32;
  const int64_t unit = blockIdx.y;
  const int64_t index = (unit * p.rows + row) * p.blocks;
  float sum[T];
#pragma unroll
  for (int t = 0; t < T; ++t) sum[t] = 0.0f;
  for (int64_t b = 0; b < p.blocks; ++b) {
    const uint8_t* block = p.data + (index + b) * 16 * bits;
    int w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = table[code_at(block, bits, 4 * lane + i)];
    const float norm = half_value(p.norms[index + b]);
    const int64_t column = unit * p.blocks + b;
#pragma unroll
    for (int t = 0; t < T; ++t) {
      const char4 x = reinterpret_cast<const char4*>(p.codes + t * p.dim + column * kBlock)[lane];
      const int dot = __reduce_add_sync(kAll, w[0] * x.x + w[1] * x.y + w[2] * x.z + w[3] * x.w);
      sum[t] = fmaf(static_cast<float>(dot), norm * (p.scales[t * (p.dim / kBlock) + column] * p.int_step), sum[t]);
    }
  }
  if (lane == 0) {
#pragma unroll
    for (int t = 0; t < T; ++t) p.y[(unit * p.tokens + t) * p.rows + row] = sum[t];
  }
}

constexpr int kTileTokens = 64;
constexpr int kTileWarps = 4;
constexpr int kTileRows = 16 * kTileWarps;

// 64 rows by 64 tokens on the integer tensor cores, a block of 128 columns at a time. The order of weights within a block is that
// of decode_quarter for both operands. blockIdx.z is the unit.
__global__ void __launch_bounds__(32 * kTileWarps) polar5_tile_kernel(Product p, const int8_t* magnitudes) {
  __shared__ uint32_t inputs[kTileTokens][32 + 4];  // a row of 128 codes in product order; padded against bank conflicts
  __shared__ float scales[kTileTokens];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, q = lane % 4, place = lane / 4;
  const int64_t unit = blockIdx.z;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTileRows + 16 * warp;
  const int64_t first_token = static_cast<int64_t>(blockIdx.y) * kTileTokens;
  // Rows beyond the matrix repeat the last one and are dropped.
  const int64_t row[2] = {min(first_row + place, p.rows - 1), min(first_row + place + 8, p.rows - 1)};
  uint32_t table[4];
  load_table(magnitudes, table);
  float sum[kTileTokens / 8][4];
#pragma unroll
  for (auto& tile : sum) tile[0] = tile[1] = tile[2] = tile[3] = 0.0f;
  for (int64_t b = 0; b < p.blocks; ++b) {
    const int64_t column = unit * p.blocks + b;
    __syncthreads();
    for (int i = threadIdx.x; i < kTileTokens * 4; i += 32 * kTileWarps) {
      const int64_t token = min(first_token + i / 4, p.tokens - 1);
      uint32_t x[8];
      order_activations(p.codes + token * p.dim + column * kBlock, i % 4, x);
#pragma unroll
      for (int k = 0; k < 8; ++k) inputs[i / 4][4 * k + i % 4] = x[k];
      if (i % 4 == 0) scales[i / 4] = p.scales[token * (p.dim / kBlock) + column] * p.int_step;
    }
    uint32_t weights[2][8];
    float norm[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t index = (unit * p.rows + row[r]) * p.blocks + b;
      const Quarter w = decode_quarter(p.data + index * 80, q, table);
#pragma unroll
      for (int k = 0; k < 8; ++k) weights[r][k] = __vsub4(w.magnitude[k] ^ w.sign[k], w.sign[k]);
      norm[r] = half_value(p.norms[index]);
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kTileTokens / 8; ++n) {
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
  for (int n = 0; n < kTileTokens / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t r = first_row + place + (i < 2 ? 0 : 8);
      const int64_t t = first_token + 8 * n + 2 * q + i % 2;
      if (r < p.rows && t < p.tokens) p.y[(unit * p.tokens + t) * p.rows + r] = sum[n][i];
    }
  }
}

template <int T>
void launch_rows(const Product& p, int64_t units, const DeviceCodebook& book, cudaStream_t stream) {
  const dim3 grid(blocks_for(p.rows, kWarps), static_cast<unsigned>(units));
  if (book.bits == 5) {
    launch("polar5_rows", polar5_rows_kernel<T>, grid, 32 * kWarps, 0, stream, p, book.magnitudes);
  } else {
    launch("polar_rows", polar_rows_kernel<T>, grid, 32 * kWarps, 0, stream, p, book.values, book.bits);
  }
}

using LaunchRows = void (*)(const Product&, int64_t, const DeviceCodebook&, cudaStream_t);
constexpr LaunchRows kLaunchRows[] = {nullptr,        launch_rows<1>, launch_rows<2>, launch_rows<3>, launch_rows<4>,
                                      launch_rows<5>, launch_rows<6>, launch_rows<7>, launch_rows<8>};

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
  if (book.bits == 5 && p.tokens > 8) {
    const dim3 grid(blocks_for(p.rows, kTileRows), blocks_for(p.tokens, kTileTokens), static_cast<unsigned>(w.units));
    launch("polar5_tile", polar5_tile_kernel, grid, 32 * kTileWarps, 0, stream, p, book.magnitudes);
    return;
  }
  for (int64_t token = 0; token < args.x.tokens; token += 8) {
    const int64_t count = args.x.tokens - token < 8 ? args.x.tokens - token : 8;
    kLaunchRows[count](p, w.units, book, stream);
    p.y += 8 * p.rows;
    p.codes += 8 * p.dim;
    p.scales += 8 * (p.dim / kBlock);
  }
}

}  // namespace pq::cuda
