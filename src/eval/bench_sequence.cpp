// Timed loops over the operations of a step that are no products.
#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "base/random.h"
#include "eval/bench.h"
#include "eval/bench_timing.h"
#include "model/state.h"

namespace pq {
namespace {

constexpr int64_t kMostSlots = 512;

// Buffers of one rank for all operations; rows of `tokens` tokens.
class Sequences {
 public:
  Sequences(const ModelConfig& config, const RuntimeOptions& options, Backend& backend, int ranks, int64_t working_set_bytes)
      : config_(config), options_(options), backend_(backend), shape_(local_shape(config, ranks)), working_set_(working_set_bytes) {
    const int64_t widest = std::max({2 * shape_.attention_width, shape_.conv_channels, config.hidden});
    for (Buffer* area : {&in_, &gate_, &out_}) *area = backend.allocate(4 * options.batch * widest);
    codes_ = backend.allocate(options.batch * (4 * widest + 4 * widest / kBlock) + 256);
    weights_ = random(4 * std::max(widest, config.hidden), 3);
    fill(in_, 1);
    fill(gate_, 2);
  }

  std::function<void(int64_t)> norm(int64_t tokens) {
    const Prepared prepared = coded_form(tokens, config_.hidden);
    return [this, tokens, prepared](int64_t) {
      backend_.rms_norm({.y = out_.as<float>(),
                         .x = in_.as<float>(),
                         .weight = weights_.as<float>(),
                         .rows = tokens,
                         .dim = config_.hidden,
                         .eps = config_.rms_norm_eps,
                         .weight_offset = 1.0f,
                         .prepared = prepared});
    };
  }

  std::function<void(int64_t)> conv(int64_t tokens) {
    slots_ = slots(4 * kConvRows * shape_.conv_channels);
    state_ = backend_.allocate(4 * slots_ * kConvRows * shape_.conv_channels);
    return [this, tokens](int64_t call) {
      const Span span{.row = 0, .tokens = tokens, .position = kDeltaChunk, .slot = call % slots_};
      backend_.causal_conv({.y = out_.as<float>(),
                            .x = in_.as<float>(),
                            .weight = weights_.as<float>(),
                            .state = state_.as<float>(),
                            .channels = shape_.conv_channels,
                            .spans = {&span, 1}});
    };
  }

  // Positions move on with the calls, so that one token in kDeltaChunk folds.
  std::function<void(int64_t)> delta(int64_t tokens) {
    const LayerStateSize size = layer_state_size(config_, options_, config_.heads / shape_.heads);
    slots_ = slots(4 * (size.delta_s + size.delta_k + size.delta_delta + size.delta_decay));
    state_ = backend_.allocate(4 * slots_ * size.delta_s);
    pending_ = backend_.allocate(4 * slots_ * (size.delta_k + size.delta_delta + size.delta_decay));
    return [this, size, tokens](int64_t call) {
      const Span span{.row = 0, .tokens = tokens, .position = kDeltaChunk + call % kDeltaChunk, .slot = call % slots_};
      float* pending = pending_.as<float>();
      backend_.gated_delta({.y = out_.as<float>(),
                            .qkv = in_.as<float>(),
                            .a = gate_.as<float>(),
                            .b = gate_.as<float>(),
                            .a_log = weights_.as<float>(),
                            .dt_bias = weights_.as<float>(),
                            .state = {.s = state_.as<float>(),
                                      .k = pending,
                                      .delta = pending + slots_ * size.delta_k,
                                      .decay = pending + slots_ * (size.delta_k + size.delta_delta)},
                            .key_heads = shape_.key_heads,
                            .value_heads = shape_.value_heads,
                            .key_dim = config_.key_dim,
                            .value_dim = config_.value_dim,
                            .spans = {&span, 1}});
    };
  }

  std::function<void(int64_t)> gated_norm(int64_t tokens) {
    return [this, tokens](int64_t) {
      backend_.gated_rms_norm({.y = out_.as<float>(),
                               .x = in_.as<float>(),
                               .gate = gate_.as<float>(),
                               .weight = weights_.as<float>(),
                               .rows = tokens * shape_.value_heads,
                               .dim = config_.value_dim,
                               .eps = config_.rms_norm_eps});
    };
  }

  // Convolution, delta rule and its norm with rotation in one operation; positions as above.
  std::function<void(int64_t)> layer(int64_t tokens) {
    const LayerStateSize size = layer_state_size(config_, options_, config_.heads / shape_.heads);
    const int64_t pending = size.delta_k + size.delta_delta + size.delta_decay;
    slots_ = slots(4 * (size.delta_s + pending + size.conv));
    state_ = backend_.allocate(4 * slots_ * size.delta_s);
    pending_ = backend_.allocate(4 * slots_ * (pending + size.conv));
    mixed_ = backend_.allocate(4 * options_.batch * shape_.value_width);
    const Prepared prepared = coded_form(tokens, shape_.value_width);
    return [this, size, pending, tokens, prepared](int64_t call) {
      const Span span{.row = 0, .tokens = tokens, .position = kDeltaChunk + call % kDeltaChunk, .slot = call % slots_};
      float* rows = pending_.as<float>();
      backend_.gated_delta_layer({.conv = {.y = out_.as<float>(),
                                           .x = in_.as<float>(),
                                           .weight = weights_.as<float>(),
                                           .state = rows + slots_ * pending,
                                           .channels = shape_.conv_channels,
                                           .spans = {&span, 1}},
                                  .delta = {.y = mixed_.as<float>(),
                                            .qkv = out_.as<float>(),
                                            .a = gate_.as<float>(),
                                            .b = gate_.as<float>(),
                                            .a_log = weights_.as<float>(),
                                            .dt_bias = weights_.as<float>(),
                                            .state = {.s = state_.as<float>(),
                                                      .k = rows,
                                                      .delta = rows + slots_ * size.delta_k,
                                                      .decay = rows + slots_ * (size.delta_k + size.delta_delta)},
                                            .key_heads = shape_.key_heads,
                                            .value_heads = shape_.value_heads,
                                            .key_dim = config_.key_dim,
                                            .value_dim = config_.value_dim,
                                            .spans = {&span, 1}},
                                  .norm = {.y = mixed_.as<float>(),
                                           .x = mixed_.as<float>(),
                                           .gate = gate_.as<float>(),
                                           .weight = weights_.as<float>(),
                                           .rows = tokens * shape_.value_heads,
                                           .dim = config_.value_dim,
                                           .eps = config_.rms_norm_eps,
                                           .prepared = prepared}});
    };
  }

  // Into a cache of the batch's positions, one after the other.
  std::function<void(int64_t)> attention_input(int64_t tokens) {
    slots_ = slots(2 * kv_bytes(options_.batch));
    state_ = backend_.allocate(slots_ * kv_bytes(options_.batch));
    pending_ = backend_.allocate(slots_ * kv_bytes(options_.batch));
    return [this, tokens](int64_t call) {
      const int64_t context = options_.batch;
      const Span span{.row = 0, .tokens = tokens, .position = call % (context - tokens + 1), .slot = call % slots_};
      const auto* kv = gate_.as<float>();
      backend_.attention_input({.q = out_.as<float>(),
                                .q_gate = in_.as<float>(),
                                .k = kv,
                                .v = kv + tokens * shape_.kv_heads * config_.head_dim,
                                .q_norm = weights_.as<float>(),
                                .k_norm = weights_.as<float>(),
                                .inv_freq = weights_.as<float>(),
                                .heads = shape_.heads,
                                .rotary_dim = config_.rotary_dim,
                                .eps = config_.rms_norm_eps,
                                .cache = cache(context),
                                .spans = {&span, 1}});
    };
  }

  // The last of `tokens` tokens sees `depth` positions.
  std::function<void(int64_t)> attention(int64_t tokens, int64_t depth) {
    slots_ = slots(2 * kv_bytes(depth));
    state_ = backend_.allocate(slots_ * kv_bytes(depth));
    pending_ = backend_.allocate(slots_ * kv_bytes(depth));
    return [this, tokens, depth](int64_t call) {
      const Span span{.row = 0, .tokens = tokens, .position = depth - tokens, .slot = call % slots_};
      backend_.attention({.y = out_.as<float>(),
                          .q = in_.as<float>(),
                          .q_gate = gate_.as<float>(),
                          .heads = shape_.heads,
                          .cache = cache(depth),
                          .spans = {&span, 1}});
    };
  }

  // Calls of a train: every state once at least, whole chunks of the delta rule.
  int64_t calls(int64_t tokens) const {
    return tokens > 1 ? 1 : std::min(kMostSlots, (slots_ + kDeltaChunk - 1) / kDeltaChunk * kDeltaChunk);
  }

  int64_t norm_bytes(int64_t tokens) const { return tokens * config_.hidden * 9; }
  int64_t conv_bytes(int64_t tokens) const {
    return 4 * shape_.conv_channels * (2 * tokens + kConvHistory + std::min(tokens, kConvRows) + 4);
  }
  int64_t gated_norm_bytes(int64_t tokens) const { return tokens * 12 * shape_.value_width; }
  // The state read once a chunk and written where a chunk ends; the pending rows that a lone token meets, half of them on average.
  int64_t delta_bytes(int64_t tokens) const {
    const int64_t state = 4 * shape_.value_heads * config_.key_dim * config_.value_dim;
    const int64_t rows = 4 * (shape_.key_width + shape_.value_width);
    const int64_t chunks = std::max<int64_t>(1, tokens / kDeltaChunk);
    return state * chunks + state * tokens / kDeltaChunk + rows * (kDeltaChunk / 2) +
           4 * tokens * (shape_.conv_channels + shape_.value_width);
  }
  // Nothing that passes between the operations.
  int64_t layer_bytes(int64_t tokens) const {
    const int64_t conv = 4 * shape_.conv_channels * (kConvHistory + std::min(tokens, kConvRows) + 4);
    return conv + delta_bytes(tokens) + tokens * shape_.value_width * (options_.activations == ActivationMode::f32 ? 8 : 5);
  }
  int64_t attention_bytes(int64_t tokens, int64_t depth) const {
    return 2 * kv_bytes(depth) + 16 * tokens * shape_.attention_width;
  }
  // Queries read and written, keys and values read and stored; gates stay where they are.
  int64_t attention_input_bytes(int64_t tokens) const {
    return tokens * (8 * shape_.attention_width + 8 * shape_.kv_heads * config_.head_dim) + 2 * kv_bytes(tokens);
  }

 private:
  // Where rows are whole blocks.
  Prepared coded_form(int64_t tokens, int64_t dim) const {
    Prepared prepared{.mode = options_.activations};
    if (dim % kBlock != 0) return prepared;
    if (options_.activations == ActivationMode::f32) {
      prepared.rotated = codes_.as<float>();
    } else {
      prepared.scales = codes_.as<float>();
      prepared.codes = codes_.as<int8_t>() + 4 * tokens * (dim / kBlock);
    }
    return prepared;
  }

  // Keys of so many positions, or values.
  int64_t kv_bytes(int64_t positions) const {
    return shape_.kv_heads * positions * kv_row_bytes(options_.kv_type, config_.head_dim);
  }
  KvCache cache(int64_t context) const {
    return {.type = options_.kv_type,
            .k = state_.data(),
            .v = pending_.data(),
            .kv_heads = shape_.kv_heads,
            .context = context,
            .head_dim = config_.head_dim};
  }

  int64_t slots(int64_t bytes_each) const {
    return std::clamp<int64_t>(working_set_ / std::max<int64_t>(1, bytes_each), 1, kMostSlots);
  }

  void fill(const Buffer& buffer, uint64_t seed) {
    Random random(seed);
    std::vector<float> values(static_cast<size_t>(buffer.bytes() / 4));
    for (float& value : values) value = static_cast<float>(random.uniform() - 0.5);
    backend_.upload(buffer.data(), values.data(), 4 * static_cast<int64_t>(values.size()));
  }
  Buffer random(int64_t floats, uint64_t seed) {
    Buffer buffer = backend_.allocate(4 * floats);
    fill(buffer, seed);
    return buffer;
  }

  const ModelConfig& config_;
  const RuntimeOptions& options_;
  Backend& backend_;
  LocalShape shape_;
  int64_t working_set_;
  int64_t slots_ = 1;
  Buffer in_, gate_, out_, codes_, weights_, state_, pending_, mixed_;
};

}  // namespace

std::vector<BenchRow> bench_sequence(const ModelConfig& config, const RuntimeOptions& options, int slices, Backend& backend,
                                     Communicator& comm, RoofMeter* meter, const std::vector<int64_t>& depths,
                                     int64_t working_set_bytes, int64_t repetitions) {
  DeviceMeasure* device = device_of(backend);
  Sequences sequences(config, options, backend, slices, working_set_bytes);
  std::vector<BenchRow> rows;
  const auto measure = [&](const std::string& name, int64_t tokens, int64_t bytes, const std::function<void(int64_t)>& run) {
    BenchRow row;
    row.name = fmt::format("{}, {} token{}", name, tokens, tokens == 1 ? "" : "s");
    row.bytes = sum_over_ranks(comm, bytes);
    const int64_t calls = sequences.calls(tokens);
    run(0);
    for (int64_t i = 0; i < repetitions; ++i) {
      row.read.push_back(meter->read());
      row.seconds.push_back(timed_on(device, comm,
                                     [&] {
                                       for (int64_t call = 0; call < calls; ++call) run(call);
                                     }) /
                            static_cast<double>(calls));
    }
    rows.push_back(row);
  };
  for (const int64_t tokens : {int64_t{1}, options.batch}) {
    measure("rms_norm with rotation", tokens, sequences.norm_bytes(tokens), sequences.norm(tokens));
    measure("causal_conv", tokens, sequences.conv_bytes(tokens), sequences.conv(tokens));
    measure("gated_delta", tokens, sequences.delta_bytes(tokens), sequences.delta(tokens));
    measure("gated_rms_norm", tokens, sequences.gated_norm_bytes(tokens), sequences.gated_norm(tokens));
    measure("gated_delta_layer", tokens, sequences.layer_bytes(tokens), sequences.layer(tokens));
    measure("attention_input", tokens, sequences.attention_input_bytes(tokens), sequences.attention_input(tokens));
    for (const int64_t depth : depths) {
      const int64_t seen = std::max(depth, tokens);
      measure(fmt::format("attention over {} positions", seen), tokens, sequences.attention_bytes(tokens, seen),
              sequences.attention(tokens, seen));
    }
  }
  return rows;
}

}  // namespace pq
