// The catalogue of tensors with their cuts, and the memory plan.
#include "model/partition.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "comm/communicator.h"
#include "kernels/device_memory.h"
#include "model/state.h"

namespace pq {
namespace {

// Code and libraries (about 40 MB resident with Open MPI), the tokenizer (100 MB for 248k entries), stacks.
constexpr int64_t kProcessBytes = 150'000'000;

// A row-parallel matrix is cut in whole 128-blocks where its inputs are made of them.
bool inputs_divide(int64_t inputs, int64_t units) {
  return inputs % kBlock == 0 ? (inputs / kBlock) % units == 0 : inputs % units == 0;
}

bool units_fit(const ModelConfig& c, int64_t units) {
  return c.key_heads % units == 0 && c.heads % units == 0 && (c.kv_heads % units == 0 || units % c.kv_heads == 0) &&
         inputs_divide(c.intermediate, units) && inputs_divide(c.value_width(), units) &&
         inputs_divide(c.heads * c.head_dim, units);
}

class SpecBuilder {
 public:
  SpecBuilder(const ModelConfig& config, std::vector<TensorSpec>* out) : config_(config), units_(model_units(config)), out_(out) {}

  void global(const std::string& name, int64_t rows, int64_t cols, int64_t shard) {
    TensorSpec spec = make(name, name, rows, cols);
    spec.shard = shard;
    if (cols > 1) {
      spec.split = Split::rows;
      spec.matrix = true;
      spec.pieces = units_;
      while (rows % spec.pieces != 0) spec.pieces /= 2;
    }
    out_->push_back(spec);
  }

  void begin_layer(int64_t layer) {
    prefix_ = "layers." + std::to_string(layer) + ".";
    shard_ = layer + 1;
  }

  void norm(const char* name, int64_t length) { layer_tensor(name, name, length, 1); }

  TensorSpec& column_parallel(const char* name, int64_t rows, int64_t cols) {
    TensorSpec& spec = layer_tensor(name, name, rows, cols);
    spec.split = Split::rows;
    spec.pieces = units_;
    spec.matrix = true;
    return spec;
  }

  void row_parallel(const char* name, int64_t rows, int64_t cols) {
    TensorSpec& spec = layer_tensor(name, name, rows, cols);
    spec.split = Split::cols;
    spec.pieces = units_;
    spec.matrix = true;
  }

  void kv(const char* name, int64_t rows, int64_t cols) {
    TensorSpec& spec = column_parallel(name, rows, cols);
    spec.pieces = std::min(units_, config_.kv_heads);
    spec.shared = true;
  }

  // Kept in its own dtype, cut by heads.
  TensorSpec& by_head(const char* name, int64_t rows, int64_t cols) {
    TensorSpec& spec = layer_tensor(name, name, rows, cols);
    spec.split = Split::rows;
    spec.pieces = units_;
    return spec;
  }

  // Part `part` (q, k or v) of a fused tensor whose rows are q rows, k rows, v rows: each part is cut on its own.
  TensorSpec& fused_part(const char* source, const char* part, int64_t first_row, int64_t rows, std::vector<int64_t> source_shape) {
    TensorSpec& spec = layer_tensor(part, source, rows, source_shape.back());
    spec.source_row = first_row;
    spec.source_shape = std::move(source_shape);
    spec.split = Split::rows;
    spec.pieces = units_;
    return spec;
  }

 private:
  static TensorSpec make(const std::string& name, const std::string& source, int64_t rows, int64_t cols) {
    TensorSpec spec;
    spec.name = name;
    spec.source = source;
    spec.rows = rows;
    spec.cols = cols;
    spec.source_shape = cols == 1 ? std::vector<int64_t>{rows} : std::vector<int64_t>{rows, cols};
    spec.tensor_class = name.substr(0, name.rfind(".weight"));
    return spec;
  }

  TensorSpec& layer_tensor(const std::string& name, const std::string& source, int64_t rows, int64_t cols) {
    TensorSpec spec = make(prefix_ + name, prefix_ + source, rows, cols);
    spec.tensor_class = name.substr(0, name.rfind(".weight"));
    spec.shard = shard_;
    out_->push_back(spec);
    return out_->back();
  }

  const ModelConfig& config_;
  int64_t units_;
  std::vector<TensorSpec>* out_;
  std::string prefix_;
  int64_t shard_ = 0;
};

void add_delta(SpecBuilder& b, const ModelConfig& c) {
  const int64_t kd = c.key_width();
  const int64_t vd = c.value_width();
  const int64_t channels = c.conv_channels();
  const struct {
    const char* projection;
    const char* conv;
    int64_t first;
    int64_t rows;
  } parts[] = {{"linear_attn.in_proj_q.weight", "linear_attn.conv1d_q.weight", 0, kd},
               {"linear_attn.in_proj_k.weight", "linear_attn.conv1d_k.weight", kd, kd},
               {"linear_attn.in_proj_v.weight", "linear_attn.conv1d_v.weight", 2 * kd, vd}};
  for (const auto& part : parts)
    b.fused_part("linear_attn.in_proj_qkv.weight", part.projection, part.first, part.rows, {channels, c.hidden}).matrix = true;
  b.column_parallel("linear_attn.in_proj_z.weight", vd, c.hidden);
  b.by_head("linear_attn.in_proj_b.weight", c.value_heads, c.hidden);
  b.by_head("linear_attn.in_proj_a.weight", c.value_heads, c.hidden);
  for (const auto& part : parts) b.fused_part("linear_attn.conv1d.weight", part.conv, part.first, part.rows, {channels, 1, 4});
  b.by_head("linear_attn.dt_bias", c.value_heads, 1);
  b.by_head("linear_attn.A_log", c.value_heads, 1);
  b.norm("linear_attn.norm.weight", c.value_dim);
  b.row_parallel("linear_attn.out_proj.weight", c.hidden, vd);
}

void add_attention(SpecBuilder& b, const ModelConfig& c) {
  const int64_t width = c.heads * c.head_dim;
  b.column_parallel("self_attn.q_proj.weight", 2 * width, c.hidden);
  b.kv("self_attn.k_proj.weight", c.kv_heads * c.head_dim, c.hidden);
  b.kv("self_attn.v_proj.weight", c.kv_heads * c.head_dim, c.hidden);
  b.norm("self_attn.q_norm.weight", c.head_dim);
  b.norm("self_attn.k_norm.weight", c.head_dim);
  b.row_parallel("self_attn.o_proj.weight", c.hidden, width);
}

}  // namespace

int64_t model_units(const ModelConfig& config) {
  for (const int64_t units : {8, 4, 2})
    if (units_fit(config, units)) return units;
  return 1;
}

std::vector<int> legal_rank_counts(const ModelConfig& config) {
  std::vector<int> counts;
  for (int ranks = 1; ranks <= model_units(config); ranks *= 2) counts.push_back(ranks);
  return counts;
}

void check_rank_count(const ModelConfig& config, int ranks) {
  const std::vector<int> legal = legal_rank_counts(config);
  if (std::find(legal.begin(), legal.end(), ranks) != legal.end()) return;
  throw Error(
      ErrorKind::usage,
      fmt::format("{} ranks cannot share this model: its {} key heads, {} query heads and {} down_proj inputs divide evenly over "
                  "{} ranks only; start it with one of these counts",
                  ranks, config.key_heads, config.heads, config.intermediate, fmt::join(legal, ", ")));
}

std::vector<TensorSpec> tensor_specs(const ModelConfig& config) {
  std::vector<TensorSpec> specs;
  SpecBuilder builder(config, &specs);
  builder.global("embed_tokens.weight", config.vocab, config.hidden, 0);
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    builder.begin_layer(layer);
    builder.norm("input_layernorm.weight", config.hidden);
    if (config.layer_kinds[static_cast<size_t>(layer)] == LayerKind::delta)
      add_delta(builder, config);
    else
      add_attention(builder, config);
    builder.norm("post_attention_layernorm.weight", config.hidden);
    builder.column_parallel("mlp.gate_proj.weight", config.intermediate, config.hidden);
    builder.column_parallel("mlp.up_proj.weight", config.intermediate, config.hidden);
    builder.row_parallel("mlp.down_proj.weight", config.hidden, config.intermediate);
  }
  builder.global("norm.weight", config.hidden, 1, config.layers + 1);
  if (!config.tied) builder.global("lm_head.weight", config.vocab, config.hidden, config.layers + 1);
  return specs;
}

PieceRange owned_pieces(const TensorSpec& spec, int rank, int ranks) {
  if (spec.split == Split::replicated) return {0, 1};
  if (ranks <= spec.pieces) {
    const int64_t count = spec.pieces / ranks;
    return {rank * count, count};
  }
  const int64_t sharers = ranks / spec.pieces;
  return {rank / sharers, spec.shared || rank % sharers == 0 ? 1 : 0};
}

int64_t weight_bytes(const ModelConfig& config, const WeightSource& source, int rank, int ranks) {
  int64_t bytes = 0;
  for (const TensorSpec& spec : tensor_specs(config))
    bytes += source.info(spec).bytes / spec.pieces * owned_pieces(spec, rank, ranks).count;
  return bytes;
}

int64_t embedding_bytes(const ModelConfig& config, const WeightSource& source, int rank, int ranks) {
  for (const TensorSpec& spec : tensor_specs(config)) {
    if (spec.name == "embed_tokens.weight") return source.info(spec).bytes / spec.pieces * owned_pieces(spec, rank, ranks).count;
  }
  return 0;
}

MemoryPlan plan_rank(const ModelConfig& config, const RuntimeOptions& options, const WeightSource& source, int rank, int ranks,
                     int64_t memory_limit) {
  const int64_t weights = weight_bytes(config, source, rank, ranks);
  MemoryPlan plan = plan_memory(config, options, rank, ranks, weights, memory_limit, source.loading_bytes());
  if (options.place == Place::host || config.tied || memory_limit == 0) return plan;
  const int64_t embedding = embedding_bytes(config, source, rank, ranks);
  MemoryPlan moved = plan_memory(config, options, rank, ranks, weights - embedding, memory_limit, source.loading_bytes());
  moved.host_embedding = embedding;
  if (plan.total() > memory_limit) return moved;
  // A longer context would move it.
  plan.largest_context = moved.largest_context;
  return plan;
}

namespace {

// plan_memory but for the largest context.
MemoryPlan plan_of(const ModelConfig& config, const RuntimeOptions& options, int rank, int ranks, int64_t weight_bytes,
                   int64_t loading_bytes) {
  const LayerStateSize layer = layer_state_size(config, options, ranks);
  const int64_t attention_layers = std::count(config.layer_kinds.begin(), config.layer_kinds.end(), LayerKind::attention);
  const int64_t delta_layers = config.layers - attention_layers;
  MemoryPlan plan;
  plan.weights = weight_bytes;
  plan.kv_cache = attention_layers * options.slots * 2 * layer.kv;
  plan.delta_state = delta_layers * options.slots * 4 * (layer.delta_s + layer.delta_k + layer.delta_delta + layer.delta_decay);
  plan.conv_state = delta_layers * options.slots * 4 * layer.conv;
  plan.workspace = workspace_size(config, options, ranks).total();
  // The gathered rows of logits and one whole row stand on rank 0; the exchange between ranks has a window of all of them, taken to
  // be on one node.
  const int64_t logits =
      rank == 0 ? (ranks > 1 ? kLogitRows * local_shape(config, ranks).vocab_rows * ranks : 0) + config.vocab : 0;
  if (options.place == Place::host) {
    plan.communication = 4 * logits + (ranks > 1 ? ranks * kWindowRankBytes : 0);
    plan.process = kProcessBytes;
  } else {
    plan.workspace += device_workspace_bytes(config, options, ranks);
    // State and the rest of the workspace are taken when the weights are there.
    const int64_t while_loading = device_fixed_bytes(options.cublas) + loading_bytes + kDeviceBounceBytes;
    plan.workspace = std::max(plan.workspace, while_loading - plan.kv_cache - plan.delta_state - plan.conv_state);
    if (ranks > 1) plan.communication = push_sum_bytes(ranks) + (options.nccl ? kNcclBytes : 0);
    plan.graphs = kDeviceGraphBytes;
    plan.process = device_context_bytes(options.cublas);
  }
  return plan;
}

}  // namespace

MemoryPlan plan_memory(const ModelConfig& config, const RuntimeOptions& options, int rank, int ranks, int64_t weight_bytes,
                       int64_t memory_limit, int64_t loading_bytes) {
  MemoryPlan plan = plan_of(config, options, rank, ranks, weight_bytes, loading_bytes);
  const auto fits = [&](int64_t context) {
    RuntimeOptions other = options;
    other.context = context;
    if (other.asked_batch > 0) other.batch = std::min(other.asked_batch, context * other.slots);
    return plan_of(config, other, rank, ranks, weight_bytes, loading_bytes).total() <= memory_limit;
  };
  // No item shrinks by more than another grows with the context.
  int64_t most = config.max_position, least = 0;
  while (memory_limit > 0 && least < most) {
    const int64_t middle = least + (most - least + 1) / 2;
    if (fits(middle))
      least = middle;
    else
      most = middle - 1;
  }
  plan.largest_context = most;
  return plan;
}

}  // namespace pq
