// Chooses the kernels of an instruction set once and walks batches, spans, tiles and units.
#include "kernels/cpu/cpu_backend.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "base/tensor.h"
#include "kernels/check.h"
#include "kernels/cpu/kernels.h"
#include "kernels/encode.h"
#include "kernels/polar.h"
#include "kernels/reference/reference_backend.h"

namespace pq {
namespace {

constexpr int64_t kMaxUnits = 64;

class CpuBackend : public ReferenceBackend {
 public:
  explicit CpuBackend(Isa isa) : isa_(isa), kernels_(kernels_of(isa)) {}
  std::string name() const override { return fmt::format("cpu ({})", isa_name(isa_)); }

  void rms_norm(const RmsNormArgs& args) override;
  void prepare(const PrepareArgs& args) override;
  void linear(const LinearArgs& args) override;
  void silu_mul(const SiluMulArgs& args) override { kernels_.silu_mul(args); }
  void causal_conv(const CausalConvArgs& args) override;
  void gated_delta(const GatedDeltaArgs& args) override;
  void gated_rms_norm(const GatedRmsNormArgs& args) override;
  void attention_input(const AttentionInputArgs& args) override;
  void attention(const AttentionArgs& args) override;
  void polar_encode(const PolarEncodeArgs& args) override { encode_polar(args, isa_); }

 private:
  void sum_codes(const Activation& x);
  void linear_tile(const LinearArgs& args, const IntTable& table, int64_t row, int64_t token, int64_t unit, float* out) const;
  void delta_part(const GatedDeltaArgs& args, const Span& span, int64_t first, int64_t count);
  void norm_and_rotate(const AttentionInputArgs& args, float* y, const float* x, const float* weight) const;

  Isa isa_;
  const Kernels& kernels_;
  // Scratch that grows to the largest call and stays.
  std::vector<int32_t> code_sums_;
  std::vector<float> partial_;
  std::vector<float> queries_;
  std::vector<float> products_;
  std::vector<float> cosine_;
  std::vector<float> sine_;
  std::vector<float> key_;
  std::vector<float> scores_;
};

float* reserve(std::vector<float>* scratch, int64_t count) {
  if (static_cast<int64_t>(scratch->size()) < count) scratch->resize(static_cast<size_t>(count));
  return scratch->data();
}

IntTable make_int_table(const Codebook& book) {
  IntTable table;
  const int64_t half = static_cast<int64_t>(book.int_magnitudes.size());
  for (int64_t m = 0; m < half; ++m) {
    const int value = book.int_magnitudes[m];
    table.low[m] = static_cast<uint8_t>(value & 255);
    table.high[m] = static_cast<uint8_t>(value >> 8);
    table.value[half + m] = static_cast<int16_t>(value);
    table.value[half - 1 - m] = static_cast<int16_t>(-value);
  }
  return table;
}

float softplus(float x) { return x > 20.0f ? x : static_cast<float>(std::log1p(std::exp(static_cast<double>(x)))); }

void CpuBackend::rms_norm(const RmsNormArgs& args) {
  for (int64_t r = 0; r < args.rows; ++r) {
    kernels_.rms({.y = args.y + r * args.dim,
                  .x = args.x + r * args.dim,
                  .weight = args.weight,
                  .gate = nullptr,
                  .dim = args.dim,
                  .eps = args.eps,
                  .weight_offset = args.weight_offset});
  }
}

void CpuBackend::gated_rms_norm(const GatedRmsNormArgs& args) {
  for (int64_t r = 0; r < args.rows; ++r) {
    kernels_.rms({.y = args.y + r * args.dim,
                  .x = args.x + r * args.dim,
                  .weight = args.weight,
                  .gate = args.gate + r * args.dim,
                  .dim = args.dim,
                  .eps = args.eps,
                  .weight_offset = 0.0f});
  }
}

void CpuBackend::prepare(const PrepareArgs& args) {
  check_prepare(args);
  for (int64_t t = 0; t < args.tokens; ++t) kernels_.prepare(args, t);
}

void CpuBackend::sum_codes(const Activation& x) {
  const int64_t blocks = x.tokens * (x.dim / kBlock);
  code_sums_.resize(static_cast<size_t>(blocks));
  for (int64_t b = 0; b < blocks; ++b) {
    int32_t sum = 0;
    for (int64_t i = 0; i < kBlock; ++i) sum += x.codes[b * kBlock + i];
    code_sums_[b] = sum;
  }
}

void CpuBackend::linear_tile(const LinearArgs& args, const IntTable& table, int64_t row, int64_t token, int64_t unit,
                             float* out) const {
  const Matrix& w = args.w;
  const int64_t rows = std::min(kTileRows, w.rows - row);
  const int64_t tokens = std::min(kTileTokens, args.x.tokens - token);
  const int64_t column = unit * w.unit_cols();
  const int64_t dim = args.x.dim;
  if (w.format == WeightFormat::polar && args.x.mode == ActivationMode::int8) {
    const int64_t blocks = w.unit_cols() / kBlock;
    const int64_t index = (unit * w.rows + row) * blocks;
    const int64_t scale = token * (dim / kBlock) + column / kBlock;
    kernels_.polar_tile({.data = static_cast<const uint8_t*>(w.data) + index * coded_block_bytes(w.codebook->bits),
                         .norms = w.scales + index,
                         .codes = args.x.codes + token * dim + column,
                         .scales = args.x.scales + scale,
                         .code_sums = code_sums_.data() + scale,
                         .rows = rows,
                         .tokens = tokens,
                         .blocks = blocks,
                         .code_stride = dim,
                         .scale_stride = dim / kBlock,
                         .bits = w.codebook->bits,
                         .int_step = w.codebook->int_step,
                         .table = &table},
                        out);
    return;
  }
  const float* x = w.format == WeightFormat::polar ? args.x.rotated : args.x.raw;
  kernels_.float_tile(
      {.matrix = &w, .unit = unit, .row = row, .x = x + token * dim + column, .rows = rows, .tokens = tokens, .x_stride = dim},
      out);
}

void CpuBackend::linear(const LinearArgs& args) {
  check_linear(args);
  const Matrix& w = args.w;
  if (args.x.tokens == 0) return;
  IntTable table;
  if (w.format == WeightFormat::polar && args.x.mode == ActivationMode::int8) {
    table = make_int_table(*w.codebook);
    sum_codes(args.x);
  }
  constexpr int64_t kTile = kTileTokens * kTileRows;
  float* partial = reserve(&partial_, kMaxUnits * kTile);
  for (int64_t token = 0; token < args.x.tokens; token += kTileTokens) {
    const int64_t tokens = std::min(kTileTokens, args.x.tokens - token);
    for (int64_t row = 0; row < w.rows; row += kTileRows) {
      const int64_t rows = std::min(kTileRows, w.rows - row);
      for (int64_t unit = 0; unit < w.units; ++unit) linear_tile(args, table, row, token, unit, partial + unit * kTile);
      for (int64_t distance = 1; distance < w.units; distance *= 2) {
        for (int64_t unit = 0; unit < w.units; unit += 2 * distance) {
          float* a = partial + unit * kTile;
          const float* b = partial + (unit + distance) * kTile;
          for (int64_t i = 0; i < tokens * kTileRows; ++i) a[i] += b[i];
        }
      }
      for (int64_t t = 0; t < tokens; ++t) {
        std::copy(partial + t * kTileRows, partial + t * kTileRows + rows, args.y + (token + t) * w.rows + row);
      }
    }
  }
}

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

}  // namespace

const Kernels& kernels_of(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return kAvx512Kernels;
  if (isa == Isa::avx2) return kAvx2Kernels;
#endif
  return kGenericKernels;
}

std::unique_ptr<Backend> make_cpu_backend(Isa isa) {
  if (!isa_supported(isa)) {
    throw Error(ErrorKind::environment, fmt::format("this machine has no {}; its best is {}", isa_name(isa), isa_name(best_isa())));
  }
  return std::make_unique<CpuBackend>(isa);
}

}  // namespace pq
