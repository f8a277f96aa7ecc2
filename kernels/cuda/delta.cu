// Causal convolution and the gated delta rule. One thread owns one channel, or one column of a head's state, for a whole span:
// nothing about a column depends on another.
#include <cmath>

#include "kernels/cuda/launch.h"

namespace pq::cuda {
namespace {

constexpr int kChunk = static_cast<int>(kDeltaChunk);

__global__ void causal_conv_kernel(CausalConvArgs a, const Span* spans) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c >= a.channels) return;
  const Span span = spans[blockIdx.y];
  if (span.tokens == 0) return;
  float* state = a.state + span.slot * kConvHistory * a.channels + c;
  const float4 w = reinterpret_cast<const float4*>(a.weight)[c];
  float h0 = 0.0f, h1 = 0.0f, h2 = 0.0f;
  if (span.position > 0) {
    h0 = state[0];
    h1 = state[a.channels];
    h2 = state[2 * a.channels];
  }
  const float* x = a.x + span.row * a.channels + c;
  float* y = a.y + span.row * a.channels + c;
  for (int64_t t = 0; t < span.tokens; ++t) {
    const float now = x[t * a.channels];
    y[t * a.channels] = silu(fmaf(w.w, now, fmaf(w.z, h2, fmaf(w.y, h1, fmaf(w.x, h0, 0.0f)))));
    h0 = h1;
    h1 = h2;
    h2 = now;
  }
  state[0] = h0;
  state[a.channels] = h1;
  state[2 * a.channels] = h2;
}

// y = x / sqrt(sum x^2 + 1e-6) * scale by one warp.
__device__ void l2_normalise(float* y, const float* x, int64_t dim, float scale) {
  const float root = __fsqrt_rn(dot_lanes(x, x, dim) + 1e-6f);
  for (int64_t i = threadIdx.x % 32; i < dim; i += 32) y[i] = __fdiv_rn(x[i], root) * scale;
}

// In double, as on the host: the fp32 result then does not depend on the library.
__device__ float softplus(float x) { return x > 20.0f ? x : static_cast<float>(log1p(exp(static_cast<double>(x)))); }

// Rows [begin, begin + count) of one chunk, count <= N, whose keys and queries stand in shared memory. d: this column's deltas of
// the chunk; those before `begin` are filled.
template <int N>
__device__ void chunk_rows(const GatedDeltaArgs& a, const float* keys, const float* queries, const float* kk, const float* qk,
                           const float* decay, const float* beta, float* s, const float* v, int64_t v_stride, float* y,
                           int64_t y_stride, int begin, int count, float d[kChunk]) {
  float kept[N], read[N];
#pragma unroll
  for (int t = 0; t < N; ++t) kept[t] = read[t] = 0.0f;
#pragma unroll 4
  for (int64_t i = 0; i < a.key_dim; ++i) {
    const float value = s[i * a.value_dim];
#pragma unroll
    for (int t = 0; t < N; ++t) {
      if (t >= count) break;
      kept[t] = fmaf(value, keys[(begin + t) * a.key_dim + i], kept[t]);
      read[t] = fmaf(value, queries[t * a.key_dim + i], read[t]);
    }
  }
#pragma unroll
  for (int t = 0; t < N; ++t) {
    if (t >= count) break;
    const int i = begin + t;
    const float now = exp_as_host(decay[i]);
    float pending = 0.0f;
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      if (j < i) pending = fmaf(exp_as_host(decay[i] - decay[j]) * kk[t * kChunk + j], d[j], pending);
    }
    const float delta = beta[t] * (fmaf(-now, kept[t], v[t * v_stride]) - pending);
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      if (j == i) d[j] = delta;
      if (j <= i) sum = fmaf(exp_as_host(decay[i] - decay[j]) * qk[t * kChunk + j], d[j], sum);
    }
    y[t * y_stride] = fmaf(now, read[t], sum);
  }
}

// One value head of one span a block of value_dim threads. Keys of the pending rows are read only: store_keys_kernel writes the new
// ones when every head that shares them has ended.
__global__ void gated_delta_kernel(GatedDeltaArgs a, const Span* spans, float query_scale) {
  float* shared = dynamic_shared<float>();
  const int64_t head = blockIdx.x;
  const Span span = spans[blockIdx.y];
  if (span.tokens == 0) return;
  const int64_t key_head = head * a.key_heads / a.value_heads;
  const int64_t key_size = a.key_heads * a.key_dim, value_size = a.value_heads * a.value_dim;
  const int64_t row_size = 2 * key_size + value_size;
  float* keys = shared;                        // [kChunk][key_dim]
  float* queries = keys + kChunk * a.key_dim;  // [kChunk][key_dim], of the rows at hand
  float* kk = queries + kChunk * a.key_dim;    // [kChunk][kChunk]
  float* qk = kk + kChunk * kChunk;
  float* decay = qk + kChunk * kChunk;  // [kChunk], cumulative
  float* beta = decay + kChunk;         // of the rows at hand
  const int column = threadIdx.x, warp = threadIdx.x / 32, warps = (blockDim.x + 31) / 32;
  float* s = a.state.s + (span.slot * a.value_heads + head) * a.key_dim * a.value_dim + column;
  float* deltas = a.state.delta + span.slot * kChunk * value_size + head * a.value_dim + column;
  float* decays = a.state.decay + span.slot * kChunk * a.value_heads + head;
  const float* old_keys = a.state.k + span.slot * kChunk * key_size + key_head * a.key_dim;
  const bool owner = column < a.value_dim;
  if (span.position == 0 && owner) {
    for (int64_t i = 0; i < a.key_dim; ++i) s[i * a.value_dim] = 0.0f;
  }
  float d[kChunk];
  int begin = static_cast<int>(span.position % kChunk);
#pragma unroll
  for (int j = 0; j < kChunk; ++j) d[j] = j < begin && owner ? deltas[j * value_size] : 0.0f;
  for (int64_t i = threadIdx.x; i < begin * a.key_dim; i += blockDim.x)
    keys[i] = old_keys[i / a.key_dim * key_size + i % a.key_dim];
  for (int j = threadIdx.x; j < begin; j += blockDim.x) decay[j] = decays[j * a.value_heads];
  for (int64_t first = 0; first < span.tokens;) {
    const int count = static_cast<int>(min(static_cast<int64_t>(kChunk - begin), span.tokens - first));
    const float* qkv = a.qkv + (span.row + first) * row_size;
    __syncthreads();
    for (int t = warp; t < count; t += warps) {
      l2_normalise(queries + t * a.key_dim, qkv + t * row_size + key_head * a.key_dim, a.key_dim, query_scale);
      l2_normalise(keys + (begin + t) * a.key_dim, qkv + t * row_size + key_size + key_head * a.key_dim, a.key_dim, 1.0f);
    }
    if (threadIdx.x == 0) {
      for (int t = 0; t < count; ++t) {
        const int64_t gate = (span.row + first + t) * a.value_heads + head;
        const float g = -exp_as_host(a.a_log[head]) * softplus(a.a[gate] + a.dt_bias[head]);
        decay[begin + t] = (begin + t > 0 ? decay[begin + t - 1] : 0.0f) + g;
        beta[t] = 1.0f / (1.0f + exp_as_host(-a.b[gate]));
      }
    }
    __syncthreads();
    for (int pair = warp; pair < count * kChunk; pair += warps) {
      const int t = pair / kChunk, j = pair % kChunk;
      if (j > begin + t) continue;
      const float same = dot_lanes(keys + (begin + t) * a.key_dim, keys + j * a.key_dim, a.key_dim);
      const float across = dot_lanes(queries + t * a.key_dim, keys + j * a.key_dim, a.key_dim);
      if (threadIdx.x % 32 == 0) {
        kk[t * kChunk + j] = same;
        qk[t * kChunk + j] = across;
      }
    }
    __syncthreads();
    const int end = begin + count;
    if (owner) {
      const float* v = qkv + 2 * key_size + head * a.value_dim + column;
      float* y = a.y + (span.row + first) * value_size + head * a.value_dim + column;
      if (count == 1) {
        chunk_rows<1>(a, keys, queries, kk, qk, decay, beta, s, v, row_size, y, value_size, begin, count, d);
      } else {
        chunk_rows<kChunk>(a, keys, queries, kk, qk, decay, beta, s, v, row_size, y, value_size, begin, count, d);
      }
      if (end == kChunk) {
        const float now = exp_as_host(decay[kChunk - 1]);
        float factor[kChunk];
#pragma unroll
        for (int j = 0; j < kChunk; ++j) factor[j] = exp_as_host(decay[kChunk - 1] - decay[j]);
#pragma unroll 2
        for (int64_t i = 0; i < a.key_dim; ++i) {
          float sum = now * s[i * a.value_dim];
#pragma unroll
          for (int j = 0; j < kChunk; ++j) sum = fmaf(factor[j] * keys[j * a.key_dim + i], d[j], sum);
          s[i * a.value_dim] = sum;
        }
      }
    }
    first += count;
    begin = end % kChunk;
  }
  // Rows of the last chunk stay pending; after a full one they are stored too, and never read.
  __syncthreads();
  const int rows = begin == 0 ? kChunk : begin;
#pragma unroll
  for (int j = 0; j < kChunk; ++j) {
    if (j < rows && owner) deltas[j * value_size] = d[j];
  }
  for (int j = threadIdx.x; j < rows; j += blockDim.x) decays[j * a.value_heads] = decay[j];
}

// The normalised keys of the tokens of each span's last chunk; one warp a row and key head.
__global__ void store_keys_kernel(GatedDeltaArgs a, const Span* spans) {
  const Span span = spans[blockIdx.y];
  if (span.tokens == 0) return;
  const int64_t key_size = a.key_heads * a.key_dim;
  const int64_t row_size = 2 * key_size + a.value_heads * a.value_dim;
  const int64_t last = span.position + span.tokens - 1;
  const int64_t row = threadIdx.x / 32;
  const int64_t position = last / kChunk * kChunk + row;
  if (position < span.position || position > last) return;
  const int64_t head = blockIdx.x;
  l2_normalise(a.state.k + (span.slot * kChunk + row) * key_size + head * a.key_dim,
               a.qkv + (span.row + position - span.position) * row_size + key_size + head * a.key_dim, a.key_dim, 1.0f);
}

}  // namespace

void launch_causal_conv(const CausalConvArgs& args, const Span* device_spans, cudaStream_t stream) {
  const dim3 grid(blocks_for(args.channels, 128), static_cast<unsigned>(args.spans.count));
  launch("causal_conv", causal_conv_kernel, grid, 128, 0, stream, args, device_spans);
}

void launch_gated_delta(const GatedDeltaArgs& args, const Span* device_spans, cudaStream_t stream) {
  const size_t shared = sizeof(float) * static_cast<size_t>(2 * kChunk * args.key_dim + 2 * kChunk * kChunk + 2 * kChunk);
  const unsigned threads = static_cast<unsigned>((args.value_dim + 31) / 32 * 32);
  require(shared <= 48 * 1024 && threads <= 1024, "gated_delta: heads beyond what a block of threads holds");
  const dim3 grid(static_cast<unsigned>(args.value_heads), static_cast<unsigned>(args.spans.count));
  launch("gated_delta", gated_delta_kernel, grid, threads, shared, stream, args, device_spans,
         static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.key_dim))));
  const dim3 key_grid(static_cast<unsigned>(args.key_heads), static_cast<unsigned>(args.spans.count));
  launch("store_keys", store_keys_kernel, key_grid, 32 * kChunk, 0, stream, args, device_spans);
}

}  // namespace pq::cuda
