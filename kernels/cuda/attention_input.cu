// What attention reads: queries normed and rotated, keys and values in the cache. Attention itself is left to attention_rows.cu and
// attention_tiles.cu.
#include "kernels/cuda/launch.h"

namespace pq::cuda {
namespace {

constexpr int kMaxHeadDim = 512;
constexpr int kInputWarps = 4;

// The span that holds activation row `row`; spans cover the batch, in any order.
__device__ Span span_of(const Span* spans, int64_t count, int64_t row) {
  int64_t i = 0;
  while (i + 1 < count && (row < spans[i].row || row >= spans[i].row + spans[i].tokens)) ++i;
  return spans[i];
}

// One row of the cache by a warp; x [dim] is visible to all of it.
__device__ void store_row(char* row, KvType type, int64_t dim, const float* x, int lane) {
  for (int64_t i = lane; i < dim; i += kKvGroup) {
    const float value = x[i];
    if (type == KvType::f16) {
      reinterpret_cast<uint16_t*>(row)[i] = __half_as_ushort(__float2half_rn(value));
    } else if (type == KvType::f32) {
      reinterpret_cast<float*>(row)[i] = value;
    } else {
      const __half half = __float2half_rn(fminf(__fdiv_rn(warp_max(fabsf(value)), 127.0f), 65504.0f));
      const float scale = __half2float(half);
      const float inverse = scale > 0.0f ? __fdiv_rn(1.0f, scale) : 0.0f;
      reinterpret_cast<int8_t*>(row)[i] =
          static_cast<int8_t>(__float2int_rn(fminf(fmaxf(__fmul_rn(value, inverse), -127.0f), 127.0f)));
      if (lane == 0) reinterpret_cast<uint16_t*>(row + dim)[i / kKvGroup] = __half_as_ushort(half);
    }
  }
}

// One head of one token a warp: query heads, then key heads, then value heads.
__global__ void attention_input_kernel(AttentionInputArgs a, const Span* spans, int64_t tokens) {
  __shared__ float keys[kInputWarps][kMaxHeadDim];
  const KvCache& cache = a.cache;
  const int64_t heads = a.heads + 2 * cache.kv_heads;
  const int64_t place = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (place >= tokens * heads) return;
  const int lane = threadIdx.x % 32;
  const int64_t row = place / heads, head = place % heads;
  const Span span = span_of(spans, a.spans.count, row);
  const int64_t position = span.position + row - span.row;
  const int64_t dim = cache.head_dim;
  const auto row_of = [&](void* plane, int64_t kv) {
    return static_cast<char*>(plane) +
           ((span.slot * cache.kv_heads + kv) * cache.context + position) * kv_row_bytes(cache.type, dim);
  };
  if (head >= a.heads + cache.kv_heads) {
    const int64_t kv = head - a.heads - cache.kv_heads;
    store_row(row_of(cache.v, kv), cache.type, dim, a.v + (row * cache.kv_heads + kv) * dim, lane);
    return;
  }
  const bool query = head < a.heads;
  const int64_t kv = head - a.heads;
  const float* x = query ? a.q_gate + (row * a.heads + head) * 2 * dim : a.k + (row * cache.kv_heads + kv) * dim;
  const float* weight = query ? a.q_norm : a.k_norm;
  const float root = __fsqrt_rn(__fdiv_rn(dot_lanes(x, x, dim), static_cast<float>(dim)) + a.eps);
  const auto normed = [&](int64_t i) { return __fdiv_rn(x[i], root) * (1.0f + weight[i]); };
  const int64_t half = a.rotary_dim / 2;
  float* out = query ? a.q + (row * a.heads + head) * dim : keys[threadIdx.x / 32];
  for (int64_t i = lane; i < half; i += 32) {
    // The angle is an fp32 product; its functions in double, as on the host.
    double sine, cosine;
    sincos(static_cast<double>(static_cast<float>(position) * a.inv_freq[i]), &sine, &cosine);
    const float low = normed(i), high = normed(i + half);
    const float c = static_cast<float>(cosine), s = static_cast<float>(sine);
    out[i] = low * c - high * s;
    out[i + half] = high * c + low * s;
  }
  for (int64_t i = a.rotary_dim + lane; i < dim; i += 32) out[i] = normed(i);
  if (query) return;
  __syncwarp();
  store_row(row_of(cache.k, kv), cache.type, dim, out, lane);
}

}  // namespace

void launch_attention_input(const AttentionInputArgs& args, const Span* device_spans, int64_t tokens, cudaStream_t stream) {
  require(args.cache.head_dim <= kMaxHeadDim, "attention_input: heads above 512");
  const int64_t heads = tokens * (args.heads + 2 * args.cache.kv_heads);
  launch("attention_input", attention_input_kernel, blocks_for(heads, kInputWarps), 32 * kInputWarps, 0, stream, args, device_spans,
         tokens);
}

}  // namespace pq::cuda
