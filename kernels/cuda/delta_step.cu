// One token of each sequence through a Gated DeltaNet layer: convolution, delta rule, gated norm and the coded form in one launch.
// A block of threads takes a value head of a sequence; four warps hold a column of its state a thread, in registers, from the first
// instruction to the last, while two others convolve, normalise and multiply among the pending rows. Blocks that share a key head
// each work it out, and write nothing that another reads: the convolution's input and the pending row go where only later tokens
// look. Spans of several tokens are left to delta.cu.
#include <cmath>

#include "kernels/check.h"
#include "kernels/cuda/delta_rule.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/rows.h"

namespace pq::cuda {
namespace {

constexpr int kChunk = static_cast<int>(kDeltaChunk);
constexpr int kWidest = 128;  // key_dim and value_dim at most
constexpr int kHelpers = 64;
constexpr int kThreads = kWidest + kHelpers;
// Of a row of keys: the two rows that a warp reads at once lie in different banks.
constexpr int kKeyStride = kWidest + 16;

struct Shared {
  float keys[kChunk][kKeyStride];  // the pending ones and the token's own, normalised
  float deltas[kChunk][kWidest];
  float query[kWidest];
  float out[kWidest];     // before the gated norm
  float weight[kWidest];  // of the norm
  float gate[kWidest];    // silu of it
  float kk[kChunk];       // exp(G - G_j) (k . k_j)
  float qk[kChunk];
  float decay[kChunk];  // cumulative
  float beta;
};

// What the convolution of one channel reads.
struct Taps {
  float4 weight;
  float input[kConvRows];  // the oldest first
};

__device__ Taps load_taps(const CausalConvArgs& a, const Span& span, int64_t channel) {
  const float* state = a.state + span.slot * kConvRows * a.channels + channel;
  Taps taps;
  taps.weight = reinterpret_cast<const float4*>(a.weight)[channel];
#pragma unroll
  for (int back = 1; back <= kConvHistory; ++back)
    taps.input[kConvHistory - back] = span.position >= back ? state[(span.position - back) % kConvRows * a.channels] : 0.0f;
  taps.input[kConvHistory] = a.x[span.row * a.channels + channel];
  return taps;
}

// owner: of the blocks that convolve this channel, the one that keeps its input.
__device__ float convolve(const CausalConvArgs& a, const Span& span, int64_t channel, const Taps& taps, bool owner) {
  const float now = taps.input[kConvHistory];
  if (owner) a.state[(span.slot * kConvRows + span.position % kConvRows) * a.channels + channel] = now;
  const float oldest = fmaf(taps.weight.x, taps.input[0], 0.0f);
  return silu(fmaf(taps.weight.w, now, fmaf(taps.weight.z, taps.input[2], fmaf(taps.weight.y, taps.input[1], oldest))));
}

// S <- exp(G) S + sum_j k_j delta_j^T of the scaled keys, by the threads of the columns: four rows and columns each at a time. The
// state comes again from the first level cache, which has just passed it on: registers would have to hold it for a token in
// sixteen.
__device__ void fold(const Shared& s, float* state, int key_dim, int value_dim) {
  const int column = 4 * static_cast<int>(threadIdx.x % 32);
  if (column >= value_dim) return;
  const float now = exp_as_host(s.decay[kChunk - 1]);
  float4 delta[kChunk];
#pragma unroll
  for (int j = 0; j < kChunk; ++j) delta[j] = four(s.deltas[j] + column);
#pragma unroll 1
  for (int i = 4 * static_cast<int>(threadIdx.x / 32); i < key_dim; i += 16) {
    float4 sum[4];
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      const float4 old = four(state + (i + x) * value_dim + column);
      sum[x] = make_float4(now * old.x, now * old.y, now * old.z, now * old.w);
    }
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      const float4 four_keys = four(s.keys[j] + i);
      const float key[4] = {four_keys.x, four_keys.y, four_keys.z, four_keys.w};
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        sum[x] = make_float4(fmaf(key[x], delta[j].x, sum[x].x), fmaf(key[x], delta[j].y, sum[x].y),
                             fmaf(key[x], delta[j].z, sum[x].z), fmaf(key[x], delta[j].w, sum[x].w));
      }
    }
#pragma unroll
    for (int x = 0; x < 4; ++x) *reinterpret_cast<float4*>(state + (i + x) * value_dim + column) = sum[x];
  }
}

// kWhole: both dimensions are kWidest.
template <bool kWhole>
__global__ void __launch_bounds__(kThreads, kWhole ? 2 : 1)
    gated_delta_step_kernel(GatedDeltaLayerArgs a, const Span* spans, float query_scale, bool prepared) {
  alignas(16) __shared__ Shared s;
  const GatedDeltaArgs& d = a.delta;
  const Span span = spans[blockIdx.y];
  const int key_dim = kWhole ? kWidest : static_cast<int>(d.key_dim), value_dim = kWhole ? kWidest : static_cast<int>(d.value_dim);
  const int row = static_cast<int>(span.position % kChunk);
  const int head = static_cast<int>(blockIdx.x), group = static_cast<int>(d.value_heads) / static_cast<int>(d.key_heads);
  const int key_head = head / group;
  const bool owner = head % group == 0;  // of what its key head leaves behind
  const int64_t key_size = d.key_heads * key_dim, value_size = d.value_heads * value_dim;
  const int64_t out_row = span.row * d.value_heads + head;
  float* keys = d.state.k + span.slot * kChunk * key_size + key_head * key_dim;
  float* deltas = d.state.delta + span.slot * kChunk * value_size + head * value_dim;
  float* decays = d.state.decay + span.slot * kChunk * d.value_heads + head;

  const int column = static_cast<int>(threadIdx.x), helper = column - kWidest;
  const bool has_column = column < value_dim;
  float* own = d.state.s + (span.slot * d.value_heads + head) * key_dim * value_dim;
  float state[kWidest];
  float value = 0.0f;
  float step_decay = 0.0f, beta = 0.0f;
  if (helper < 0) {
    // All of the state is on its way before anything waits.
    const int64_t channel = 2 * key_size + head * value_dim + column;
    Taps taps{};
    if (has_column) taps = load_taps(a.conv, span, channel);
#pragma unroll
    for (int first = 0; first < kWidest; first += 16) {
      const bool read = has_column && first < key_dim && span.position > 0;
#pragma unroll
      for (int i = 0; i < 16; ++i) state[first + i] = read ? own[(first + i) * value_dim + column] : 0.0f;
    }
    if (has_column) value = convolve(a.conv, span, channel, taps, true);
  } else {
    // All loads before the first use of one.
    Taps taps[2][2];
    float weight[2], gate[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = half * kHelpers + helper;
      if (i < key_dim) {
        taps[half][0] = load_taps(a.conv, span, key_head * key_dim + i);
        taps[half][1] = load_taps(a.conv, span, key_size + key_head * key_dim + i);
      }
      if (i < value_dim) {
        weight[half] = a.norm.weight[i];
        gate[half] = a.norm.gate[out_row * value_dim + i];
      }
    }
    const float a_log = d.a_log[head], decay_input = d.a[out_row] + d.dt_bias[head], beta_input = d.b[out_row];
    const float earlier = helper < row ? decays[helper * d.value_heads] : 0.0f;
    for (int i = 4 * helper; i < row * key_dim; i += 4 * kHelpers)
      copy_async(s.keys[i / key_dim] + i % key_dim, keys + i / key_dim * key_size + i % key_dim);
    for (int i = 4 * helper; i < row * value_dim; i += 4 * kHelpers)
      copy_async(s.deltas[i / value_dim] + i % value_dim, deltas + i / value_dim * value_size + i % value_dim);
    if (helper < row) s.decay[helper] = earlier;
    if (helper >= 32) {
      step_decay = log_decay(a_log, decay_input);
      beta = 1.0f / (1.0f + exp_as_host(-beta_input));
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = half * kHelpers + helper;
      if (i < value_dim) {
        s.weight[i] = weight[half];
        s.gate[i] = silu(gate[half]);
      }
      if (i >= key_dim) continue;
      s.query[i] = convolve(a.conv, span, key_head * key_dim + i, taps[half][0], owner);
      s.keys[row][i] = convolve(a.conv, span, key_size + key_head * key_dim + i, taps[half][1], owner);
    }
  }
  __syncthreads();
  if (helper == 32) {
    const float decay = (row > 0 ? s.decay[row - 1] : 0.0f) + step_decay;
    s.decay[row] = decay;
    s.beta = beta;
    decays[row * d.value_heads] = decay;
  } else if (helper >= 0 && helper < 32) {
    float* x = helper < 16 ? s.query : s.keys[row];
    l2_normalise(x, x, key_dim, helper < 16 ? query_scale : 1.0f);
  }
  if (helper >= 0) wait_copies();
  __syncthreads();
  float kept = 0.0f, read = 0.0f;
  if (helper < 0) {
#pragma unroll
    for (int i = 0; i < kWidest; i += 4) {
      if (i >= key_dim) break;
      const float4 k = four(s.keys[row] + i), q = four(s.query + i);
      kept = fmaf(state[i + 3], k.w, fmaf(state[i + 2], k.z, fmaf(state[i + 1], k.y, fmaf(state[i], k.x, kept))));
      read = fmaf(state[i + 3], q.w, fmaf(state[i + 2], q.z, fmaf(state[i + 1], q.y, fmaf(state[i], q.x, read))));
    }
  } else {
    // A pending row a half warp.
    for (int first = 0; first <= row; first += kHelpers / 16) {
      const int j = min(first + helper / 16, row);
      const float since = exp_as_host(s.decay[row] - s.decay[j]);
      const float kk = since * dot_lanes(s.keys[row], s.keys[j], key_dim), qk = since * dot_lanes(s.query, s.keys[j], key_dim);
      if (helper % 16 != 0 || first + helper / 16 > row) continue;
      s.kk[j] = kk;
      s.qk[j] = qk;
    }
  }
  __syncthreads();
  if (has_column) {
    float pending = 0.0f, sum = 0.0f;
    for (int j = 0; j < row; ++j) pending = fmaf(s.kk[j], s.deltas[j][column], pending);
    const float now = exp_as_host(s.decay[row]);
    const float delta = s.beta * (fmaf(-now, kept, value) - pending);
    s.deltas[row][column] = delta;
    deltas[row * value_size + column] = delta;
    for (int j = 0; j <= row; ++j) sum = fmaf(s.qk[j], s.deltas[j][column], sum);
    s.out[column] = fmaf(now, read, sum);
  } else if (helper >= 0) {
    for (int i = helper; owner && i < key_dim; i += kHelpers) keys[row * key_size + i] = s.keys[row][i];
    // For the fold, the keys become exp(G - G_j) k_j.
    for (int j = 0; row == kChunk - 1 && j < kChunk; ++j) {
      const float since = exp_as_host(s.decay[row] - s.decay[j]);
      for (int i = helper; i < key_dim; i += kHelpers) s.keys[j][i] *= since;
    }
  }
  __syncthreads();
  if (helper < 0) {
    if (row == kChunk - 1)
      fold(s, own, key_dim, value_dim);
    else if (span.position == 0)
      for (int i = column; i < key_dim * value_dim; i += kWidest) own[i] = 0.0f;
    return;
  }
  if (helper >= 32) return;
  const float root = __fsqrt_rn(__fdiv_rn(dot_lanes(s.out, s.out, value_dim), static_cast<float>(value_dim)) + a.norm.eps);
  if (4 * helper >= value_dim) return;
  const float4 x = four(s.out + 4 * helper), weight = four(s.weight + 4 * helper), gate = four(s.gate + 4 * helper);
  const float4 y =
      make_float4(__fdiv_rn(x.x, root) * (0.0f + weight.x) * gate.x, __fdiv_rn(x.y, root) * (0.0f + weight.y) * gate.y,
                  __fdiv_rn(x.z, root) * (0.0f + weight.z) * gate.z, __fdiv_rn(x.w, root) * (0.0f + weight.w) * gate.w);
  reinterpret_cast<float4*>(a.norm.y + out_row * value_dim)[helper] = y;
  if (prepared) prepare_block(y, helper, a.norm.prepared, out_row);
}

}  // namespace

bool delta_step_fits(const GatedDeltaArgs& args) { return args.key_dim <= kWidest && args.value_dim <= kWidest; }

void launch_gated_delta_step(const GatedDeltaLayerArgs& args, const Span* device_spans, cudaStream_t stream) {
  const GatedDeltaArgs& delta = args.delta;
  const bool prepared = args.norm.prepared.wanted() && delta.value_dim == kBlock;
  const auto kernel =
      delta.key_dim == kWidest && delta.value_dim == kWidest ? gated_delta_step_kernel<true> : gated_delta_step_kernel<false>;
  const dim3 grid(static_cast<unsigned>(delta.value_heads), static_cast<unsigned>(delta.spans.count));
  launch("gated_delta_step", kernel, grid, kThreads, 0, stream, args, device_spans,
         static_cast<float>(1.0 / std::sqrt(static_cast<double>(delta.key_dim))), prepared);
  if (args.norm.prepared.wanted() && !prepared) launch_prepare(prepare_of(args.norm), stream);
}

}  // namespace pq::cuda
