// The step, from tokens to logits, in the order of the Qwen3.5 forward pass.
#include "model/transformer.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <optional>

#include "base/activity.h"
#include "base/error.h"
#include "base/log.h"
#include "model/state.h"
#include "model/weights.h"

namespace pq {
namespace {

// State of one layer for all slots.
struct LayerState {
  DeltaState delta{};
  float* conv = nullptr;
  KvCache kv;
};

// Owners of steps (StepKey).
std::atomic<int64_t> owners{0};

bool is_polar(const Matrix& m) { return m.format == WeightFormat::polar; }

}  // namespace

struct Transformer::Impl {
  ModelConfig config;
  RuntimeOptions options;
  Backend& backend;
  Communicator& comm;
  Weights weights;
  LocalShape shape;
  std::vector<Buffer> buffers;
  int64_t buffer_bytes = 0;
  std::vector<LayerState> states;
  const float* inv_freq = nullptr;

  // Areas of a step; see workspace_size.
  float* hidden = nullptr;
  float* normed = nullptr;
  float* partial = nullptr;
  float* logits = nullptr;
  std::byte* activation_area = nullptr;
  std::byte* inner_area = nullptr;
  float* scratch = nullptr;
  const int64_t owner = ++owners;
  bool pending = false;  // `partial` holds this rank's part of what joins the residual stream next

  std::vector<float> host_staging;     // partial sums of a device that the host cannot address
  std::vector<float> gathered_logits;  // rank 0
  std::vector<float> logit_row;        // rank 0

  Impl(const ModelConfig& c, const RuntimeOptions& o, Backend& b, Communicator& m, WeightSource& source,
       const std::function<void(int64_t)>& progress, bool host_embedding)
      : config(c), options(o), backend(b), comm(m), shape(local_shape(c, m.size())) {
    check_rank_count(config, comm.size());
    weights = load_weights(config, backend, source, comm.rank(), comm.size(), progress, host_embedding);
    allocate_states();
    allocate_workspace();
    upload_inv_freq();
  }

  template <typename T>
  T* allocate(int64_t bytes) {
    buffers.push_back(backend.allocate(bytes));
    buffer_bytes += bytes;
    return buffers.back().as<T>();
  }

  void allocate_states() {
    const LayerStateSize size = layer_state_size(config, options, comm.size());
    for (const LayerKind kind : config.layer_kinds) {
      LayerState state;
      if (kind == LayerKind::delta) {
        state.delta.s = allocate<float>(4 * options.slots * size.delta_s);
        state.delta.k = allocate<float>(4 * options.slots * size.delta_k);
        state.delta.delta = allocate<float>(4 * options.slots * size.delta_delta);
        state.delta.decay = allocate<float>(4 * options.slots * size.delta_decay);
        state.conv = allocate<float>(4 * options.slots * size.conv);
      } else {
        state.kv = {options.kv_type,
                    allocate<void>(options.slots * size.kv),
                    allocate<void>(options.slots * size.kv),
                    shape.kv_heads,
                    options.context,
                    config.head_dim};
      }
      states.push_back(state);
    }
  }

  void allocate_workspace() {
    const WorkspaceSize size = workspace_size(config, options, comm.size());
    hidden = allocate<float>(size.residual);
    normed = hidden + options.batch * config.hidden;
    partial = normed + options.batch * config.hidden;
    activation_area = allocate<std::byte>(size.activation);
    inner_area = allocate<std::byte>(size.inner);
    scratch = allocate<float>(size.scratch);
    logits = allocate<float>(size.logits);
    if (comm.rank() == 0) logit_row.resize(static_cast<size_t>(config.vocab));
    if (comm.rank() == 0 && comm.size() > 1)
      gathered_logits.resize(static_cast<size_t>(kLogitRows * shape.vocab_rows * comm.size()));
  }

  // fp32 throughout, as the reference computes it: theta^(-2i / rotary_dim), then position times that.
  void upload_inv_freq() {
    std::vector<float> table;
    for (int64_t i = 0; i < config.rotary_dim; i += 2) {
      const float exponent = static_cast<float>(i) / static_cast<float>(config.rotary_dim);
      table.push_back(1.0f / std::pow(static_cast<float>(config.rope_theta), exponent));
    }
    float* device = allocate<float>(std::max<int64_t>(4, 4 * static_cast<int64_t>(table.size())));
    backend.upload(device, table.data(), 4 * static_cast<int64_t>(table.size()));
    inv_freq = device;
  }

  void check(const Step& step) const {
    const int64_t tokens = static_cast<int64_t>(step.tokens.size());
    if (tokens > options.batch)
      throw Error(ErrorKind::usage, fmt::format("a step of {} tokens exceeds the batch of {}", tokens, options.batch));
    int64_t row = 0;
    for (const Span& span : step.spans) {
      if (span.row != row || span.tokens < 1 || span.position < 0 || span.slot < 0 || span.slot >= options.slots)
        throw Error(ErrorKind::internal, fmt::format("span of {} tokens at row {}, position {}, slot {} is malformed", span.tokens,
                                                     span.row, span.position, span.slot));
      if (span.position + span.tokens > options.context)
        throw Error(ErrorKind::usage, fmt::format("position {} exceeds the context of {}; start with a larger -c",
                                                  span.position + span.tokens, options.context));
      row += span.tokens;
    }
    if (row != tokens) throw Error(ErrorKind::internal, fmt::format("spans cover {} of {} tokens", row, tokens));
    for (const int32_t id : step.tokens)
      if (id < 0 || id >= config.vocab)
        throw Error(ErrorKind::usage, fmt::format("token id {} is outside the vocabulary of {}", id, config.vocab));
    int32_t previous = -1;
    for (const int32_t index : step.logit_rows) {
      if (index <= previous || index >= tokens)
        throw Error(ErrorKind::internal,
                    fmt::format("logits of row {} asked after those of row {}, of {} tokens", index, previous, tokens));
      previous = index;
    }
  }

  // The coded form of an input [tokens, dim], to lie at `place`; none unless `coded`: a matrix that reads it is PolarQuant-coded.
  Prepared prepared_at(std::byte* place, int64_t tokens, int64_t dim, bool coded) const {
    Prepared area{.mode = options.activations};
    if (!coded) return area;
    if (options.activations == ActivationMode::f32) {
      area.rotated = reinterpret_cast<float*>(place);
    } else {
      area.codes = reinterpret_cast<int8_t*>(place);
      area.scales = reinterpret_cast<float*>(place + (tokens * dim + 255) / 256 * 256);
    }
    return area;
  }

  Activation activation(const float* x, int64_t tokens, int64_t dim, const Prepared& prepared) const {
    return {.mode = options.activations,
            .tokens = tokens,
            .dim = dim,
            .raw = x,
            .rotated = prepared.rotated,
            .codes = prepared.codes,
            .scales = prepared.scales};
  }

  // The norm of the residual stream, which what is pending joins first.
  Activation norm(const float* weight, int64_t tokens, bool coded) {
    RmsNormArgs args{.y = normed,
                     .x = hidden,
                     .weight = weight,
                     .rows = tokens,
                     .dim = config.hidden,
                     .eps = config.rms_norm_eps,
                     .weight_offset = 1.0f,
                     .prepared = prepared_at(activation_area, tokens, config.hidden, coded)};
    if (pending) {
      args.sum = hidden;
      sum_and_norm(args, partial);
    } else {
      backend.rms_norm(args);
    }
    pending = false;
    return activation(normed, tokens, config.hidden, args.prepared);
  }

  // part: this rank's part of what is added before the norm.
  void sum_and_norm(RmsNormArgs args, float* part) {
    args.added = part;
    if (comm.size() > 1) {
      if (comm.try_sum_and_norm(args)) return;
      all_reduce(part, args.rows * args.dim);
    }
    backend.rms_norm(args);
  }

  void linear(float* y, const Activation& x, const Matrix& w) { backend.linear({.y = y, .x = x, .w = w}); }

  void all_reduce(float* data, int64_t count) {
    if (comm.size() == 1) return;
    if (comm.sums_on_device()) {
      comm.all_reduce_sum(data, count);
      return;
    }
    if (backend.host_pointer(buffers.front())) {
      backend.synchronize();
      comm.all_reduce_sum(data, count);
      return;
    }
    host_staging.resize(static_cast<size_t>(count));
    backend.download(host_staging.data(), data, 4 * count);
    comm.all_reduce_sum(host_staging.data(), count);
    backend.upload(data, host_staging.data(), 4 * count);
  }

  void delta_layer(const float* input_norm, const DeltaWeights& w, LayerState& state, int64_t tokens, Spans spans) {
    float* qkv = scratch;
    float* convolved = qkv + tokens * shape.conv_channels;
    float* z = convolved + tokens * shape.conv_channels;
    float* y = z + tokens * shape.value_width;
    float* b = y + tokens * shape.value_width;
    float* a = b + tokens * shape.value_heads;
    const bool coded = is_polar(w.in_proj_qkv) || is_polar(w.in_proj_z) || is_polar(w.in_proj_b) || is_polar(w.in_proj_a);
    const Activation x = norm(input_norm, tokens, coded);
    const LinearArgs projections[] = {{.y = qkv, .x = x, .w = w.in_proj_qkv},
                                      {.y = z, .x = x, .w = w.in_proj_z},
                                      {.y = b, .x = x, .w = w.in_proj_b},
                                      {.y = a, .x = x, .w = w.in_proj_a}};
    backend.linear_group(projections);
    const Prepared area = prepared_at(inner_area, tokens, shape.value_width, is_polar(w.out_proj));
    backend.gated_delta_layer(
        {.conv = {.y = convolved, .x = qkv, .weight = w.conv, .state = state.conv, .channels = shape.conv_channels, .spans = spans},
         .delta = {.y = y,
                   .qkv = convolved,
                   .a = a,
                   .b = b,
                   .a_log = w.a_log,
                   .dt_bias = w.dt_bias,
                   .state = state.delta,
                   .key_heads = shape.key_heads,
                   .value_heads = shape.value_heads,
                   .key_dim = config.key_dim,
                   .value_dim = config.value_dim,
                   .spans = spans},
         .norm = {.y = y,
                  .x = y,
                  .gate = z,
                  .weight = w.norm,
                  .rows = tokens * shape.value_heads,
                  .dim = config.value_dim,
                  .eps = config.rms_norm_eps,
                  .prepared = area}});
    linear(partial, activation(y, tokens, shape.value_width, area), w.out_proj);
  }

  void attention_layer(const float* input_norm, const AttentionWeights& w, LayerState& state, int64_t tokens, Spans spans) {
    float* q_gate = scratch;
    float* k = q_gate + tokens * 2 * shape.attention_width;
    float* v = k + tokens * shape.kv_heads * config.head_dim;
    float* q = v + tokens * shape.kv_heads * config.head_dim;
    float* y = q + tokens * shape.attention_width;
    const Activation x = norm(input_norm, tokens, is_polar(w.q_proj) || is_polar(w.k_proj) || is_polar(w.v_proj));
    const LinearArgs projections[] = {
        {.y = q_gate, .x = x, .w = w.q_proj}, {.y = k, .x = x, .w = w.k_proj}, {.y = v, .x = x, .w = w.v_proj}};
    backend.linear_group(projections);
    backend.attention_input({.q = q,
                             .q_gate = q_gate,
                             .k = k,
                             .v = v,
                             .q_norm = w.q_norm,
                             .k_norm = w.k_norm,
                             .inv_freq = inv_freq,
                             .heads = shape.heads,
                             .rotary_dim = config.rotary_dim,
                             .eps = config.rms_norm_eps,
                             .cache = state.kv,
                             .spans = spans});
    const Prepared area = prepared_at(inner_area, tokens, shape.attention_width, is_polar(w.o_proj));
    backend.attention(
        {.y = y, .q = q, .q_gate = q_gate, .heads = shape.heads, .cache = state.kv, .spans = spans, .prepared = area});
    linear(partial, activation(y, tokens, shape.attention_width, area), w.o_proj);
  }

  void mlp(const LayerWeights& w, int64_t tokens) {
    float* inner = scratch;
    const Activation x = norm(w.post_norm, tokens, is_polar(w.gate_proj) || is_polar(w.up_proj));
    const Prepared area = prepared_at(inner_area, tokens, shape.intermediate, is_polar(w.down_proj));
    backend.swiglu({.y = inner, .x = x, .gate = w.gate_proj, .up = w.up_proj, .prepared = area});
    linear(partial, activation(inner, tokens, shape.intermediate, area), w.down_proj);
  }

  void run(const Step& step, const std::function<void(int64_t, const float*)>& consume) {
    check(step);
    const int64_t tokens = static_cast<int64_t>(step.tokens.size());
    if (tokens == 0) return;
    begin_step(step.tokens.size() == step.spans.size() ? Phase::decode : Phase::prefill);
    const std::vector<int32_t>& rows = step.logit_rows;
    const int64_t wanted = static_cast<int64_t>(rows.size());
    StepArgs args{.ids = step.tokens.data(),
                  .tokens = tokens,
                  .spans = {step.spans.data(), static_cast<int64_t>(step.spans.size())},
                  .key = {}};
    // Sums that pass through the host cannot be done again by a device alone; rows that do not follow each other are no key.
    const bool on_device = comm.size() == 1 || comm.sums_on_device();
    if (on_device && wanted <= kLogitRows && (wanted == 0 || rows.back() - rows.front() + 1 == wanted))
      args.key = {.owner = owner, .tokens = tokens, .first_logits = wanted == 0 ? 0 : rows.front(), .logits = wanted};
    // Before and behind the body, and instead of it, a backend may let its device run sums that wait for other ranks.
    const int launching = comm.sums_on_device() ? kWaitsForAny : kWaitsForNobody;
    wait_for_rank(launching);
    const std::string remark = backend.run_step(args, [&] {
      wait_for_rank(kWaitsForNobody);
      layers(args);
      if (wanted <= kLogitRows) compute_logits(rows.data(), wanted);
      wait_for_rank(launching);
    });
    wait_for_rank(kWaitsForNobody);
    if (!remark.empty()) log_line(remark);
    enter_layer(-1);
    // Final norm and head for the wanted rows, kLogitRows at a time, gathered on rank 0.
    for (int64_t first = 0; first < wanted; first += kLogitRows) {
      const int64_t count = std::min(kLogitRows, wanted - first);
      if (wanted > kLogitRows) compute_logits(rows.data() + first, count);
      deliver(count, [&](int64_t i, const float* row) { consume(rows[static_cast<size_t>(first + i)], row); });
    }
  }

  void layers(const StepArgs& step) {
    const int64_t tokens = step.tokens;
    backend.embed({.y = hidden, .ids = step.ids, .tokens = tokens, .table = weights.embed, .first_row = weights.vocab_first});
    all_reduce(hidden, tokens * config.hidden);
    pending = false;
    for (int64_t layer = 0; layer < config.layers; ++layer) {
      enter_layer(layer);
      const LayerWeights& w = weights.layers[static_cast<size_t>(layer)];
      LayerState& state = states[static_cast<size_t>(layer)];
      if (config.layer_kinds[static_cast<size_t>(layer)] == LayerKind::delta)
        delta_layer(w.input_norm, w.delta, state, tokens, step.spans);
      else
        attention_layer(w.input_norm, w.attention, state, tokens, step.spans);
      pending = true;
      mlp(w, tokens);
      pending = true;
    }
    enter_layer(-1);
  }

  // What is pending joins the residual stream in the wanted rows alone: nobody reads the others.
  void compute_logits(const int32_t* rows, int64_t count) {
    if (count == 0) return;
    const Prepared area = prepared_at(activation_area, count, config.hidden, is_polar(weights.head));
    for (int64_t i = 0, run = 0; i < count; i += run) {
      // A run of consecutive rows at once.
      for (run = 1; i + run < count && rows[i + run] == rows[i] + run;) ++run;
      const int64_t from = rows[i] * config.hidden, to = i * config.hidden;
      Prepared part = area;
      if (area.rotated != nullptr) part.rotated += to;
      if (area.codes != nullptr) {
        part.codes += to;
        part.scales += to / kBlock;
      }
      sum_and_norm({.y = normed + to,
                    .x = hidden + from,
                    .weight = weights.norm,
                    .rows = run,
                    .dim = config.hidden,
                    .eps = config.rms_norm_eps,
                    .weight_offset = 1.0f,
                    .prepared = part,
                    .sum = normed + to},
                   partial + from);
    }
    if (weights.head.rows > 0) linear(logits, activation(normed, count, config.hidden, area), weights.head);
  }

  void deliver(int64_t count, const std::function<void(int64_t, const float*)>& consume) {
    const int64_t local = count * shape.vocab_rows;
    const float* source = logits;
    {
      // The sums that were put on the device end when every rank has come to them.
      std::optional<CollectiveScope> sums;
      if (comm.sums_on_device()) {
        sums.emplace(Collective::all_reduce);
        wait_for_rank(kWaitsForAny);
      }
      if (!backend.host_pointer(buffers.front())) {
        host_staging.resize(static_cast<size_t>(local));
        backend.download(host_staging.data(), logits, 4 * local);
        source = host_staging.data();
      }
      backend.synchronize();
    }
    if (comm.size() == 1) {
      for (int64_t i = 0; i < count; ++i) consume(i, source + i * config.vocab);
      return;
    }
    comm.gather(source, 4 * local, comm.rank() == 0 ? gathered_logits.data() : nullptr);
    if (comm.rank() != 0) return;
    // Ranks beyond the pieces of the vocabulary own no rows: every (ranks / owners)-th rank holds the next ones.
    const int64_t owners = config.vocab / shape.vocab_rows;
    const int64_t stride = comm.size() / owners;
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t owner = 0; owner < owners; ++owner)
        std::memcpy(logit_row.data() + owner * shape.vocab_rows,
                    gathered_logits.data() + (owner * stride * count + i) * shape.vocab_rows,
                    static_cast<size_t>(4 * shape.vocab_rows));
      consume(i, logit_row.data());
    }
  }
};

Transformer::Transformer(const ModelConfig& config, const RuntimeOptions& options, Backend& backend, Communicator& comm,
                         WeightSource& source, const std::function<void(int64_t)>& progress, bool host_embedding)
    : impl_(std::make_unique<Impl>(config, options, backend, comm, source, progress, host_embedding)) {}

Transformer::~Transformer() = default;

void Transformer::run(const Step& step, const std::function<void(int64_t, const float*)>& consume) { impl_->run(step, consume); }
const ModelConfig& Transformer::config() const { return impl_->config; }
const RuntimeOptions& Transformer::options() const { return impl_->options; }
int64_t Transformer::allocated_bytes() const { return impl_->weights.bytes + impl_->buffer_bytes; }

}  // namespace pq
