// Causal convolution and the gated delta rule. Nothing about a column of a
// head's state depends on another: a block of threads takes kColumns of them
// through a whole span, with that part of the state in shared memory from the
// first token to the last.
#include <cmath>

#include "kernels/cuda/delta_rule.h"
#include "kernels/cuda/delta_tensor.h"
#include "kernels/cuda/launch.h"

namespace pq::cuda {
namespace {

constexpr int kChunk = static_cast<int>(kDeltaChunk);
constexpr int kColumns = 64;
constexpr int kThreads = 128;
// Of a row of the state in shared memory: rows of one column that tensor cores
// take together lie in different banks.
constexpr int kStateStride = kColumns + 8;

__global__ void causal_conv_kernel(CausalConvArgs a, const Span* spans) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c >= a.channels) return;
  const Span span = spans[blockIdx.y];
  if (span.tokens == 0) return;
  float* state = a.state + span.slot * kConvRows * a.channels + c;
  const float4 w = reinterpret_cast<const float4*>(a.weight)[c];
  const auto kept = [&](int64_t back) {
    return span.position >= back ? state[(span.position - back) % kConvRows * a.channels] : 0.0f;
  };
  float h0 = kept(3), h1 = kept(2), h2 = kept(1);
  const float* x = a.x + span.row * a.channels + c;
  float* y = a.y + span.row * a.channels + c;
  for (int64_t t = 0; t < span.tokens; ++t) {
    const float now = x[t * a.channels];
    y[t * a.channels] = silu(fmaf(w.w, now, fmaf(w.z, h2, fmaf(w.y, h1, fmaf(w.x, h0, 0.0f)))));
    if (t + kConvRows >= span.tokens) state[(span.position + t) % kConvRows * a.channels] = now;
    h0 = h1;
    h1 = h2;
    h2 = now;
  }
}

__device__ float row_log_decay(const GatedDeltaArgs& a, int64_t row, int64_t head) {
  return log_decay(a.a_log[head], a.a[row * a.value_heads + head] + a.dt_bias[head]);
}

// Shared memory of a block: one description for the kernel and for its launch.
struct Areas {
  float* state;    // [key_dim][kStateStride]
  float* keys;     // [kChunk][key_dim + 4], normalised
  float* queries;  // [kChunk][key_dim + 4], of the rows at hand
  float* deltas;   // [kChunk][kColumns]
  float* values;   // [kChunk][kColumns], of the rows at hand
  float* kept;     // [kChunk][kColumns], S^T k of the rows at hand
  float* read;     // [kChunk][kColumns], S^T q
  float* kk;       // [kChunk][kChunk], exp(G_i - G_j) (k_i . k_j) of row i at hand
                   // and j before it
  float* qk;       // the same of queries
  float* decay;    // [kChunk], cumulative
  float* beta;     // [kChunk], of the rows at hand

  __device__ Areas(float* base, int64_t key_dim) {
    state = base;
    keys = state + key_dim * kStateStride;
    queries = keys + kChunk * (key_dim + 4);
    deltas = queries + kChunk * (key_dim + 4);
    values = deltas + kChunk * kColumns;
    kept = values + kChunk * kColumns;
    read = kept + kChunk * kColumns;
    kk = read + kChunk * kColumns;
    qk = kk + kChunk * kChunk;
    decay = qk + kChunk * kChunk;
    beta = decay + kChunk;
  }
};

size_t area_bytes(int64_t key_dim) {
  return sizeof(float) * static_cast<size_t>(key_dim * kStateStride + 2 * kChunk * (key_dim + 4) + 4 * kChunk * kColumns +
                                             2 * kChunk * kChunk + 2 * kChunk);
}

// x . k and y . k of rows of key_dim elements by four neighbouring threads: of
// the sixteen sums, each has four.
__device__ float2 dot_two(const float* x, const float* y, const float* k, int64_t dim) {
  const int member = threadIdx.x % 4;
  float a[4] = {}, b[4] = {};
  for (int64_t i = 4 * member; i < dim; i += 16) {
    const float4 key = four(k + i), one = four(x + i), two = four(y + i);
    a[0] = fmaf(one.x, key.x, a[0]);
    a[1] = fmaf(one.y, key.y, a[1]);
    a[2] = fmaf(one.z, key.z, a[2]);
    a[3] = fmaf(one.w, key.w, a[3]);
    b[0] = fmaf(two.x, key.x, b[0]);
    b[1] = fmaf(two.y, key.y, b[1]);
    b[2] = fmaf(two.z, key.z, b[2]);
    b[3] = fmaf(two.w, key.w, b[3]);
  }
  for (int distance = 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int x4 = 0; x4 < 4; ++x4) {
      a[x4] += __shfl_xor_sync(0xffffffffu, a[x4], distance);
      b[x4] += __shfl_xor_sync(0xffffffffu, b[x4], distance);
    }
  }
  return make_float2((a[0] + a[2]) + (a[1] + a[3]), (b[0] + b[2]) + (b[1] + b[3]));
}

// S^T k and S^T q of one row: half of the threads each, one column a thread.
__device__ void read_state_once(const Areas& s, int64_t key_dim, int begin) {
  const int column = threadIdx.x % kColumns;
  const bool second = threadIdx.x >= kColumns;
  const float* x = second ? s.queries : s.keys + begin * (key_dim + 4);
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t i = 0; i < key_dim; i += 4) {
    const float4 row = four(x + i);
    const float* state = s.state + i * kStateStride + column;
    sum = fmaf(state[0], row.x, sum);
    sum = fmaf(state[kStateStride], row.y, sum);
    sum = fmaf(state[2 * kStateStride], row.z, sum);
    sum = fmaf(state[3 * kStateStride], row.w, sum);
  }
  (second ? s.read : s.kept)[column] = sum;
}

// The same of `count` rows: four of them and two columns a thread.
__device__ void read_state(const Areas& s, int64_t key_dim, int begin, int count) {
  const int column = 2 * (threadIdx.x % 32), first = 4 * (threadIdx.x / 32);
  if (first >= count) return;
  const float *keys[4], *queries[4];
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    keys[t] = s.keys + min(begin + first + t, kChunk - 1) * (key_dim + 4);
    queries[t] = s.queries + (first + t) * (key_dim + 4);
  }
  float2 kept[4], read[4];
#pragma unroll
  for (int t = 0; t < 4; ++t) kept[t] = read[t] = make_float2(0.0f, 0.0f);
#pragma unroll 1
  for (int64_t i = 0; i < key_dim; i += 4) {
    float2 state[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) state[j] = *reinterpret_cast<const float2*>(s.state + (i + j) * kStateStride + column);
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const float4 k = four(keys[t] + i), q = four(queries[t] + i);
      const float key[4] = {k.x, k.y, k.z, k.w}, query[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        kept[t].x = fmaf(state[j].x, key[j], kept[t].x);
        kept[t].y = fmaf(state[j].y, key[j], kept[t].y);
        read[t].x = fmaf(state[j].x, query[j], read[t].x);
        read[t].y = fmaf(state[j].y, query[j], read[t].y);
      }
    }
  }
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    *reinterpret_cast<float2*>(s.kept + (first + t) * kColumns + column) = kept[t];
    *reinterpret_cast<float2*>(s.read + (first + t) * kColumns + column) = read[t];
  }
}

// The keys become exp(G - G_j) k_j of the last row's G.
__device__ void scale_keys(const Areas& s, int64_t key_dim) {
  const float last = s.decay[kChunk - 1];
  for (int i = threadIdx.x; i < kChunk * key_dim; i += kThreads) {
    const int j = static_cast<int>(i / key_dim);
    s.keys[j * (key_dim + 4) + i % key_dim] *= exp_as_host(last - s.decay[j]);
  }
  __syncthreads();
}

// S <- exp(G) S + sum_j k_j delta_j^T of the scaled keys.
__device__ void fold_chunk(const Areas& s, int64_t key_dim) {
  const float now = exp_as_host(s.decay[kChunk - 1]);
  const int column = 2 * (threadIdx.x % 32);
  float2 delta[kChunk];
#pragma unroll
  for (int j = 0; j < kChunk; ++j) delta[j] = *reinterpret_cast<const float2*>(s.deltas + j * kColumns + column);
  for (int64_t i = 4 * (threadIdx.x / 32); i < key_dim; i += 16) {
    float2 sum[4];
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      const float2 old = *reinterpret_cast<const float2*>(s.state + (i + x) * kStateStride + column);
      sum[x] = make_float2(now * old.x, now * old.y);
    }
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      const float4 key = four(s.keys + j * (key_dim + 4) + i);
      const float each[4] = {key.x, key.y, key.z, key.w};
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        sum[x].x = fmaf(each[x], delta[j].x, sum[x].x);
        sum[x].y = fmaf(each[x], delta[j].y, sum[x].y);
      }
    }
#pragma unroll
    for (int x = 0; x < 4; ++x) *reinterpret_cast<float2*>(s.state + (i + x) * kStateStride + column) = sum[x];
  }
}

// exp(G_i - G_j) (x_i . k_j) of the rows at hand and all of the chunk: keys by
// warps 0 and 1, queries by 2 and 3, eight j a warp. Rows and columns that are
// not there give what nobody reads.
__device__ void dot_rows_by_tensor(const Areas& s, int64_t key_dim, int begin, int count) {
  const int stride = static_cast<int>(key_dim) + 4, warp = threadIdx.x / 32, first = warp % 2 * 8;
  const bool query = warp >= 2;
  float sum[4] = {};
  for (int k = 0; k < key_dim; k += 8) {
    multiply_split(sum, left_fragment(query ? s.queries : s.keys, stride, 1, k),
                   right_fragment(s.keys + first * stride, 1, stride, k));
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = result_row(i / 2), j = first + result_column() + i % 2;
    const int t = query ? row : row - begin;
    if (t < 0 || t >= count || j > begin + t) continue;
    (query ? s.qk : s.kk)[t * kChunk + j] = exp_as_host(s.decay[begin + t] - s.decay[j]) * sum[i];
  }
}

// S^T k and S^T q of the rows at hand, sixteen columns a warp.
__device__ void read_state_by_tensor(const Areas& s, int64_t key_dim, int begin, int count) {
  const int stride = static_cast<int>(key_dim) + 4, first = static_cast<int>(threadIdx.x / 32) * 16;
  float kept[2][4] = {}, read[2][4] = {};
  for (int k = 0; k < key_dim; k += 8) {
    const Split<4> keys = left_fragment(s.keys, stride, 1, k), queries = left_fragment(s.queries, stride, 1, k);
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const Split<2> state = right_fragment(s.state + first + 8 * tile, kStateStride, 1, k);
      multiply_split(kept[tile], keys, state);
      multiply_split(read[tile], queries, state);
    }
  }
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = result_row(i / 2), column = first + 8 * tile + result_column() + i % 2;
      if (row >= begin && row < begin + count) s.kept[(row - begin) * kColumns + column] = kept[tile][i];
      if (row < count) s.read[row * kColumns + column] = read[tile][i];
    }
  }
}

// fold_chunk, sixteen columns a warp.
__device__ void fold_chunk_by_tensor(const Areas& s, int64_t key_dim) {
  const int stride = static_cast<int>(key_dim) + 4, first = static_cast<int>(threadIdx.x / 32) * 16;
  const float now = exp_as_host(s.decay[kChunk - 1]);
  Split<2> deltas[2][2];
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) deltas[tile][half] = right_fragment(s.deltas + first + 8 * tile, kColumns, 1, 8 * half);
  }
  for (int row = 0; row < key_dim; row += 16) {
    const Split<4> low = left_fragment(s.keys + row, 1, stride, 0), high = left_fragment(s.keys + row, 1, stride, 8);
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      float sum[4];
      float* at[2];
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        at[pair] = s.state + (row + result_row(pair)) * kStateStride + first + 8 * tile + result_column();
        sum[2 * pair] = now * at[pair][0];
        sum[2 * pair + 1] = now * at[pair][1];
      }
      multiply_split(sum, low, deltas[tile][0]);
      multiply_split(sum, high, deltas[tile][1]);
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) *reinterpret_cast<float2*>(at[pair]) = make_float2(sum[2 * pair], sum[2 * pair + 1]);
    }
  }
}

// kColumns columns of one value head of one span. What several blocks read of
// the pending rows (keys, decays) is not written here but by
// store_pending_kernel, when all have ended. kTensor: products of several rows
// on tensor cores.
template <bool kTensor>
__global__ void __launch_bounds__(kThreads, 3) gated_delta_kernel(GatedDeltaArgs a, const Span* spans, float query_scale) {
  const Span span = spans[blockIdx.y];
  if (span.tokens == 0) return;
  const Areas s(dynamic_shared<float>(), a.key_dim);
  const int64_t slabs = (a.value_dim + kColumns - 1) / kColumns;
  const int64_t head = blockIdx.x / slabs, first_column = blockIdx.x % slabs * kColumns;
  const int columns = static_cast<int>(min(static_cast<int64_t>(kColumns), a.value_dim - first_column));
  const int64_t key_head = head * a.key_heads / a.value_heads;
  const int64_t key_size = a.key_heads * a.key_dim, value_size = a.value_heads * a.value_dim;
  const int64_t row_size = 2 * key_size + value_size;
  const int64_t stride = a.key_dim + 4;
  const int64_t own = head * a.value_dim + first_column;
  float* state = a.state.s + (span.slot * a.value_heads + head) * a.key_dim * a.value_dim + first_column;
  float* deltas = a.state.delta + span.slot * kChunk * value_size + own;
  const float* decays = a.state.decay + span.slot * kChunk * a.value_heads + head;
  const float* old_keys = a.state.k + span.slot * kChunk * key_size + key_head * a.key_dim;

  // All of the state is on its way before anything waits for it.
  const int fours = columns / 4;
  for (int i = threadIdx.x; i < a.key_dim * fours; i += kThreads) {
    const int row = i / fours, column = i % fours * 4;
    float* to = s.state + row * kStateStride + column;
    if (span.position > 0)
      copy_async(to, state + row * a.value_dim + column);
    else
      *reinterpret_cast<float4*>(to) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
  int begin = static_cast<int>(span.position % kChunk);
  for (int i = threadIdx.x; i < begin * columns; i += kThreads)
    s.deltas[i / columns * kColumns + i % columns] = deltas[i / columns * value_size + i % columns];
  for (int i = threadIdx.x; i < begin * a.key_dim; i += kThreads)
    s.keys[i / a.key_dim * stride + i % a.key_dim] = old_keys[i / a.key_dim * key_size + i % a.key_dim];
  for (int j = threadIdx.x; j < begin; j += kThreads) s.decay[j] = decays[j * a.value_heads];

  bool folded = span.position == 0;
  int last_begin = begin;
  for (int64_t first = 0; first < span.tokens;) {
    const int count = static_cast<int>(min(static_cast<int64_t>(kChunk - begin), span.tokens - first));
    const float* qkv = a.qkv + (span.row + first) * row_size;
    last_begin = begin;
    __syncthreads();
    for (int i = threadIdx.x; i < count * fours; i += kThreads) {
      const int t = i / fours, column = i % fours * 4;
      copy_async(s.values + t * kColumns + column, qkv + t * row_size + 2 * key_size + own + column);
    }
    // A vector a half warp: the queries, then the keys.
    for (int i = threadIdx.x / 16; i < 2 * count; i += kThreads / 16) {
      const bool query = i < count;
      const int t = query ? i : i - count;
      l2_normalise(query ? s.queries + t * stride : s.keys + (begin + t) * stride,
                   qkv + t * row_size + key_head * a.key_dim + (query ? 0 : key_size), a.key_dim, query ? query_scale : 1.0f);
    }
    if (static_cast<int>(threadIdx.x) < count) {
      const int64_t row = span.row + first + threadIdx.x;
      s.decay[begin + threadIdx.x] = row_log_decay(a, row, head);
      s.beta[threadIdx.x] = 1.0f / (1.0f + exp_as_host(-a.b[row * a.value_heads + head]));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int i = begin; i < begin + count; ++i) s.decay[i] = (i > 0 ? s.decay[i - 1] : 0.0f) + s.decay[i];
    }
    __syncthreads();
    const bool by_tensor = kTensor && count > 1;
    if (by_tensor) dot_rows_by_tensor(s, a.key_dim, begin, count);
    for (int pair = threadIdx.x / 4; !by_tensor && pair < count * kChunk; pair += kThreads / 4) {
      const int t = pair / kChunk, i = begin + t, j = pair % kChunk;
      // A warp has eight j of one row: it leaves out what no lane needs.
      if (j / 8 * 8 > i) continue;
      const float2 dots = dot_two(s.keys + i * stride, s.queries + t * stride, s.keys + min(j, i) * stride, a.key_dim);
      if (threadIdx.x % 4 != 0 || j > i) continue;
      const float since = exp_as_host(s.decay[i] - s.decay[j]);
      s.kk[t * kChunk + j] = since * dots.x;
      s.qk[t * kChunk + j] = since * dots.y;
    }
    wait_copies();
    __syncthreads();
    if (count == 1)
      read_state_once(s, a.key_dim, begin);
    else if (by_tensor)
      read_state_by_tensor(s, a.key_dim, begin, count);
    else
      read_state(s, a.key_dim, begin, count);
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < columns) {
      float d[kChunk];
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        if (j < begin) d[j] = s.deltas[j * kColumns + threadIdx.x];
      }
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const int t = i - begin;
        if (t < 0 || t >= count) continue;
        float pending = 0.0f;
#pragma unroll
        for (int j = 0; j < kChunk; ++j) {
          if (j < i) pending = fmaf(s.kk[t * kChunk + j], d[j], pending);
        }
        const float now = exp_as_host(s.decay[i]);
        d[i] = s.beta[t] * (fmaf(-now, s.kept[t * kColumns + threadIdx.x], s.values[t * kColumns + threadIdx.x]) - pending);
        s.deltas[i * kColumns + threadIdx.x] = d[i];
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count * kColumns; i += kThreads) {
      const int t = i / kColumns, column = i % kColumns, row = begin + t;
      if (column >= columns) continue;
      float sum = 0.0f;
      for (int j = 0; j <= row; ++j) sum = fmaf(s.qk[t * kChunk + j], s.deltas[j * kColumns + column], sum);
      a.y[(span.row + first + t) * value_size + own + column] = fmaf(exp_as_host(s.decay[row]), s.read[i], sum);
    }
    if (begin + count == kChunk) {
      scale_keys(s, a.key_dim);
      if (kTensor)
        fold_chunk_by_tensor(s, a.key_dim);
      else
        fold_chunk(s, a.key_dim);
      folded = true;
    }
    first += count;
    begin = (begin + count) % kChunk;
  }
  __syncthreads();
  if (folded) {
    for (int i = threadIdx.x; i < a.key_dim * fours; i += kThreads) {
      const int row = i / fours, column = i % fours * 4;
      *reinterpret_cast<float4*>(state + row * a.value_dim + column) = four(s.state + row * kStateStride + column);
    }
  }
  // Rows of the last chunk stay pending. Of a full one they are never read.
  for (int i = last_begin * columns + threadIdx.x; i < begin * columns; i += kThreads)
    deltas[i / columns * value_size + i % columns] = s.deltas[i / columns * kColumns + i % columns];
}

// Of the tokens of each span's last chunk, the normalised keys, one warp a row
// and key head; in the last block of a span, the cumulative decays, one thread
// a value head.
__global__ void store_pending_kernel(GatedDeltaArgs a, const Span* spans) {
  const Span span = spans[blockIdx.y];
  if (span.tokens == 0) return;
  const int64_t key_size = a.key_heads * a.key_dim;
  const int64_t row_size = 2 * key_size + a.value_heads * a.value_dim;
  const int64_t last = span.position + span.tokens - 1, chunk = last / kChunk * kChunk;
  if (blockIdx.x == a.key_heads) {
    float* decays = a.state.decay + span.slot * kChunk * a.value_heads;
    for (int64_t head = threadIdx.x; head < a.value_heads; head += blockDim.x) {
      const int64_t from = max(chunk, span.position);
      float decay = from > chunk ? decays[(from - chunk - 1) * a.value_heads + head] : 0.0f;
      for (int64_t position = from; position <= last; ++position) {
        decay += row_log_decay(a, span.row + position - span.position, head);
        decays[(position - chunk) * a.value_heads + head] = decay;
      }
    }
    return;
  }
  const int64_t row = threadIdx.x / 32, position = chunk + row;
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

void launch_gated_delta(const GatedDeltaArgs& args, const Span* device_spans, bool tensor, cudaStream_t stream) {
  const size_t shared = area_bytes(args.key_dim);
  const auto kernel = tensor ? gated_delta_kernel<true> : gated_delta_kernel<false>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        "shared memory of the gated delta rule");
  const unsigned slabs = blocks_for(args.value_dim, kColumns);
  const dim3 grid(static_cast<unsigned>(args.value_heads) * slabs, static_cast<unsigned>(args.spans.count));
  launch("gated_delta", kernel, grid, kThreads, shared, stream, args, device_spans,
         static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.key_dim))));
  const dim3 pending_grid(static_cast<unsigned>(args.key_heads) + 1, static_cast<unsigned>(args.spans.count));
  launch("store_pending", store_pending_kernel, pending_grid, 32 * kChunk, 0, stream, args, device_spans);
}

}  // namespace pq::cuda
