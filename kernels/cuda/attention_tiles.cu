// Attention of many tokens of a sequence: a block of threads takes a tile of
// queries, all heads of a kv head that they have, and goes over the key blocks;
// each piece of keys and values is widened into shared memory once and met by
// the whole tile. The order of every sum is that of kernels/backend.h, so the
// bits are those of single tokens.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/launch.h"

namespace pq::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 32;   // queries of a tile: tokens by heads
constexpr int kPiece = 32;  // positions that lie in shared memory at once
constexpr int kParts = 4;   // of the sixteen sums of a score: part g has sums g,
                            // g + 4, g + 8, g + 12
constexpr int kBlockPositions = static_cast<int>(kKeyBlock);
constexpr int kScoreStride = kRows + 4;
constexpr int kMaxHeadDim = 256;

// A row of shared memory is four floats longer than a head, so that rows begin
// in different banks.
__device__ __host__ constexpr int row_floats(int64_t dim) { return static_cast<int>(dim) + 4; }

// Sixteen elements with element 4 m + g at 4 g + m: what part g needs of them
// lies together.
__device__ void put_parts(float* to, const float4 x[4]) {
  reinterpret_cast<float4*>(to)[0] = make_float4(x[0].x, x[1].x, x[2].x, x[3].x);
  reinterpret_cast<float4*>(to)[1] = make_float4(x[0].y, x[1].y, x[2].y, x[3].y);
  reinterpret_cast<float4*>(to)[2] = make_float4(x[0].z, x[1].z, x[2].z, x[3].z);
  reinterpret_cast<float4*>(to)[3] = make_float4(x[0].w, x[1].w, x[2].w, x[3].w);
}

// Positions [0, count) of a piece of the cache into shared memory as fp32; the
// last one stands for those beyond. Keys by parts, values as they are. Eight
// positions and four times sixteen elements a warp: no two lanes write to one
// bank.
template <KvType type, bool keys>
__device__ void widen(float* piece, const char* rows, int64_t row_bytes, int64_t dim, int count) {
  const int sixteens = static_cast<int>(dim / 16);
  for (int i = threadIdx.x; i < kPiece * sixteens; i += kThreads) {
    const int column = i / 8 % sixteens, position = i % 8 + i / 8 / sixteens * 8;
    const char* row = rows + min(position, count - 1) * row_bytes;
    float4 x[4];
#pragma unroll
    for (int m = 0; m < 4; ++m) x[m] = cached4<type>(row, dim, 16 * column + 4 * m);
    float* to = piece + position * row_floats(dim) + 16 * column;
    if (keys) {
      put_parts(to, x);
    } else {
#pragma unroll
      for (int m = 0; m < 4; ++m) reinterpret_cast<float4*>(to)[m] = x[m];
    }
  }
}

// out[r] += weights[r] * value of four rows and eight columns.
__device__ void add_weighted(float out[4][8], const float* weights, const float* value, bool two) {
  const float4 w = *reinterpret_cast<const float4*>(weights);
  const float4 low = *reinterpret_cast<const float4*>(value);
  const float4 high = two ? *reinterpret_cast<const float4*>(value + kMaxHeadDim / 2) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  const float each[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    out[r][0] = fmaf(each[r], low.x, out[r][0]);
    out[r][1] = fmaf(each[r], low.y, out[r][1]);
    out[r][2] = fmaf(each[r], low.z, out[r][2]);
    out[r][3] = fmaf(each[r], low.w, out[r][3]);
    out[r][4] = fmaf(each[r], high.x, out[r][4]);
    out[r][5] = fmaf(each[r], high.y, out[r][5]);
    out[r][6] = fmaf(each[r], high.z, out[r][6]);
    out[r][7] = fmaf(each[r], high.w, out[r][7]);
  }
}

// The scores of kRows queries and kPiece positions, without their scale. A
// quarter of the threads has a part of the sums; a thread of it four queries by
// four positions. The parts meet in shared memory, where the keys were.
__device__ void score_piece(float* scores, const float* queries, float* piece, int64_t dim, float scale) {
  const int part = threadIdx.x / (kThreads / kParts), row = threadIdx.x % 8, column = threadIdx.x / 8 % 8;
  const int stride = row_floats(dim);
  float sum[4][4][4];
#pragma unroll
  for (int i = 0; i < 64; ++i) (&sum[0][0][0])[i] = 0.0f;
  for (int i = 4 * part; i < dim; i += 16) {
    float4 query[4], key[4];
#pragma unroll
    for (int x = 0; x < 4; ++x) query[x] = *reinterpret_cast<const float4*>(queries + (row + 8 * x) * stride + i);
#pragma unroll
    for (int x = 0; x < 4; ++x) key[x] = *reinterpret_cast<const float4*>(piece + (column + 8 * x) * stride + i);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        sum[r][p][0] = fmaf(query[r].x, key[p].x, sum[r][p][0]);
        sum[r][p][1] = fmaf(query[r].y, key[p].y, sum[r][p][1]);
        sum[r][p][2] = fmaf(query[r].z, key[p].z, sum[r][p][2]);
        sum[r][p][3] = fmaf(query[r].w, key[p].w, sum[r][p][3]);
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < 4; ++r) {
#pragma unroll
    for (int p = 0; p < 4; ++p)
      piece[(part * kPiece + column + 8 * p) * kRows + row + 8 * r] = (sum[r][p][0] + sum[r][p][2]) + (sum[r][p][1] + sum[r][p][3]);
  }
  __syncthreads();
  constexpr int kScores = kRows * kPiece;
  for (int i = threadIdx.x; i < kScores; i += kThreads)
    scores[i / kRows * kScoreStride + i % kRows] =
        ((piece[i] + piece[2 * kScores + i]) + (piece[kScores + i] + piece[3 * kScores + i])) * scale;
  __syncthreads();
}

template <KvType type>
__global__ void __launch_bounds__(kThreads)
    attention_tile_kernel(AttentionArgs a, const Span* tiles, float scale, int piece_floats) {
  __shared__ float running_largest[kRows], running_sum[kRows], keep[kRows], take[kRows];
  const KvCache& cache = a.cache;
  const int64_t dim = cache.head_dim, row_bytes = kv_row_bytes(type, dim);
  const int stride = row_floats(dim);
  float* queries = dynamic_shared<float>();  // [kRows][stride], by parts
  float* piece = queries + kRows * stride;   // [kPiece][stride]
  float* scores = piece + piece_floats;      // [kBlockPositions][kScoreStride]
  const Span span = tiles[blockIdx.x];
  const int64_t kv = blockIdx.y;
  const int group = static_cast<int>(a.heads / cache.kv_heads);
  const int rows = static_cast<int>(span.tokens) * group;
  const int sixteens = static_cast<int>(dim / 16);
  // Row r is head r % group of token r / group.
  const auto head_of = [&](int r) { return (span.row + r / group) * a.heads + kv * group + r % group; };
  for (int i = threadIdx.x; i < kRows * sixteens; i += kThreads) {
    const int r = i / sixteens, column = i % sixteens;
    float4 x[4];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      x[m] = r < rows ? *reinterpret_cast<const float4*>(a.q + head_of(r) * dim + 16 * column + 4 * m)
                      : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    put_parts(queries + r * stride + 16 * column, x);
  }
  if (threadIdx.x < kRows) {
    running_largest[threadIdx.x] = -INFINITY;
    running_sum[threadIdx.x] = 0.0f;
  }
  const int64_t plane = (span.slot * cache.kv_heads + kv) * cache.context * row_bytes;
  const char* keys = static_cast<const char*>(cache.k) + plane;
  const char* values = static_cast<const char*>(cache.v) + plane;
  // Of the weighted values: four rows, and four columns twice.
  const int warp = threadIdx.x / 32;
  const int first_row = 4 * (threadIdx.x / 16 % 2 + warp / 2 * 2), column = 4 * (threadIdx.x % 16 + warp % 2 * 16);
  const bool wide = column + kMaxHeadDim / 2 < dim;
  float out[4][8];
#pragma unroll
  for (int i = 0; i < 32; ++i) (&out[0][0])[i] = 0.0f;

  const int64_t positions = span.position + span.tokens;
  for (int64_t first = 0; first < positions; first += kBlockPositions) {
    const int count = static_cast<int>(min(static_cast<int64_t>(kBlockPositions), positions - first));
    // Positions of the block that row r sees.
    const auto seen = [&](int r) {
      return static_cast<int>(
          max(static_cast<int64_t>(0), min(static_cast<int64_t>(count), span.position + r / group + 1 - first)));
    };
    for (int p = 0; p < count; p += kPiece) {
      __syncthreads();
      widen<type, true>(piece, keys + (first + p) * row_bytes, row_bytes, dim, count - p);
      __syncthreads();
      score_piece(scores + p * kScoreStride, queries, piece, dim, scale);
    }
    {
      // Eight threads a row; thread t has sums t and t + 8 of the sixteen.
      const int r = threadIdx.x / 8, own = threadIdx.x % 8;
      const int visible = r < rows ? seen(r) : 0;
      float largest = -INFINITY;
      for (int p = own; p < visible; p += 8) largest = fmaxf(largest, scores[p * kScoreStride + r]);
      for (int distance = 4; distance > 0; distance /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
      float low = 0.0f, high = 0.0f;
      for (int p = own; p < count; p += 16) {
        const float weight = p < visible ? exp_as_host(scores[p * kScoreStride + r] - largest) : 0.0f;
        scores[p * kScoreStride + r] = weight;
        if (p < visible) low += weight;
      }
      for (int p = own + 8; p < count; p += 16) {
        const float weight = p < visible ? exp_as_host(scores[p * kScoreStride + r] - largest) : 0.0f;
        scores[p * kScoreStride + r] = weight;
        if (p < visible) high += weight;
      }
      float sum = low + high;
      for (int distance = 4; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
      if (own == 0 && visible > 0) {
        const float now = fmaxf(running_largest[r], largest);
        keep[r] = exp_as_host(running_largest[r] - now);
        take[r] = exp_as_host(largest - now);
        running_sum[r] = fmaf(sum, take[r], running_sum[r] * keep[r]);
        running_largest[r] = now;
      }
    }
    float block_out[4][8];
#pragma unroll
    for (int i = 0; i < 32; ++i) (&block_out[0][0])[i] = 0.0f;
    const int whole = seen(0);  // the first token sees least
    for (int p = 0; p < count; p += kPiece) {
      __syncthreads();
      widen<type, false>(piece, values + (first + p) * row_bytes, row_bytes, dim, count - p);
      __syncthreads();
      if (column >= dim) continue;
      const int end = min(kPiece, count - p);
      if (p + end <= whole) {
#pragma unroll 4
        for (int i = 0; i < end; ++i)
          add_weighted(block_out, scores + (p + i) * kScoreStride + first_row, piece + i * stride + column, wide);
        continue;
      }
      // What a token must not see may be no number, which a weight of zero
      // would let through.
      for (int i = 0; i < end; ++i) {
        float sum[4][8];
#pragma unroll
        for (int x = 0; x < 32; ++x) (&sum[0][0])[x] = (&block_out[0][0])[x];
        add_weighted(sum, scores + (p + i) * kScoreStride + first_row, piece + i * stride + column, wide);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          if (p + i >= seen(first_row + r)) continue;
#pragma unroll
          for (int c = 0; c < 8; ++c) block_out[r][c] = sum[r][c];
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      if (first_row + r >= rows || seen(first_row + r) == 0) continue;
#pragma unroll
      for (int c = 0; c < 8; ++c) out[r][c] = fmaf(block_out[r][c] + 0.0f, take[first_row + r], out[r][c] * keep[first_row + r]);
    }
  }
  if (column >= dim) return;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    if (first_row + r >= rows) break;
    const int64_t head = head_of(first_row + r);
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      if (c >= 4 && !wide) break;
      const int64_t i = column + c % 4 + (c < 4 ? 0 : kMaxHeadDim / 2);
      const float gate = a.q_gate[head * 2 * dim + dim + i];
      a.y[head * dim + i] = __fdiv_rn(__fdiv_rn(out[r][c], running_sum[first_row + r]), one_plus_exp_minus(gate));
    }
  }
}

struct TileLaunch {
  const AttentionArgs& args;
  const Span* tiles;
  int64_t count;
  cudaStream_t stream;

  template <KvType type>
  void run() const {
    const int64_t dim = args.cache.head_dim;
    const int piece = std::max(kPiece * row_floats(dim), kParts * kPiece * kRows);
    const size_t shared = sizeof(float) * static_cast<size_t>(kRows * row_floats(dim) + piece + kBlockPositions * kScoreStride);
    check(cudaFuncSetAttribute(attention_tile_kernel<type>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
          "shared memory of attention");
    const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(args.cache.kv_heads));
    launch("attention_tile", attention_tile_kernel<type>, grid, kThreads, shared, stream, args, tiles,
           static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim))), piece);
  }
};

}  // namespace

int64_t attention_tile_tokens(const AttentionArgs& args) {
  const int64_t group = args.heads / args.cache.kv_heads;
  return args.cache.head_dim <= kMaxHeadDim ? kRows / group : 0;
}

void launch_attention_tiles(const AttentionArgs& args, const Span* device_tiles, int64_t tiles, cudaStream_t stream) {
  with_kv_type(args.cache.type, TileLaunch{args, device_tiles, tiles, stream});
}

}  // namespace pq::cuda
