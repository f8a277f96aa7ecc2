// Products of up to eight tokens with matrices in tiles (kernels/cuda/tiles.h), and with the plain matrices that read the same
// input. A block's dot product is exact in int32; blocks are added in order inside a unit and units by a tree, as
// kernels/backend.h demands, so that the bits are those of the host backends for any number of tokens and ranks.
//
// Four lanes a row, eight rows a warp, so that a warp loads a tile in two instructions of whole lines and a lane finds 32
// consecutive weights. That is the left fragment of an m16n8k32 product of integer tensor cores, two of its rows for each row of
// weights, whose right one are the activations of eight tokens: lane l brings those of token l / 4, and gets the sums of its row
// with two tokens.
#include <algorithm>
#include <array>

#include "kernels/cuda/plain_rows.h"
#include "kernels/cuda/quarters.h"
#include "kernels/cuda/row_products.h"
#include "kernels/cuda/rows_choice.h"

namespace pq::cuda {
namespace {

constexpr size_t kUnasked = 44 << 10;  // of dynamic shared memory that every device gives beside what is static here
constexpr int kChunk = 32;             // blocks whose products wait in shared memory for their order

struct Part {
  Matrix w = {};
  float* y = nullptr;             // [tokens][rows]
  const int8_t* bytes = nullptr;  // DeviceCodebook; null: plain
  const int16_t* values = nullptr;
  float int_step = 0;
  unsigned first = 0;  // of the blocks of the grid that are this part's
};

struct Group {
  Part parts[kLinearGroup] = {};
  int size = 0;
  int tokens = 0;
  int dim = 0;
  const float* raw = nullptr;     // [tokens, dim]
  const int8_t* codes = nullptr;  // [tokens, dim]
  const float* scales = nullptr;  // [tokens, dim / 128]
};

// What the products of a chunk of S > 1 wait in: dot product and factor by block, row of the eight and token.
template <int S>
struct Pairs {
  float2* data;
  int tokens;
  __device__ float2& at(int slot, int block, int row, int token) const {
    return data[((slot * kChunk + block) * static_cast<int>(kTileRows) + row) * tokens + token];
  }
  static constexpr size_t bytes(int tokens) {
    return sizeof(float2) * (kRowWarps / S) * kChunk * kTileRows * static_cast<size_t>(tokens);
  }
};

// Tiles a warp has in flight, 1.6 KB at least (kEnoughWarps).
constexpr int ahead_tiles(int bits) { return bits == 2 ? 8 : 4; }

// Of the block's dynamic shared memory, in front of the pairs.
template <int kBits>
constexpr size_t table_bytes() {
  if constexpr (byte_centroids(kBits)) return 0;
  return sizeof(uint32_t) * WideTable<kBits>::kWords;
}

// Eight rows of a unit by S warps, warp s of them taking blocks s, s + S, ...; their products are then added in order by one thread
// a row and token. A block of threads has all units of its rows.
template <int kBits, int S>
__device__ void coded_rows(const Part& p, const Group& g, int64_t block) {
  constexpr int kSlots = kRowWarps / S, kAhead = ahead_tiles(kBits);
  __shared__ float unit_sums[kSlots][kTileRows][kRowTokens];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, q = lane % 4, place = lane / 4;
  const int slot = warp / S, part = warp % S;
  const int units = static_cast<int>(p.w.units), tiles = kSlots / units, count = g.tokens;
  const int unit = slot % units, blocks = g.dim / units / static_cast<int>(kBlock);
  const int64_t first = (block * tiles + slot / units) * kTileRows;
  if (S == 1 && units == 1 && byte_centroids(kBits) && first >= p.w.rows) return;
  // Warps and lanes without rows repeat the last one, and lanes without tokens the last of those: tensor cores take whole warps.
  const int64_t first_row = min(first, (p.w.rows - 1) / kTileRows * kTileRows);
  const int n = static_cast<int>(min(kTileRows, p.w.rows - first_row));
  const int64_t first_block = (unit * p.w.rows + first_row) * blocks + part * n;
  Quarters<kBits> quarters(static_cast<const uint8_t*>(p.w.data) + first_block * 16 * kBits, p.w.scales + first_block, n,
                           min(place, n - 1), q, S);
  const int64_t row_blocks = g.dim / static_cast<int>(kBlock);
  const int8_t* codes = g.codes + (min(place, count - 1) * row_blocks + unit * blocks) * kBlock + 32 * q;
  const float* scales = g.scales + min(2 * q, count - 1) * row_blocks + unit * blocks;
  const int64_t next_token = 2 * q + 1 < count ? row_blocks : 0;
  const auto table = [&] {
    if constexpr (byte_centroids(kBits))
      return ByteTable<kBits>(p.bytes);
    else
      return WideTable<kBits>(dynamic_shared<uint32_t>(), p.values);
  }();

  // The products of this lane's row with tokens 2 q and 2 q + 1 so many blocks further on, before the norms and scales.
  const auto products = [&](const Quarter<kBits>& w, int blocks_on, float value[2], float factor[2]) {
    uint32_t x[8];
    load_activations(codes + blocks_on * static_cast<int>(kBlock), x);
    int sums[4] = {}, inputs[4] = {};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const EightWeights e = table.eight(w, k);
      const uint32_t weights[4] = {upper_row<kBits>(e, 0), e.lower[0], upper_row<kBits>(e, 1), e.lower[1]};
      multiply_tile(sums, weights, x[2 * k], x[2 * k + 1]);
      constexpr uint32_t kOnes[4] = {0x01010101u, 0, 0x01010101u, 0};
      if (!byte_centroids(kBits)) multiply_tile(inputs, kOnes, x[2 * k], x[2 * k + 1]);
    }
    const float norm = half_value(w.norm);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      value[i] = static_cast<float>(join_rows<kBits>(sums[i], sums[2 + i], inputs[i]));
      factor[i] = norm * (scales[blocks_on + i * next_token] * p.int_step);
    }
  };
  // each(i, value, factor) of blocks first + i S of this warp, as many of the next kAhead as there are; those after them are on
  // their way meanwhile.
  codes += part * kBlock;
  scales += part;
  Quarter<kBits> ahead[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (part + i * S < blocks) ahead[i] = quarters.next();
  }
  const auto next_blocks = [&](int first, const auto& each) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i * S >= blocks) break;
      float value[2], factor[2];
      products(ahead[i], i * S, value, factor);
      if (first + (i + kAhead) * S < blocks) ahead[i] = quarters.next();
      each(i, value, factor);
    }
    codes += kAhead * S * kBlock;
    scales += kAhead * S;
  };
  const auto store = [&](int64_t r, int t, float sum) {
    if (r < p.w.rows && t < count) p.y[t * p.w.rows + r] = sum;
  };
  // Row r of the eight of a slot is done.
  const auto finish = [&](int s, int r, int t, float sum) {
    if (units == 1)
      store((block * tiles + s) * kTileRows + r, t, sum);
    else
      unit_sums[s][r][t] = sum;
  };

  if constexpr (S == 1) {
    float sum[2] = {};
    for (int first = 0; first < blocks; first += kAhead) {
      next_blocks(first, [&](int, const float value[2], const float factor[2]) {
#pragma unroll
        for (int t = 0; t < 2; ++t) sum[t] = fmaf(value[t], factor[t], sum[t]);
      });
    }
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      if (place < n) finish(slot, place, 2 * q + t, sum[t]);
    }
  } else {
    static_assert(kChunk % (kAhead * S) == 0);
    const Pairs<S> pairs{reinterpret_cast<float2*>(dynamic_shared<char>() + table_bytes<kBits>()), count};
    constexpr int kSums = static_cast<int>(kTileRows) * kRowTokens;  // of a slot; those beyond the tokens are nobody's
    const int own_slot = threadIdx.x / kSums, own_row = threadIdx.x / kRowTokens % kTileRows, own_token = threadIdx.x % kRowTokens;
    const bool own = own_slot < kSlots && own_token < count;
    float sum = 0.0f;
    for (int chunk = 0; chunk < blocks; chunk += kChunk) {
      const int size = min(kChunk, blocks - chunk);
      for (int first = part; first < kChunk; first += kAhead * S) {
        next_blocks(chunk + first, [&](int i, const float value[2], const float factor[2]) {
#pragma unroll
          for (int t = 0; t < 2; ++t) {
            if (2 * q + t < count) pairs.at(slot, first + i * S, place, 2 * q + t) = make_float2(value[t], factor[t]);
          }
        });
      }
      __syncthreads();
      if (own) {
        for (int b = 0; b < size; ++b) {
          const float2 pair = pairs.at(own_slot, b, own_row, own_token);
          sum = fmaf(pair.x, pair.y, sum);
        }
      }
      __syncthreads();
    }
    if (own) finish(own_slot, own_row, own_token, sum);
  }
  if (units == 1) return;
  __syncthreads();
  const int own_tile = threadIdx.x / (static_cast<int>(kTileRows) * kRowTokens), own_row = threadIdx.x / kRowTokens % kTileRows,
            own_token = threadIdx.x % kRowTokens;
  if (own_tile >= tiles) return;
  float sum[kSlots];
#pragma unroll
  for (int u = 0; u < kSlots; ++u) sum[u] = u < units ? unit_sums[own_tile * units + u][own_row][own_token] : 0.0f;
#pragma unroll
  for (int width = 1; width < kSlots; width *= 2) {
    if (width >= units) break;
#pragma unroll
    for (int u = 0; u + width < kSlots; u += 2 * width) sum[u] += sum[u + width];
  }
  store((block * tiles + own_tile) * kTileRows + own_row, own_token, sum[0]);
}

template <int kBits, int S>
__global__ void __launch_bounds__(32 * kRowWarps, S == 1 && byte_centroids(kBits) ? 3 : 2) row_products_kernel(Group g) {
  Part part = g.parts[0];
#pragma unroll
  for (int i = 1; i < kLinearGroup; ++i) {
    if (i < g.size && blockIdx.x >= g.parts[i].first) part = g.parts[i];
  }
  const int64_t block = blockIdx.x - part.first;
  if (part.bytes != nullptr) return coded_rows<kBits, S>(part, g, block);
  static_assert(kRowTokens <= 2 * kPlainTurn);
  PlainArea& area = *dynamic_shared<PlainArea>();
  if (g.tokens <= kPlainTurn)
    plain_rows<1>(area, part.y, g.raw, part.w, 0, block * kPlainRows, 0, g.tokens);
  else
    plain_rows<2>(area, part.y, g.raw, part.w, 0, block * kPlainRows, 0, g.tokens);
}

template <int kBits, int S>
void launch_group(const Group& g, unsigned grid, bool plain, cudaStream_t stream) {
  const size_t coded = table_bytes<kBits>() + (S > 1 ? Pairs<S>::bytes(g.tokens) : 0);
  constexpr size_t kMost = std::max(table_bytes<kBits>() + (S > 1 ? Pairs<S>::bytes(kRowTokens) : 0), sizeof(PlainArea));
  if (kMost > kUnasked)
    check(cudaFuncSetAttribute(row_products_kernel<kBits, S>, cudaFuncAttributeMaxDynamicSharedMemorySize, kMost),
          "shared memory of products");
  launch("row_products", row_products_kernel<kBits, S>, grid, 32 * kRowWarps, plain ? std::max(coded, sizeof(PlainArea)) : coded,
         stream, g);
}

template <int kBits>
void launch_bits(int split, const Group& g, unsigned grid, bool plain, cudaStream_t stream) {
  split == 1 ? launch_group<kBits, 1>(g, grid, plain, stream) : launch_group<kBits, kRowsSplit>(g, grid, plain, stream);
}
constexpr std::array kLaunchBits = {launch_bits<2>, launch_bits<3>, launch_bits<4>, launch_bits<5>,
                                    launch_bits<6>, launch_bits<7>, launch_bits<8>};

}  // namespace

void launch_row_products(std::span<const RowProduct> products, int multiprocessors, cudaStream_t stream) {
  static_assert(32 * kRowWarps == kPlainThreads);
  const Activation& x = products[0].args.x;
  Group g;
  g.dim = static_cast<int>(x.dim);
  g.raw = x.raw;
  int64_t unit_rows = 0, units = 1;
  int bits = 0;
  for (const RowProduct& product : products) {
    const Matrix& w = product.args.w;
    if (w.format != WeightFormat::polar) continue;
    unit_rows += w.units * w.rows;
    units = std::max(units, w.units);
    bits = product.book->bits;
  }
  const int split = choose_rows_split(unit_rows, units, multiprocessors);
  unsigned grid = 0;
  bool plain = false;
  // Plain matrices first: theirs are the blocks that take longest.
  for (const bool coded : {false, true}) {
    for (const RowProduct& product : products) {
      const Matrix& w = product.args.w;
      if ((w.format == WeightFormat::polar) != coded) continue;
      Part& part = g.parts[g.size++];
      part.w = w;
      part.y = product.args.y;
      part.first = grid;
      if (coded) {
        part.bytes = product.book->bytes;
        part.values = product.book->values;
        part.int_step = product.book->int_step;
        grid += blocks_for(w.rows, kTileRows * kRowWarps / split / w.units);
      } else {
        plain = true;
        grid += blocks_for(w.rows, kPlainRows);
      }
    }
  }
  for (int64_t token = 0; token < x.tokens; token += kRowTokens) {
    g.tokens = static_cast<int>(std::min<int64_t>(kRowTokens, x.tokens - token));
    g.codes = x.codes + token * x.dim;
    g.scales = x.scales + token * (x.dim / kBlock);
    kLaunchBits[static_cast<size_t>(bits - 2)](split, g, grid, plain, stream);
    for (Part& part : g.parts) part.y += g.tokens * part.w.rows;
  }
}

}  // namespace pq::cuda
