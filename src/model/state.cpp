// Sizes of state.h.
#include "model/state.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "kernels/device_memory.h"

namespace pq {
namespace {

int64_t vocab_pieces(const ModelConfig& config) {
  int64_t pieces = model_units(config);
  while (config.vocab % pieces != 0) pieces /= 2;
  return pieces;
}

}  // namespace

LocalShape local_shape(const ModelConfig& config, int ranks) {
  LocalShape s{};
  s.heads = config.heads / ranks;
  s.kv_heads = std::max<int64_t>(1, config.kv_heads / ranks);
  s.key_heads = config.key_heads / ranks;
  s.value_heads = config.value_heads / ranks;
  s.intermediate = config.intermediate / ranks;
  s.key_width = s.key_heads * config.key_dim;
  s.value_width = s.value_heads * config.value_dim;
  s.conv_channels = 2 * s.key_width + s.value_width;
  s.attention_width = s.heads * config.head_dim;
  s.vocab_rows = config.vocab / std::min<int64_t>(ranks, vocab_pieces(config));
  return s;
}

LayerStateSize layer_state_size(const ModelConfig& config, const RuntimeOptions& options, int ranks) {
  if (options.kv_type == KvType::q8 && config.head_dim % kKvGroup != 0)
    throw Error(ErrorKind::usage,
                fmt::format("a q8 cache needs heads of a multiple of {}, this model's have {}; take --kv-type f16", kKvGroup,
                            config.head_dim));
  const LocalShape s = local_shape(config, ranks);
  LayerStateSize size{};
  size.delta_s = s.value_heads * config.key_dim * config.value_dim;
  size.delta_k = kDeltaChunk * s.key_width;
  size.delta_delta = kDeltaChunk * s.value_width;
  size.delta_decay = kDeltaChunk * s.value_heads;
  size.conv = kConvRows * s.conv_channels;
  size.kv = s.kv_heads * options.context * kv_row_bytes(options.kv_type, config.head_dim);
  return size;
}

// qkv before and after convolution, z, a, b, y.
int64_t delta_scratch_floats(const LocalShape& s) { return 2 * s.conv_channels + 2 * s.value_width + 2 * s.value_heads; }

// q with gate, k, v, q, y.
int64_t attention_scratch_floats(const LocalShape& s, const ModelConfig& config) {
  return 4 * s.attention_width + 2 * s.kv_heads * config.head_dim;
}

// gate, up.
int64_t mlp_scratch_floats(const LocalShape& s) { return s.intermediate; }

int64_t device_workspace_bytes(const ModelConfig& config, const RuntimeOptions& options, int ranks) {
  const LocalShape s = local_shape(config, ranks);
  const int64_t units = model_units(config) / ranks;
  const int64_t products = options.batch * std::max(units > 1 ? units * config.hidden : 0, s.intermediate);
  // A shorter context may hold more tokens at once, but no more floats than either of these.
  const int64_t part = attention_part_floats(s.heads, config.head_dim, options.context);
  const int64_t attention = std::max(part, std::min(kAttentionPartFloats, options.batch * part));
  const int64_t widest = std::max({config.hidden, s.intermediate, s.value_width, s.attention_width});
  return device_fixed_bytes(options.cublas) + (options.cublas ? wide_input_bytes(options.batch, widest) : 0) +
         4 * std::max(products, attention);
}

WorkspaceSize workspace_size(const ModelConfig& config, const RuntimeOptions& options, int ranks) {
  const LocalShape s = local_shape(config, ranks);
  const int64_t f32 = 4;
  WorkspaceSize size{};
  size.residual = 3 * options.batch * config.hidden * f32;
  const auto prepared = [&](int64_t width) {
    const int64_t blocks = (width + kBlock - 1) / kBlock;
    return options.batch * (options.activations == ActivationMode::f32 ? width * f32 : width + blocks * f32) + 256;
  };
  size.activation = prepared(config.hidden);
  size.inner = prepared(std::max({s.intermediate, s.value_width, s.attention_width}));
  size.scratch =
      options.batch * f32 * std::max({delta_scratch_floats(s), attention_scratch_floats(s, config), mlp_scratch_floats(s)});
  size.logits = kLogitRows * s.vocab_rows * f32;
  return size;
}

}  // namespace pq
