// The kernels of widen.h. A half warp takes a block of 128 weights, eight a lane, so that a block is read by whole words and its
// 256 bytes are written by whole sectors.
#include <array>

#include "kernels/cuda/tiles.h"
#include "kernels/cuda/widen.h"

namespace pq::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kHalfWarps = kThreads / 16;
constexpr int kEach = 4;  // blocks a half warp has in flight
constexpr int kInt4 = 0;

// What a lane has loaded of a block: its words of the planes (kernels/polar.h), or of a tile (tiles.h), where a second plane of
// four bits is `high` and there is no plane of signs.
struct Words {
  uint32_t four, high, two, one, sign;
  uint16_t scale, zero;
};

__device__ uint32_t word_at(const uint8_t* place) { return __ldg(reinterpret_cast<const uint32_t*>(place)); }
// Bits 4 j .. 4 j + 3 and 64 + 4 j .. of a plane of one bit a weight, the latter four bits higher.
__device__ uint32_t bits_at(const uint8_t* plane, int j) {
  const int shift = 4 * (j % 2);
  return ((__ldg(plane + j / 2) >> shift) & 15u) | ((__ldg(plane + 8 + j / 2) >> shift) & 15u) << 4;
}

// Of lane j: weights 4 j .. 4 j + 3 and 64 + 4 j .. 64 + 4 j + 3 of a block in store order.
template <int kBits>
struct StoreOrder {
  static constexpr int kMagnitude = kBits - 1;
  static constexpr bool kFour = kBits == kInt4 || kMagnitude >= 4;
  static constexpr int kRest = kBits == kInt4 ? 0 : kMagnitude % 4;
  static constexpr bool kTwo = kRest >= 2, kOne = kRest % 2 == 1;
  static constexpr int kBytes = kBits == kInt4 ? 64 : 16 * kBits;

  static __device__ Words load(const Matrix& m, int64_t unit, int64_t row, int64_t b, int64_t blocks, int j) {
    const int64_t index = (unit * m.rows + row) * blocks + b;
    const uint8_t* plane = static_cast<const uint8_t*>(m.data) + index * kBytes;
    Words words{};
    if (kFour) {
      words.four = word_at(plane + 4 * j);
      plane += 64;
    }
    if (kTwo) {
      words.two = word_at(plane + 4 * (j % 8));
      plane += 32;
    }
    if (kOne) {
      words.one = bits_at(plane, j);
      plane += 16;
    }
    if (kBits != kInt4) words.sign = bits_at(plane, j);
    words.scale = __ldg(m.scales + index);
    if (kBits == kInt4 && m.zeros != nullptr) words.zero = __ldg(m.zeros + index);
    return words;
  }
  // The code of the lane's weight i, or the four bits of int4.
  static __device__ int code(const Words& words, int i, int j) {
    int magnitude = 0, shift = 0;
    if (kFour) {
      magnitude = (words.four >> (8 * (i % 4) + 4 * (i / 4))) & 15;
      shift = 4;
    }
    if (kBits == kInt4) return magnitude;
    if (kTwo) {
      magnitude |= ((words.two >> (8 * (i % 4) + 4 * (i / 4) + 2 * (j / 8))) & 3) << shift;
      shift += 2;
    }
    if (kOne) magnitude |= ((words.one >> i) & 1) << shift;
    constexpr int kHalf = kBits == kInt4 ? 0 : 1 << kMagnitude;
    return (kHalf + magnitude) ^ ((words.sign >> i) & 1 ? 2 * kHalf - 1 : 0);
  }
  static __device__ void store(uint16_t* block, int j, const uint32_t pairs[4]) {
    *reinterpret_cast<uint2*>(block + 4 * j) = make_uint2(pairs[0], pairs[1]);
    *reinterpret_cast<uint2*>(block + 64 + 4 * j) = make_uint2(pairs[2], pairs[3]);
  }
  // Blocks along the inputs follow each other.
  static __device__ void place(int64_t index, int64_t blocks, int64_t* row, int64_t* b) {
    *row = index / blocks;
    *b = index % blocks;
  }
};

// Of lane j: weights 8 j .. 8 j + 7 of a row's block in a tile.
template <int kBits>
struct TileOrder {
  static constexpr bool kFour = kBits >= 4, kHigh = kBits == 8, kTwo = kBits % 4 >= 2, kOne = kBits % 2 == 1;
  static constexpr int kLowTwo = kBits / 4 * 4, kLowOne = kBits - 1;

  static __device__ Words load(const Matrix& m, int64_t unit, int64_t row, int64_t b, int64_t blocks, int j) {
    const CodedBlock block = coded_block(m, kBits, unit, row, b, blocks);
    const auto word = [&](int low) {
      const int width = plane_width(kBits, low);
      return word_at(plane_quarter(block.data, block.rows, block.row, kBits, low, j / 4) + j % 4 * width / 4 * 4);
    };
    Words words{};
    if (kFour) words.four = word(0);
    if (kHigh) words.high = word(4);
    if (kTwo) words.two = word(kLowTwo);
    if (kOne) words.one = word(kLowOne);
    words.scale = __ldg(m.scales + block.norm);
    return words;
  }
  static __device__ int code(const Words& words, int i, int j) {
    const int own = 8 * (j % 4) + i;
    int stored = 0;
    if (kFour) stored = (words.four >> (4 * i)) & 15;
    if (kHigh) stored |= ((words.high >> (4 * i)) & 15) << 4;
    if (kTwo) stored |= ((words.two >> plane_bit(kBits, 2, own).shift) & 3) << kLowTwo;
    if (kOne) stored |= ((words.one >> plane_bit(kBits, 1, own).shift) & 1) << kLowOne;
    return code_of_tile(kBits, stored);
  }
  static __device__ void store(uint16_t* block, int j, const uint32_t pairs[4]) {
    *reinterpret_cast<uint4*>(block + 8 * j) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  }
  // The rows of a tile follow each other.
  static __device__ void place(int64_t index, int64_t blocks, int64_t* row, int64_t* b) {
    const int64_t tile = index / kTileRows;
    *row = tile / blocks * kTileRows + index % kTileRows;
    *b = tile % blocks;
  }
};

template <int kBits, typename Order>
__global__ void __launch_bounds__(kThreads) widen_weights_kernel(uint16_t* out, Matrix m, int64_t unit, int64_t first_row,
                                                                 int64_t rows, int64_t blocks, const float* centroids) {
  __shared__ float table[kBits == kInt4 ? 1 : 1 << kBits];
  if (kBits != kInt4) {
    for (int i = threadIdx.x; i < 1 << kBits; i += kThreads) table[i] = centroids[i];
    __syncthreads();
  }
  const int j = threadIdx.x % 16;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kHalfWarps * kEach + threadIdx.x / 16;
  int64_t row[kEach], b[kEach];
  Words words[kEach];
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    Order::place(first + e * kHalfWarps, blocks, &row[e], &b[e]);
    if (row[e] < rows) words[e] = Order::load(m, unit, first_row + row[e], b[e], blocks, j);
  }
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    if (row[e] >= rows) break;
    const float scale = kBits == kInt4 ? bf16_value(words[e].scale) : half_value(words[e].scale) * 0.08838834764831845f;
    const float zero = kBits == kInt4 ? bf16_value(words[e].zero) : 0.0f;
    float w[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int code = Order::code(words[e], i, j);
      w[i] = kBits == kInt4 ? static_cast<float>(code - 8) * scale + zero : table[code] * scale;
    }
    const uint32_t pairs[4] = {pack_bf16(w[0], w[1]), pack_bf16(w[2], w[3]), pack_bf16(w[4], w[5]), pack_bf16(w[6], w[7])};
    Order::store(out + (row[e] * blocks + b[e]) * kBlock, j, pairs);
  }
}

template <int kBits, typename Order = StoreOrder<kBits>>
void launch_order(uint16_t* out, const Matrix& w, int64_t unit, int64_t first_row, int64_t rows, const float* centroids,
                  cudaStream_t stream) {
  const int64_t blocks = w.unit_cols() / kBlock;
  const int64_t count = (rows + kTileRows - 1) / kTileRows * kTileRows * blocks;
  launch("widen_weights", widen_weights_kernel<kBits, Order>, blocks_for(count, kHalfWarps * kEach), kThreads, 0, stream, out, w,
         unit, first_row, rows, blocks, centroids);
}

template <int kBits>
void launch_widen(uint16_t* out, const Matrix& w, int64_t unit, int64_t first_row, int64_t rows, const float* centroids,
                  cudaStream_t stream) {
  const auto order = w.layout == WeightLayout::tiles ? launch_order<kBits, TileOrder<kBits>> : launch_order<kBits>;
  order(out, w, unit, first_row, rows, centroids, stream);
}
constexpr std::array kLaunchWiden = {launch_widen<2>, launch_widen<3>, launch_widen<4>, launch_widen<5>,
                                     launch_widen<6>, launch_widen<7>, launch_widen<8>};

// One token a block of threads. `fours`: columns come in aligned fours of one unit.
__global__ void __launch_bounds__(kThreads) widen_inputs_kernel(uint16_t* out, const float* x, const int8_t* codes,
                                                                const float* scales, int dim, int unit_cols, bool fours) {
  const int64_t token = blockIdx.x, tokens = gridDim.x;
  const int step = fours ? 4 : 1;
  for (int c = threadIdx.x * step; c < dim; c += kThreads * step) {
    const int unit = c / unit_cols;
    uint16_t* to = out + (unit * tokens + token) * unit_cols + (c - unit * unit_cols);
    if (!fours) {
      *to = bf16_bits(codes == nullptr ? x[token * dim + c] : codes[token * dim + c] * scales[token * (dim / kBlock) + c / kBlock]);
      continue;
    }
    float4 v;
    if (codes == nullptr) {
      v = *reinterpret_cast<const float4*>(x + token * dim + c);
    } else {
      const char4 code = *reinterpret_cast<const char4*>(codes + token * dim + c);
      const float scale = scales[token * (dim / kBlock) + c / kBlock];
      v = make_float4(code.x * scale, code.y * scale, code.z * scale, code.w * scale);
    }
    *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
  }
}

}  // namespace

void launch_widen_weights(uint16_t* out, const Matrix& w, int64_t unit, int64_t first_row, int64_t rows, const DeviceCodebook& book,
                          cudaStream_t stream) {
  const auto launch_any = w.format == WeightFormat::int4 ? launch_order<kInt4> : kLaunchWiden[static_cast<size_t>(book.bits - 2)];
  launch_any(out, w, unit, first_row, rows, book.centroids, stream);
}

void launch_widen_inputs(uint16_t* out, const Activation& x, WeightFormat format, int64_t units, cudaStream_t stream) {
  const bool polar = format == WeightFormat::polar, coded = polar && x.mode == ActivationMode::int8;
  const float* values = coded ? nullptr : polar ? x.rotated : x.raw;
  const int64_t unit_cols = x.dim / units;
  const bool fours = unit_cols % 4 == 0 && reinterpret_cast<uintptr_t>(values) % 16 == 0;
  launch("widen_inputs", widen_inputs_kernel, static_cast<unsigned>(x.tokens), kThreads, 0, stream, out, values,
         coded ? x.codes : nullptr, x.scales, static_cast<int>(x.dim), static_cast<int>(unit_cols), fours);
}

}  // namespace pq::cuda
