// Keys and values into the cache, and causal attention over it. A token attends position by position in parts of kPart, each with a
// softmax of its own, and the parts are merged in order: the same bits whether one block of threads walks them all or one takes
// each.
#include <cmath>

#include "kernels/cuda/launch.h"

namespace pq::cuda {
namespace {

constexpr int kPart = static_cast<int>(kKeyBlock);
constexpr int kThreads = 256;
constexpr int kMaxHeadDim = 512;
constexpr int kMaxGroup = 16;
constexpr int kInputWarps = 4;

// The span that holds activation row `row`; spans cover the batch, in any order.
__device__ Span span_of(const Span* spans, int64_t count, int64_t row) {
  int64_t i = 0;
  while (i + 1 < count && (row < spans[i].row || row >= spans[i].row + spans[i].tokens)) ++i;
  return spans[i];
}

__device__ float cached(const char* row, KvType type, int64_t dim, int64_t i) {
  if (type == KvType::f16) return half_value(reinterpret_cast<const uint16_t*>(row)[i]);
  if (type == KvType::f32) return reinterpret_cast<const float*>(row)[i];
  return half_value(reinterpret_cast<const uint16_t*>(row + dim)[i / kKvGroup]) *
         static_cast<float>(reinterpret_cast<const int8_t*>(row)[i]);
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

struct Part {
  float largest;
  float sum;
};

// One part of the positions of one token for the query heads of one kv head, by a block of threads. scores [group][kPart] and the
// weighted values out [group][head_dim] in shared memory.
__device__ void attend_part(const AttentionArgs& a, const float* q, const char* k, const char* v, int64_t first, int count,
                            int group, float scale, float* scores, float* out, Part* parts) {
  const int64_t dim = a.cache.head_dim;
  const int64_t row_bytes = kv_row_bytes(a.cache.type, dim);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // Half a warp a position: the sixteen lanes of the contract.
  for (int first_p = 2 * warp; first_p < count; first_p += kThreads / 16) {
    const int p = min(first_p + lane / 16, count - 1);
    float dot[kMaxGroup];
#pragma unroll
    for (int h = 0; h < kMaxGroup; ++h) dot[h] = 0.0f;
    for (int64_t i = lane % 16; i < dim; i += 16) {
      const float key = cached(k + (first + p) * row_bytes, a.cache.type, dim, i);
#pragma unroll
      for (int h = 0; h < kMaxGroup; ++h) {
        if (h < group) dot[h] = fmaf(q[h * dim + i], key, dot[h]);
      }
    }
#pragma unroll
    for (int h = 0; h < kMaxGroup; ++h) {
      if (h >= group) break;
      const float total = fold_lanes(dot[h]) * scale;
      if (lane % 16 == 0) scores[h * kPart + p] = total;
    }
  }
  __syncthreads();
  for (int h = warp; h < group; h += kThreads / 32) {
    float largest = -INFINITY;
    for (int p = lane; p < count; p += 32) largest = fmaxf(largest, scores[h * kPart + p]);
    largest = warp_max(largest);
    // Both halves of the warp take the sum, each its half of the exponentials: the lanes of the contract are sixteen.
    float sum = 0.0f;
    for (int p = lane; p < count; p += 32) scores[h * kPart + p] = exp_as_host(scores[h * kPart + p] - largest);
    __syncwarp();
    for (int p = lane % 16; p < count; p += 16) sum += scores[h * kPart + p];
    sum = fold_lanes(sum);
    if (lane == 0) parts[h] = {largest, sum};
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < dim; i += kThreads) {
    float total[kMaxGroup];
#pragma unroll
    for (int h = 0; h < kMaxGroup; ++h) total[h] = 0.0f;
    for (int p = 0; p < count; ++p) {
      const float value = cached(v + (first + p) * row_bytes, a.cache.type, dim, i);
#pragma unroll
      for (int h = 0; h < kMaxGroup; ++h) {
        if (h < group) total[h] = fmaf(scores[h * kPart + p], value, total[h]);
      }
    }
#pragma unroll
    for (int h = 0; h < kMaxGroup; ++h) {
      if (h < group) out[h * dim + i] = total[h];
    }
  }
}

// One token and kv head a block. A thread keeps the running values of its elements of every head.
__global__ void attention_kernel(AttentionArgs a, const Span* spans, float scale) {
  float* shared = dynamic_shared<float>();
  __shared__ Part parts[kMaxGroup];
  const KvCache& cache = a.cache;
  const int64_t dim = cache.head_dim;
  const int group = static_cast<int>(a.heads / cache.kv_heads);
  const int64_t row = blockIdx.x, kv = blockIdx.y;
  const Span span = span_of(spans, a.spans.count, row);
  const int64_t positions = span.position + row - span.row + 1;
  float* q = shared;                  // [group][dim]
  float* out = q + group * dim;       // [group][dim], of the part at hand
  float* merged = out + group * dim;  // [group][dim]
  float* scores = merged + group * dim;
  const int64_t head = row * a.heads + kv * group;
  for (int64_t i = threadIdx.x; i < group * dim; i += kThreads) {
    q[i] = a.q[head * dim + i];
    merged[i] = 0.0f;
  }
  const int64_t plane = (span.slot * cache.kv_heads + kv) * cache.context * kv_row_bytes(cache.type, dim);
  const char* k = static_cast<const char*>(cache.k) + plane;
  const char* v = static_cast<const char*>(cache.v) + plane;
  float largest[kMaxGroup], sum[kMaxGroup];
#pragma unroll
  for (int h = 0; h < kMaxGroup; ++h) {
    largest[h] = -INFINITY;
    sum[h] = 0.0f;
  }
  for (int64_t first = 0; first < positions; first += kPart) {
    __syncthreads();
    attend_part(a, q, k, v, first, static_cast<int>(min(static_cast<int64_t>(kPart), positions - first)), group, scale, scores, out,
                parts);
    __syncthreads();
#pragma unroll
    for (int h = 0; h < kMaxGroup; ++h) {
      if (h >= group) break;
      const float now = fmaxf(largest[h], parts[h].largest);
      const float keep = exp_as_host(largest[h] - now), take = exp_as_host(parts[h].largest - now);
      sum[h] = fmaf(parts[h].sum, take, sum[h] * keep);
      for (int64_t i = threadIdx.x; i < dim; i += kThreads)
        merged[h * dim + i] = fmaf(out[h * dim + i] + 0.0f, take, merged[h * dim + i] * keep);
      largest[h] = now;
    }
  }
#pragma unroll
  for (int h = 0; h < kMaxGroup; ++h) {
    if (h >= group) break;
    for (int64_t i = threadIdx.x; i < dim; i += kThreads) {
      const float gate = a.q_gate[(head + h) * 2 * dim + dim + i];
      a.y[(head + h) * dim + i] = __fdiv_rn(__fdiv_rn(merged[h * dim + i], sum[h]), one_plus_exp_minus(gate));
    }
  }
}

}  // namespace

void launch_attention_input(const AttentionInputArgs& args, const Span* device_spans, int64_t tokens, cudaStream_t stream) {
  require(args.cache.head_dim <= kMaxHeadDim, "attention_input: heads above 512");
  const int64_t heads = tokens * (args.heads + 2 * args.cache.kv_heads);
  launch("attention_input", attention_input_kernel, blocks_for(heads, kInputWarps), 32 * kInputWarps, 0, stream, args, device_spans,
         tokens);
}

void launch_attention(const AttentionArgs& args, const Span* device_spans, int64_t tokens, cudaStream_t stream) {
  const int64_t group = args.heads / args.cache.kv_heads, dim = args.cache.head_dim;
  require(group <= kMaxGroup && dim <= kMaxHeadDim, "attention: more than 16 query heads share a kv head, or heads above 512");
  const size_t shared = sizeof(float) * static_cast<size_t>(3 * group * dim + group * kPart);
  check(cudaFuncSetAttribute(attention_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        "shared memory of attention");
  const dim3 grid(static_cast<unsigned>(tokens), static_cast<unsigned>(args.cache.kv_heads));
  launch("attention", attention_kernel, grid, kThreads, shared, stream, args, device_spans,
         static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim))));
}

}  // namespace pq::cuda
