// Attention of single tokens, split over positions: one block of threads a key
// block of kKeyBlock positions, whose largest score, sum and weighted values go
// to scratch; then one block a query head, which joins them in order. The grid
// depends on a bucket of positions and not on the position itself, so that a
// recorded step holds for many tokens.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/rows.h"

namespace pq::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPositions = static_cast<int>(kKeyBlock);
constexpr int kJoinThreads = 256;
constexpr int kMaxHeadDim = 512;

struct Parts {
  float2* sums;   // [rows][heads][blocks]: largest score, sum of exponentials
  float* values;  // [rows][heads][blocks][head_dim]
  int64_t blocks;
};

// Adds what lanes 2 and then 1 away hold of one score's sixteen sums, four of
// which a thread has; see fold_lanes. Of two scores each thread of a pair keeps
// one: score 1 where `second`.
__device__ void fold_pair(float keep[4], const float zero[4], const float one[4], bool second, int distance) {
#pragma unroll
  for (int x = 0; x < 4; ++x) {
    const float sent = second ? zero[x] : one[x];
    const float own = second ? one[x] : zero[x];
    keep[x] = own + __shfl_xor_sync(0xffffffffu, sent, distance);
  }
}

// G query heads, an even number, of one kv head and one key block. Keys: four
// threads a position, each with four of the sixteen sums of the contract
// (elements 16 j + 4 member + x), two positions a thread. Values: a thread has
// two columns and half of the heads.
template <KvType type, int G>
__global__ void __launch_bounds__(kThreads) attention_part_kernel(AttentionArgs a, const Span* rows, Parts parts, float scale) {
  constexpr int kHalf = G / 2;
  __shared__ float scores[G][kPositions];
  alignas(16) __shared__ float weights[2][kPositions][4];
  float* q = dynamic_shared<float>();  // [G][head_dim]
  const KvCache& cache = a.cache;
  const Span span = rows[blockIdx.z];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kPositions;
  if (span.tokens == 0 || first > span.position) return;
  const int count = static_cast<int>(min(static_cast<int64_t>(kPositions), span.position + 1 - first));
  const int64_t dim = cache.head_dim, row_bytes = kv_row_bytes(type, dim);
  const int group = static_cast<int>(a.heads / cache.kv_heads), chunks = (group + G - 1) / G;
  const int64_t kv = blockIdx.y / chunks;
  const int begin = static_cast<int>(blockIdx.y) % chunks * G, heads = min(G, group - begin);
  const int64_t head = kv * group + begin;
  const int64_t plane = ((span.slot * cache.kv_heads + kv) * cache.context + first) * row_bytes;
  const char* k = static_cast<const char*>(cache.k) + plane;
  const char* v = static_cast<const char*>(cache.v) + plane;
  for (int i = threadIdx.x; i < G * dim; i += kThreads) q[i] = i < heads * dim ? a.q[(span.row * a.heads + head) * dim + i] : 0.0f;
  for (int i = threadIdx.x; i < 2 * kPositions * 4; i += kThreads) (&weights[0][0][0])[i] = 0.0f;
  __syncthreads();

  const int quad = threadIdx.x / 4, member = threadIdx.x % 4;
  const char* low = k + min(quad, count - 1) * row_bytes;
  const char* high = k + min(quad + kPositions / 2, count - 1) * row_bytes;
  float sum[G][2][4];
#pragma unroll
  for (int h = 0; h < G; ++h) {
#pragma unroll
    for (int x = 0; x < 4; ++x) sum[h][0][x] = sum[h][1][x] = 0.0f;
  }
#pragma unroll 4
  for (int i = 4 * member; i < dim; i += 16) {
    const float4 zero = cached4<type>(low, dim, i), one = cached4<type>(high, dim, i);
#pragma unroll
    for (int h = 0; h < G; ++h) {
      const float4 query = *reinterpret_cast<const float4*>(q + h * dim + i);
      sum[h][0][0] = fmaf(query.x, zero.x, sum[h][0][0]);
      sum[h][0][1] = fmaf(query.y, zero.y, sum[h][0][1]);
      sum[h][0][2] = fmaf(query.z, zero.z, sum[h][0][2]);
      sum[h][0][3] = fmaf(query.w, zero.w, sum[h][0][3]);
      sum[h][1][0] = fmaf(query.x, one.x, sum[h][1][0]);
      sum[h][1][1] = fmaf(query.y, one.y, sum[h][1][1]);
      sum[h][1][2] = fmaf(query.z, one.z, sum[h][1][2]);
      sum[h][1][3] = fmaf(query.w, one.w, sum[h][1][3]);
    }
  }
  const bool upper = (member & 2) != 0, odd = (member & 1) != 0;
  const int position = quad + (upper ? kPositions / 2 : 0);
#pragma unroll
  for (int h = 0; h < G; h += 2) {
    float one[4], two[4], kept[4];
    fold_pair(one, sum[h][0], sum[h][1], upper, 2);
    fold_pair(two, sum[h + 1][0], sum[h + 1][1], upper, 2);
    fold_pair(kept, one, two, odd, 1);
    const float total = (kept[0] + kept[2]) + (kept[1] + kept[3]);
    if (position < count) scores[h + odd][position] = total * scale;
  }
  __syncthreads();

  const int lane = threadIdx.x % 32;
  const int64_t part_row = static_cast<int64_t>(blockIdx.z) * a.heads + head;
  for (int h = threadIdx.x / 32; h < heads; h += kThreads / 32) {
    float largest = -INFINITY;
    for (int p = lane; p < count; p += 32) largest = fmaxf(largest, scores[h][p]);
    largest = warp_max(largest);
    for (int p = lane; p < count; p += 32) {
      const float weight = exp_as_host(scores[h][p] - largest);
      scores[h][p] = weight;
      weights[h / kHalf][p][h % kHalf] = weight;
    }
    __syncwarp();
    // Both halves of the warp take the sum: the lanes of the contract are
    // sixteen.
    float total = 0.0f;
    for (int p = lane % 16; p < count; p += 16) total += scores[h][p];
    total = fold_lanes(total);
    if (lane == 0) parts.sums[(part_row + h) * parts.blocks + blockIdx.x] = make_float2(largest, total);
  }
  __syncthreads();

  const int half = threadIdx.x / (kThreads / 2);
  for (int64_t i = 2 * (threadIdx.x % (kThreads / 2)); i < dim; i += kThreads) {
    float2 total[kHalf];
#pragma unroll
    for (int h = 0; h < kHalf; ++h) total[h] = make_float2(0.0f, 0.0f);
#pragma unroll 8
    for (int p = 0; p < count; ++p) {
      const float2 value = cached2<type>(v + p * row_bytes, dim, i);
      const float4 weight = *reinterpret_cast<const float4*>(weights[half][p]);
      const float each[4] = {weight.x, weight.y, weight.z, weight.w};
#pragma unroll
      for (int h = 0; h < kHalf; ++h) {
        total[h].x = fmaf(each[h], value.x, total[h].x);
        total[h].y = fmaf(each[h], value.y, total[h].y);
      }
    }
#pragma unroll
    for (int h = 0; h < kHalf; ++h) {
      const int own = half * kHalf + h;
      if (own >= heads) break;
      float* out = parts.values + ((part_row + own) * parts.blocks + blockIdx.x) * dim + i;
      // A sum that rounded to -0 is the same whether it is joined here or
      // there.
      *reinterpret_cast<float2*>(out) = make_float2(total[h].x + 0.0f, total[h].y + 0.0f);
    }
  }
}

// One query head of one token. Every warp goes over the blocks by 32: the
// largest score up to each is a prefix, which is exact in any order, so their
// exponentials are taken side by side; sums and values are joined in order.
// prepared: the head is whole blocks of the next matrix' input.
__global__ void __launch_bounds__(kJoinThreads)
    attention_join_kernel(AttentionArgs a, const Span* rows, Parts parts, bool prepared) {
  const int64_t dim = a.cache.head_dim;
  const Span span = rows[blockIdx.y];
  if (span.tokens == 0) return;
  const int64_t count = span.position / kPositions + 1;
  const int64_t part_row = (static_cast<int64_t>(blockIdx.y) * a.heads + blockIdx.x) * parts.blocks;
  const int lane = threadIdx.x % 32;
  constexpr int kColumns = kMaxHeadDim / kJoinThreads;
  float largest = -INFINITY, sum = 0.0f, out[kColumns];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) out[c] = 0.0f;
  for (int64_t base = 0; base < count; base += 32) {
    const int held = static_cast<int>(min(static_cast<int64_t>(32), count - base));
    const float2 part = lane < held ? parts.sums[part_row + base + lane] : make_float2(-INFINITY, 0.0f);
    float top = part.x;
    for (int distance = 1; distance < 32; distance *= 2) {
      const float other = __shfl_up_sync(0xffffffffu, top, distance);
      if (lane >= distance) top = fmaxf(top, other);
    }
    top = fmaxf(largest, top);
    const float previous = __shfl_up_sync(0xffffffffu, top, 1);
    const float keep = exp_as_host((lane == 0 ? largest : previous) - top), take = exp_as_host(part.x - top);
#pragma unroll 4
    for (int b = 0; b < held; ++b) {
      const float kept = __shfl_sync(0xffffffffu, keep, b), taken = __shfl_sync(0xffffffffu, take, b);
      sum = fmaf(__shfl_sync(0xffffffffu, part.y, b), taken, sum * kept);
      const float* values = parts.values + (part_row + base + b) * dim;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int64_t i = threadIdx.x + c * kJoinThreads;
        if (i < dim) out[c] = fmaf(values[i], taken, out[c] * kept);
      }
    }
    largest = __shfl_sync(0xffffffffu, top, 31);
  }
  const int64_t head = span.row * a.heads + blockIdx.x;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const int64_t i = threadIdx.x + c * kJoinThreads;
    if (i < dim) a.y[head * dim + i] = __fdiv_rn(__fdiv_rn(out[c], sum), one_plus_exp_minus(a.q_gate[head * 2 * dim + dim + i]));
  }
  if (!prepared) return;
  __syncthreads();
  for (int64_t i = threadIdx.x / 32 * kBlock; i < dim; i += kJoinThreads / 32 * kBlock)
    prepare_block(reinterpret_cast<const float4*>(a.y + head * dim + i)[lane], lane, a.prepared, (head * dim + i) / kBlock);
}

struct PartLaunch {
  const AttentionArgs& args;
  const Span* rows;
  int64_t count;
  Parts parts;
  cudaStream_t stream;

  template <KvType type>
  void run() const {
    const int64_t group = args.heads / args.cache.kv_heads;
    if (group <= 2) return heads<type, 2>(1);
    if (group <= 4) return heads<type, 4>(1);
    if (group <= 6) return heads<type, 6>(1);
    heads<type, 8>((group + 7) / 8);
  }

  template <KvType type, int G>
  void heads(int64_t chunks) const {
    const size_t shared = sizeof(float) * static_cast<size_t>(G * args.cache.head_dim);
    const dim3 grid(static_cast<unsigned>(parts.blocks), static_cast<unsigned>(args.cache.kv_heads * chunks),
                    static_cast<unsigned>(count));
    launch("attention_part", attention_part_kernel<type, G>, grid, kThreads, shared, stream, args, rows, parts,
           static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.cache.head_dim))));
  }
};

}  // namespace

void launch_attention_rows(const AttentionArgs& args, const Span* device_rows, int64_t rows, int64_t positions, float* scratch,
                           cudaStream_t stream) {
  const int64_t dim = args.cache.head_dim;
  require(dim <= kMaxHeadDim, "attention: heads above 512");
  const int64_t blocks = (positions + kKeyBlock - 1) / kKeyBlock;
  const int64_t at_once = attention_rows_at_once(args.heads, dim, positions);
  Parts parts{.sums = nullptr, .values = scratch, .blocks = blocks};
  for (int64_t first = 0; first < rows; first += at_once) {
    const int64_t count = std::min(at_once, rows - first);
    parts.sums = reinterpret_cast<float2*>(scratch + count * args.heads * blocks * dim);
    with_kv_type(args.cache.type, PartLaunch{args, device_rows + first, count, parts, stream});
    const dim3 grid(static_cast<unsigned>(args.heads), static_cast<unsigned>(count));
    launch("attention_join", attention_join_kernel, grid, kJoinThreads, 0, stream, args, device_rows + first, parts,
           args.prepared.wanted() && dim % kBlock == 0);
  }
}

}  // namespace pq::cuda
