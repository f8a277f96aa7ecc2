// Products of up to eight tokens with matrices in tiles (kernels/cuda/tiles.h), and with the plain matrices that read the same
// input. A block's dot product is exact in int32; blocks are added in order inside a unit and units by a tree, as
// kernels/backend.h demands, so that the bits are those of the host backends for any number of tokens and ranks.
//
// Four lanes a row, eight rows a warp, so that a warp loads a tile in two instructions of whole lines, its rows share the
// activations, and a lane finds 32 consecutive weights: eight words of four nibbles, which are byte selectors where they stand.
#include <algorithm>

#include "kernels/cuda/plain_rows.h"
#include "kernels/cuda/quarters.h"
#include "kernels/cuda/row_products.h"
#include "kernels/cuda/rows_choice.h"

namespace pq::cuda {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kAhead = 4;   // tiles a warp has in flight
constexpr int kChunk = 32;  // blocks whose products wait in shared memory for their order

struct Part {
  Matrix w = {};
  float* y = nullptr;                  // [tokens][rows]
  const int8_t* magnitudes = nullptr;  // coded; null: plain
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

// The products of a chunk of S > 1.
template <int T, int S>
using Pairs = float2[kRowWarps / S][kChunk][kTileRows][T];

// Eight rows of a unit by S warps, warp s of them taking blocks s, s + S, ...; their products are then added in order by one thread
// a row and token. A block of threads has all units of its rows. T: `tokens`, or the next power of two.
template <int T, int S>
__device__ void coded_rows(const Part& p, const Group& g, int64_t block) {
  constexpr int kSlots = kRowWarps / S;
  __shared__ float unit_sums[kSlots][kTileRows][T];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, q = lane % 4, place = lane / 4;
  const int slot = warp / S, part = warp % S;
  const int units = static_cast<int>(p.w.units), tiles = kSlots / units, count = g.tokens;
  const int unit = slot % units, blocks = g.dim / units / static_cast<int>(kBlock);
  const int64_t first = (block * tiles + slot / units) * kTileRows;
  if (S == 1 && units == 1 && first >= p.w.rows) return;
  // Warps and lanes without rows repeat the last one: the others need them at barriers and in shuffles.
  const int64_t first_row = min(first, (p.w.rows - 1) / kTileRows * kTileRows);
  const int n = static_cast<int>(min(kTileRows, p.w.rows - first_row));
  const int row = min(place, n - 1);
  const uint8_t* data = static_cast<const uint8_t*>(p.w.data) + (unit * p.w.rows + first_row) * blocks * kTileBytesARow;
  const uint16_t* norms = p.w.scales + (unit * p.w.rows + first_row) * blocks;
  const int8_t* codes = g.codes + unit * blocks * kBlock;
  const float* scales = g.scales + unit * blocks;
  uint32_t table[4];
  load_table(p.magnitudes, table);

  // The product of this lane's row with token t at a block, before the norm and the scale: all four lanes of the row get it.
  const auto products = [&](const Quarter& w, int b, float value[T], float factor[T]) {
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
      const int token = min(t, count - 1);
      uint32_t x[8];
      load_activations(codes + token * g.dim + b * static_cast<int>(kBlock), q, x);
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
      factor[t] = norm * (scales[token * (g.dim / static_cast<int>(kBlock)) + b] * p.int_step);
    }
  };
  const auto load = [&](int b) { return load_quarter(data + b * n * static_cast<int>(kTileBytesARow), norms + b * n, n, row, q); };
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
    float sum[T] = {};
    for (int ahead = 0; ahead < blocks; ahead += kAhead) {
      Quarter w[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (ahead + i < blocks) w[i] = load(ahead + i);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (ahead + i >= blocks) break;
        float value[T], factor[T];
        products(w[i], ahead + i, value, factor);
#pragma unroll
        for (int t = 0; t < T; ++t) sum[t] = fmaf(value[t], factor[t], sum[t]);
      }
    }
#pragma unroll
    for (int t = 0; t < T; ++t) {
      if (q == 0 && place < n) finish(slot, place, t, sum[t]);
    }
  } else {
    auto& pairs = *dynamic_shared<Pairs<T, S>>();
    const int own = threadIdx.x;  // of kSlots x kTileRows x T sums
    const int own_slot = own / (kTileRows * T), own_row = own / T % kTileRows, own_token = own % T;
    float sum = 0.0f;
    for (int chunk = 0; chunk < blocks; chunk += kChunk) {
      const int size = min(kChunk, blocks - chunk);
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
            for (int t = 0; t < T; ++t) pairs[slot][ahead + i * S][place][t] = make_float2(value[t], factor[t]);
          }
        }
      }
      __syncthreads();
      if (own < kSlots * kTileRows * T) {
        for (int b = 0; b < size; ++b) {
          const float2 pair = pairs[own_slot][b][own_row][own_token];
          sum = fmaf(pair.x, pair.y, sum);
        }
      }
      __syncthreads();
    }
    if (own < kSlots * kTileRows * T) finish(own_slot, own_row, own_token, sum);
  }
  if (units == 1) return;
  __syncthreads();
  const int own_tile = threadIdx.x / (kTileRows * T), own_row = threadIdx.x / T % kTileRows, own_token = threadIdx.x % T;
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

template <int T, int S>
__global__ void __launch_bounds__(32 * kRowWarps, T == 1   ? 3
                                                  : T <= 4 ? 2
                                                           : 1) row_products_kernel(Group g) {
  Part part = g.parts[0];
#pragma unroll
  for (int i = 1; i < kLinearGroup; ++i) {
    if (i < g.size && blockIdx.x >= g.parts[i].first) part = g.parts[i];
  }
  const int64_t block = blockIdx.x - part.first;
  if (part.magnitudes != nullptr) return coded_rows<T, S>(part, g, block);
  constexpr int kTurns = T > kPlainTurn ? 2 : 1;
  static_assert(T <= kTurns * kPlainTurn);
  plain_rows<kTurns>(*dynamic_shared<PlainArea>(), part.y, g.raw, part.w, 0, block * kPlainRows, 0, g.tokens);
}

template <int T, int S>
void launch_group(const Group& g, unsigned grid, bool plain, cudaStream_t stream) {
  const size_t pairs = S > 1 ? sizeof(Pairs<T, S>) : 0;
  launch("row_products", row_products_kernel<T, S>, grid, 32 * kRowWarps, plain ? std::max(pairs, sizeof(PlainArea)) : pairs,
         stream, g);
}

template <int T>
void launch_tokens(const Group& g, int split, unsigned grid, bool plain, cudaStream_t stream) {
  split == 1 ? launch_group<T, 1>(g, grid, plain, stream) : launch_group<T, kRowsSplit>(g, grid, plain, stream);
}

}  // namespace

void launch_row_products(std::span<const RowProduct> products, int multiprocessors, cudaStream_t stream) {
  static_assert(32 * kRowWarps == kPlainThreads);
  const Activation& x = products[0].args.x;
  Group g;
  g.tokens = static_cast<int>(x.tokens);
  g.dim = static_cast<int>(x.dim);
  g.raw = x.raw;
  g.codes = x.codes;
  g.scales = x.scales;
  int64_t unit_rows = 0, units = 1;
  for (const RowProduct& product : products) {
    const Matrix& w = product.args.w;
    if (w.format != WeightFormat::polar) continue;
    unit_rows += w.units * w.rows;
    units = std::max(units, w.units);
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
        part.magnitudes = product.book->magnitudes;
        part.int_step = product.book->int_step;
        grid += blocks_for(w.rows, kTileRows * kRowWarps / split / w.units);
      } else {
        plain = true;
        grid += blocks_for(w.rows, kPlainRows);
      }
    }
  }
  const auto launch_all = x.tokens == 1   ? launch_tokens<1>
                          : x.tokens == 2 ? launch_tokens<2>
                          : x.tokens <= 4 ? launch_tokens<4>
                                          : launch_tokens<8>;
  launch_all(g, split, grid, plain, stream);
}

}  // namespace pq::cuda
