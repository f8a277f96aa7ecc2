// Operations of the cpu backend that walk the positions of a sequence: convolution, gated delta rule, cache and attention. The
// arithmetic is left to the leaf kernels.
#include <algorithm>
#include <cmath>

#include "base/error.h"
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
    float* state = args.state + span.slot * kConvHistory * channels;
    if (span.position == 0) std::fill(state, state + kConvHistory * channels, 0.0f);
    for (int64_t c = 0; c < channels; c += 16) {
      kernels_.conv({.y = args.y + span.row * channels + c,
                     .x = args.x + span.row * channels + c,
                     .weight = args.weight + 4 * c,
                     .state = state + c,
                     .channels = channels,
                     .width = std::min<int64_t>(16, channels - c),
                     .tokens = span.tokens});
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

// y may be x. cosine_ and sine_ hold the rotation of the current position.
void CpuBackend::norm_and_rotate(const AttentionInputArgs& args, float* y, const float* x, const float* weight) const {
  kernels_.rms(
      {.y = y, .x = x, .weight = weight, .gate = nullptr, .dim = args.cache.head_dim, .eps = args.eps, .weight_offset = 1.0f});
  const int64_t half = args.rotary_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float low = y[i];
    const float high = y[i + half];
    y[i] = low * cosine_[i] - high * sine_[i];
    y[i + half] = high * cosine_[i] + low * sine_[i];
  }
}

void CpuBackend::attention_input(const AttentionInputArgs& args) {
  check_attention_input(args);
  const KvCache& cache = args.cache;
  const int64_t dim = cache.head_dim;
  const int64_t half = args.rotary_dim / 2;
  reserve(&cosine_, half);
  reserve(&sine_, half);
  float* key = reserve(&key_, dim);
  const auto put = [&](void* plane, int64_t offset, const float* x) {
    if (cache.type == KvType::f16) {
      kernels_.store_halves(static_cast<uint16_t*>(plane) + offset, x, dim);
    } else {
      std::copy(x, x + dim, static_cast<float*>(plane) + offset);
    }
  };
  for (int64_t s = 0; s < args.spans.count; ++s) {
    const Span& span = args.spans.data[s];
    for (int64_t t = 0; t < span.tokens; ++t) {
      const int64_t row = span.row + t;
      const int64_t position = span.position + t;
      for (int64_t i = 0; i < half; ++i) {
        // The angle is an fp32 product; double cosines of it are the same on every C library to the last fp32 bit.
        const double angle = static_cast<float>(position) * args.inv_freq[i];
        cosine_[i] = static_cast<float>(std::cos(angle));
        sine_[i] = static_cast<float>(std::sin(angle));
      }
      for (int64_t h = 0; h < args.heads; ++h) {
        const int64_t head = row * args.heads + h;
        norm_and_rotate(args, args.q + head * dim, args.q_gate + head * 2 * dim, args.q_norm);
      }
      for (int64_t h = 0; h < cache.kv_heads; ++h) {
        const int64_t source = (row * cache.kv_heads + h) * dim;
        const int64_t target = ((span.slot * cache.kv_heads + h) * cache.context + position) * dim;
        norm_and_rotate(args, key, args.k + source, args.k_norm);
        put(cache.k, target, key);
        put(cache.v, target, args.v + source);
      }
    }
  }
}

void CpuBackend::attention(const AttentionArgs& args) {
  check_attention(args);
  const KvCache& cache = args.cache;
  const int64_t dim = cache.head_dim;
  const int64_t group = args.heads / cache.kv_heads;
  require(group <= kMaxGroupHeads, "attention: more than 64 query heads share a kv head");
  const int64_t element = cache.type == KvType::f16 ? 2 : 4;
  for (int64_t s = 0; s < args.spans.count; ++s) {
    const Span& span = args.spans.data[s];
    for (int64_t t = 0; t < span.tokens; ++t) {
      const int64_t positions = span.position + t + 1;
      float* scores = reserve(&scores_, group * ((positions + 15) / 16 * 16));
      for (int64_t h = 0; h < cache.kv_heads; ++h) {
        const int64_t head = (span.row + t) * args.heads + h * group;
        const int64_t plane = (span.slot * cache.kv_heads + h) * cache.context * dim * element;
        kernels_.attention({.y = args.y + head * dim,
                            .q = args.q + head * dim,
                            .gate = args.q_gate + head * 2 * dim + dim,
                            .k = static_cast<const char*>(cache.k) + plane,
                            .v = static_cast<const char*>(cache.v) + plane,
                            .type = cache.type,
                            .heads = group,
                            .head_dim = dim,
                            .positions = positions,
                            .scores = scores});
      }
    }
  }
}

}  // namespace pq
