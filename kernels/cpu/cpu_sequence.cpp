// Operations of the cpu backend that carry a state along a sequence: convolution and gated delta rule. The arithmetic is left to the
// leaf kernels.
#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/cpu/cpu_backend_impl.h"

namespace pq {
namespace {

float softplus(float x) { return x > 20.0f ? x : static_cast<float>(std::log1p(std::exp(static_cast<double>(x)))); }

}  // namespace

void CpuBackend::causal_conv(const CausalConvArgs& args) {
  const int64_t channels = args.channels;
  for (int64_t s = 0; s < args.spans.count; ++s) {
    const Span& span = args.spans.data[s];
    if (span.tokens == 0) continue;
    float* state = args.state + span.slot * kConvRows * channels;
    for (int64_t c = 0; c < channels; c += 16) {
      kernels_.conv({.y = args.y + span.row * channels + c,
                     .x = args.x + span.row * channels + c,
                     .weight = args.weight + 4 * c,
                     .state = state + c,
                     .channels = channels,
                     .width = std::min<int64_t>(16, channels - c),
                     .tokens = span.tokens,
                     .position = span.position});
    }
  }
}

// Rows [first, first + count) of a span, which lie in one chunk.
void CpuBackend::delta_part(const GatedDeltaArgs& args, const Span& span, int64_t first, int64_t count) {
  const int64_t key_size = args.key_heads * args.key_dim;
  const int64_t value_size = args.value_heads * args.value_dim;
  const int64_t row_size = 2 * key_size + value_size;
  const int64_t begin = (span.position + first) % kDeltaChunk;
  const int64_t end = begin + count;
  const float* qkv = args.qkv + (span.row + first) * row_size;
  float* keys = args.state.k + span.slot * kDeltaChunk * key_size;
  float* deltas = args.state.delta + span.slot * kDeltaChunk * value_size;
  float* decays = args.state.decay + span.slot * kDeltaChunk * args.value_heads;
  const float query_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.key_dim)));
  float* queries = reserve(&queries_, kDeltaChunk * args.key_dim);
  float* kk = reserve(&products_, 2 * kDeltaChunk * kDeltaChunk);
  float* qk = kk + kDeltaChunk * kDeltaChunk;
  const int64_t group = args.value_heads / args.key_heads;
  for (int64_t h = 0; h < args.key_heads; ++h) {
    float* key = keys + h * args.key_dim;
    for (int64_t i = begin; i < end; ++i) {
      const float* row = qkv + (i - begin) * row_size + h * args.key_dim;
      float* query = queries + (i - begin) * args.key_dim;
      kernels_.l2_normalise(query, row, args.key_dim, query_scale);
      kernels_.l2_normalise(key + i * key_size, row + key_size, args.key_dim, 1.0f);
      for (int64_t j = 0; j <= i; ++j) {
        kk[i * kDeltaChunk + j] = kernels_.dot(key + i * key_size, key + j * key_size, args.key_dim);
        qk[i * kDeltaChunk + j] = kernels_.dot(query, key + j * key_size, args.key_dim);
      }
    }
    for (int64_t v = h * group; v < (h + 1) * group; ++v) {
      float decay[kDeltaChunk] = {};
      float beta[kDeltaChunk];
      for (int64_t j = 0; j < begin; ++j) decay[j] = decays[j * args.value_heads + v];
      for (int64_t i = begin; i < end; ++i) {
        const int64_t gate = (span.row + first + i - begin) * args.value_heads + v;
        const float g = -kernels_.exp(args.a_log[v]) * softplus(args.a[gate] + args.dt_bias[v]);
        decay[i] = (i > 0 ? decay[i - 1] : 0.0f) + g;
        decays[i * args.value_heads + v] = decay[i];
        beta[i - begin] = 1.0f / (1.0f + kernels_.exp(-args.b[gate]));
      }
      kernels_.delta({.s = args.state.s + (span.slot * args.value_heads + v) * args.key_dim * args.value_dim,
                      .k = key,
                      .k_stride = key_size,
                      .delta = deltas + v * args.value_dim,
                      .delta_stride = value_size,
                      .decay = decay,
                      .q = queries,
                      .q_stride = args.key_dim,
                      .v = qkv + 2 * key_size + v * args.value_dim,
                      .v_stride = row_size,
                      .beta = beta,
                      .kk = kk,
                      .qk = qk,
                      .y = args.y + (span.row + first) * value_size + v * args.value_dim,
                      .y_stride = value_size,
                      .key_dim = args.key_dim,
                      .value_dim = args.value_dim,
                      .begin = begin,
                      .end = end});
    }
  }
}

void CpuBackend::gated_delta(const GatedDeltaArgs& args) {
  check_gated_delta(args);
  for (int64_t s = 0; s < args.spans.count; ++s) {
    const Span& span = args.spans.data[s];
    if (span.tokens > 0 && span.position == 0) {
      const int64_t size = args.value_heads * args.key_dim * args.value_dim;
      std::fill(args.state.s + span.slot * size, args.state.s + (span.slot + 1) * size, 0.0f);
    }
    for (int64_t first = 0; first < span.tokens;) {
      const int64_t room = kDeltaChunk - (span.position + first) % kDeltaChunk;
      const int64_t count = std::min(room, span.tokens - first);
      delta_part(args, span, first, count);
      first += count;
    }
  }
}

}  // namespace pq
