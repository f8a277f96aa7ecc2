// The report of plan.h.
#include "app/plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "app/model_loading.h"
#include "base/error.h"
#include "base/file.h"
#include "model/geometry.h"
#include "store/open_weights.h"
#include "store/quantize_source.h"

namespace pq {
namespace {

using Json = nlohmann::ordered_json;

// Weights that are not there yet: what a recipe would make of a checkpoint.
class PlannedSource : public WeightSource {
 public:
  explicit PlannedSource(const Recipe& recipe) : recipe_(recipe) {}

  WeightInfo info(const TensorSpec& spec) const override {
    Encoding encoding{.format = WeightFormat::f32};
    if (spec.matrix) {
      const Policy::Choice choice = recipe_.policy.choose(spec.name);
      encoding = choice.encoding;
      const bool blocks = encoding.format == WeightFormat::polar || encoding.format == WeightFormat::int4;
      if (blocks && piece_cols(spec) % kBlock != 0) {
        if (choice.asked) {
          throw Error(ErrorKind::input, fmt::format("\"{}\" has {} inputs a piece, no multiple of {}: {} is impossible for it",
                                                    spec.name, piece_cols(spec), kBlock, encoding_name(encoding)));
        }
        encoding = {.format = WeightFormat::bf16};
      }
    }
    return weight_info(spec, encoding, nullptr);
  }
  void load(const TensorSpec&, int64_t, int64_t, void*, uint16_t*, uint16_t*) override {
    throw Error(ErrorKind::internal, "a planned source has no weights");
  }
  std::string description() const override { return "planned, " + recipe_.policy.text(); }

 private:
  Recipe recipe_;
};

bool holds_weights(const std::string& directory) {
  if (path_exists(directory + "/manifest.json")) return true;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.path().extension() == ".safetensors") return true;
  }
  return false;
}

struct Range {
  int64_t first = 0;
  int64_t count = 0;
};

std::string range_text(const Range& range) {
  return range.count == 0 ? "none" : fmt::format("{}-{}", range.first, range.first + range.count - 1);
}

// One rank's part, in the terms of the model.
std::vector<std::pair<const char*, Range>> partition(const ModelConfig& config, int rank, int ranks) {
  const auto share = [&](int64_t total) { return Range{total * rank / ranks, total * (rank + 1) / ranks - total * rank / ranks}; };
  const auto owned = [&](const std::string& name) {
    for (const TensorSpec& spec : tensor_specs(config)) {
      if (spec.name != name) continue;
      const PieceRange pieces = owned_pieces(spec, rank, ranks);
      return Range{spec.rows / spec.pieces * pieces.first, spec.rows / spec.pieces * pieces.count};
    }
    return Range{};
  };
  const Range kv = ranks <= config.kv_heads ? share(config.kv_heads) : Range{config.kv_heads * rank / ranks, 1};
  return {{"key heads", share(config.key_heads)},      {"value heads", share(config.value_heads)},
          {"query heads", share(config.heads)},        {"kv heads", kv},
          {"mlp columns", share(config.intermediate)}, {"vocabulary", owned("embed_tokens.weight")}};
}

std::vector<std::pair<const char*, int64_t>> items(const MemoryPlan& plan, Place place) {
  return {{"weights", plan.weights},         {"kv_cache", plan.kv_cache},
          {"delta_state", plan.delta_state}, {"conv_state", plan.conv_state},
          {"workspace", plan.workspace},     {"communication", plan.communication},
          {"graphs", plan.graphs},           {place == Place::gpu ? "device_context" : "process", plan.process},
          {"total", plan.total()},           {"host_embedding", plan.host_embedding}};
}

struct Plan {
  ModelConfig config;
  RuntimeOptions runtime;
  std::string weights;
  double bits_per_weight = 0;
  std::vector<MemoryPlan> ranks;
  int64_t limit = 0;
  int64_t largest_context = 0;
  bool fits = true;
};

Json to_json(const Plan& plan) {
  const int ranks = static_cast<int>(plan.ranks.size());
  Json json;
  json["model_type"] = plan.config.model_type;
  json["layers"] = plan.config.layers;
  json["weights"] = plan.weights;
  json["bits_per_weight"] = plan.bits_per_weight;
  json["ranks"] = ranks;
  json["legal_ranks"] = legal_rank_counts(plan.config);
  json["units"] = model_units(plan.config);
  json["place"] = plan.runtime.place == Place::gpu ? "gpu" : "host";
  json["context"] = plan.runtime.context;
  json["batch"] = plan.runtime.batch;
  json["kv_type"] = kv_type_name(plan.runtime.kv_type);
  json["activations"] = plan.runtime.activations == ActivationMode::f32 ? "f32" : "int8";
  json["prefill"] = plan.runtime.cublas ? "cublas" : "codes";
  json["memory_limit_bytes"] = plan.limit > 0 ? Json(plan.limit) : Json(nullptr);
  json["fits"] = plan.limit > 0 ? Json(plan.fits) : Json(nullptr);
  json["largest_context"] = plan.largest_context;
  json["per_rank"] = Json::array();
  for (int rank = 0; rank < ranks; ++rank) {
    Json entry;
    entry["rank"] = rank;
    for (const auto& [name, range] : partition(plan.config, rank, ranks)) {
      std::string key = name;
      std::replace(key.begin(), key.end(), ' ', '_');
      entry["partition"][key] = {{"first", range.first}, {"count", range.count}};
    }
    for (const auto& [name, bytes] : items(plan.ranks[static_cast<size_t>(rank)], plan.runtime.place)) entry["bytes"][name] = bytes;
    json["per_rank"].push_back(entry);
  }
  return json;
}

std::string to_text(const Plan& plan) {
  const int ranks = static_cast<int>(plan.ranks.size());
  const ModelConfig& c = plan.config;
  const int64_t attention = std::count(c.layer_kinds.begin(), c.layer_kinds.end(), LayerKind::attention);
  std::string text = fmt::format("model     {}: {} ({} delta, {} attention), vocabulary {}\n", c.model_type, model_text(c),
                                 c.layers - attention, attention, c.vocab);
  text += fmt::format("weights   {}; {:.3f} bits per weight of the large matrices\n", plan.weights, plan.bits_per_weight);
  text += fmt::format("ranks     {}, legal are {}\n", ranks, fmt::join(legal_rank_counts(c), ", "));
  text += fmt::format("context   {} positions, {} keys and values, batch {}\n\n", plan.runtime.context,
                      kv_type_name(plan.runtime.kv_type), plan.runtime.batch);
  constexpr int kColumn = 15;
  std::string header = fmt::format("{:<14}", "");
  std::vector<std::string> rows;
  for (int rank = 0; rank < ranks; ++rank) {
    header += fmt::format("{:>{}}", fmt::format("rank {}", rank), kColumn);
    size_t row = 0;
    const auto add = [&](std::string name, const std::string& value) {
      std::replace(name.begin(), name.end(), '_', ' ');
      if (rank == 0) rows.push_back(fmt::format("{:<14}", name));
      rows[row++] += fmt::format("{:>{}}", value, kColumn);
    };
    for (const auto& [name, range] : partition(c, rank, ranks)) add(name, range_text(range));
    for (const auto& [name, bytes] : items(plan.ranks[static_cast<size_t>(rank)], plan.runtime.place)) {
      // A row that is empty for one rank is for all.
      if (name != std::string("host_embedding") || bytes > 0) add(name, bytes_text(bytes));
    }
  }
  text += header + "\n";
  for (const std::string& row : rows) text += row + "\n";
  if (plan.limit > 0) {
    text += fmt::format("\n{} in {} a rank; the largest context that fits is {} positions\n", plan.fits ? "fits" : "does not fit",
                        bytes_text(plan.limit), plan.largest_context);
  }
  return text;
}

}  // namespace

std::string plan_report(const ModelFlags& flags, int ranks, bool json) {
  Plan plan;
  const std::vector<std::string> names = geometry_names();
  std::unique_ptr<Backend> backend;
  std::unique_ptr<WeightSource> source;
  if (!path_exists(flags.model) && std::find(names.begin(), names.end(), flags.model) != names.end()) {
    plan.config = named_geometry(flags.model, 0, 0);
  } else {
    if (!path_exists(flags.model)) {
      throw Error(ErrorKind::input, fmt::format("{}: no such file or directory, and not one of the known sizes {}", flags.model,
                                                fmt::join(names, ", ")));
    }
    plan.config = load_model_config(flags.model);
    if (is_directory(flags.model) && holds_weights(flags.model)) {
      backend = make_backend("cpu");
      source = open_weights(flags.model, tensor_specs(plan.config), make_recipe(flags.recipe), *backend);
    }
  }
  if (!source) source = std::make_unique<PlannedSource>(make_recipe(flags.recipe));
  check_rank_count(plan.config, ranks);
  plan.runtime = runtime_options(flags, plan.config);
  if (flags.backend.device == "cuda") plan.runtime.place = Place::gpu;
  plan.runtime.cublas = flags.backend.prefill == "cublas";
  if (plan.runtime.cublas && plan.runtime.place == Place::host)
    throw Error(ErrorKind::usage, "--prefill cublas is for GPUs; leave it out, or plan with --device cuda");
  plan.runtime.nccl = flags.backend.allreduce == "auto" || flags.backend.allreduce == "nccl";
  plan.weights = source->description();
  plan.bits_per_weight = bits_per_weight(plan.config, *source);
  plan.limit = flags.memory_bytes;
  plan.largest_context = plan.config.max_position;
  for (int rank = 0; rank < ranks; ++rank) {
    plan.ranks.push_back(plan_rank(plan.config, plan.runtime, *source, rank, ranks, plan.limit));
    plan.largest_context = std::min(plan.largest_context, plan.ranks.back().largest_context);
    plan.fits = plan.fits && (plan.limit == 0 || plan.ranks.back().total() <= plan.limit);
  }
  return json ? to_json(plan).dump(2) + "\n" : to_text(plan);
}

}  // namespace pq
