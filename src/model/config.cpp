// Reads config.json by the rules of the published Qwen3.5 configurations; every number is range-checked before it is used in a
// size.
#include "model/config.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"
#include "base/strict_json.h"

namespace pq {
namespace {

using Json = nlohmann::json;

class Reader {
 public:
  Reader(const Json& object, const std::string& path) : object_(object), path_(path) {}

  [[noreturn]] void fail(const std::string& key, const std::string& what) const {
    throw Error(ErrorKind::input, fmt::format("{}: {} {}", path_, key, what));
  }

  const Json* find(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  int64_t integer(const char* key, int64_t low, int64_t high) const {
    const Json* value = find(key);
    if (!value) fail(key, "is missing");
    return checked_integer(key, *value, low, high);
  }

  int64_t integer_or(const char* key, int64_t fallback, int64_t low, int64_t high) const {
    const Json* value = find(key);
    return value ? checked_integer(key, *value, low, high) : fallback;
  }

  double number_or(const char* key, double fallback, double low, double high) const {
    const Json* value = find(key);
    if (!value) return fallback;
    if (!value->is_number()) fail(key, fmt::format("is {}, a number is needed", json_excerpt(*value)));
    const double number = value->get<double>();
    if (!(number >= low && number <= high)) fail(key, fmt::format("is {}, the legal range is {} to {}", number, low, high));
    return number;
  }

  // A key that, when present, must hold this value: other values change the mathematics.
  void expect(const char* key, const Json& wanted) const {
    const Json* value = find(key);
    if (value && *value != wanted) fail(key, fmt::format("is {}, only {} is supported", json_excerpt(*value), wanted.dump()));
  }

  int64_t checked_integer(const char* key, const Json& value, int64_t low, int64_t high) const {
    if (!value.is_number_integer()) fail(key, fmt::format("is {}, an integer is needed", json_excerpt(value)));
    const bool huge = value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{1} << 62;
    const int64_t number = huge ? int64_t{1} << 62 : value.get<int64_t>();
    if (number < low || number > high) fail(key, fmt::format("is {}, the legal range is {} to {}", json_excerpt(value), low, high));
    return number;
  }

 private:
  const Json& object_;
  const std::string& path_;
};

std::vector<LayerKind> layer_kinds(const Reader& reader, int64_t layers) {
  std::vector<LayerKind> kinds;
  if (const Json* types = reader.find("layer_types")) {
    if (!types->is_array() || static_cast<int64_t>(types->size()) != layers)
      reader.fail("layer_types", fmt::format("has {} entries, num_hidden_layers is {}", types->size(), layers));
    for (const Json& type : *types) {
      if (type == "linear_attention")
        kinds.push_back(LayerKind::delta);
      else if (type == "full_attention")
        kinds.push_back(LayerKind::attention);
      else
        reader.fail("layer_types",
                    fmt::format("holds {}, only linear_attention and full_attention are supported", json_excerpt(type)));
    }
    return kinds;
  }
  const int64_t interval = reader.integer_or("full_attention_interval", 4, 1, kMaxModelLayers);
  for (int64_t i = 0; i < layers; ++i) kinds.push_back((i + 1) % interval == 0 ? LayerKind::attention : LayerKind::delta);
  return kinds;
}

void read_rope(const Reader& reader, const std::string& path, ModelConfig* config) {
  const Json* parameters = reader.find("rope_parameters");
  if (parameters && !parameters->is_object()) reader.fail("rope_parameters", "is not an object");
  const Json empty = Json::object();
  const Reader nested(parameters ? *parameters : empty, path);
  nested.expect("rope_type", "default");
  reader.expect("rope_scaling", nullptr);
  const double flat_theta = reader.number_or("rope_theta", 1e7, 1, 1e12);
  const double flat_factor = reader.number_or("partial_rotary_factor", 0.25, 0, 1);
  config->rope_theta = nested.number_or("rope_theta", flat_theta, 1, 1e12);
  const double factor = nested.number_or("partial_rotary_factor", flat_factor, 0, 1);
  config->rotary_dim = static_cast<int64_t>(std::floor(static_cast<double>(config->head_dim) * factor));
  if (config->rotary_dim % 2 != 0)
    reader.fail("partial_rotary_factor", fmt::format("{} of head_dim {} gives {} rotary dimensions, an even number is needed",
                                                     factor, config->head_dim, config->rotary_dim));
}

void read_eos(const Reader& reader, const Json& value, ModelConfig* config) {
  const auto add = [&](const Json& id) {
    config->eos_ids.push_back(reader.checked_integer("eos_token_id", id, 0, kMaxModelVocab - 1));
  };
  if (value.is_array() && static_cast<int64_t>(value.size()) > kMaxEndTokens)
    reader.fail("eos_token_id", fmt::format("has {} ids, at most {} are read", value.size(), kMaxEndTokens));
  if (value.is_array())
    for (const Json& id : value) add(id);
  else
    add(value);
}

void check_relations(const Reader& reader, const ModelConfig& c) {
  if (c.heads % c.kv_heads != 0)
    reader.fail("num_attention_heads", fmt::format("is {}, not a multiple of num_key_value_heads {}", c.heads, c.kv_heads));
  if (c.value_heads % c.key_heads != 0)
    reader.fail("linear_num_value_heads",
                fmt::format("is {}, not a multiple of linear_num_key_heads {}", c.value_heads, c.key_heads));
  const std::pair<const char*, int64_t> widths[] = {{"num_attention_heads", c.heads * c.head_dim},
                                                    {"linear_num_key_heads", c.key_width()},
                                                    {"linear_num_value_heads", c.value_width()}};
  for (const auto& [key, width] : widths)
    if (width > kMaxModelWidth)
      reader.fail(key, fmt::format("times the size of a head is {}, at most {} is supported", width, kMaxModelWidth));
  const std::pair<const char*, int64_t> dims[] = {
      {"head_dim", c.head_dim}, {"linear_key_head_dim", c.key_dim}, {"linear_value_head_dim", c.value_dim}};
  for (const auto& [key, dim] : dims)
    if (dim % 16 != 0) reader.fail(key, fmt::format("is {}, a multiple of 16 is needed", dim));
}

}  // namespace

ModelConfig parse_model_config(const std::string& text, const std::string& path) {
  const Json root = parse_strict_json(text, path);
  if (!root.is_object()) throw Error(ErrorKind::input, path + " holds no JSON object");
  const Reader top(root, path);
  const Json* nested = top.find("text_config");
  if (nested && !nested->is_object()) top.fail("text_config", "is not an object");
  const Reader reader(nested ? *nested : root, path);

  ModelConfig c;
  const Json* type = reader.find("model_type");
  if (!type) type = top.find("model_type");
  if (!type || (*type != "qwen3_5" && *type != "qwen3_5_text"))
    top.fail("model_type",
             fmt::format("is {}, only qwen3_5 and qwen3_5_text are supported", type ? json_excerpt(*type) : "missing"));
  c.model_type = type->get<std::string>();

  c.hidden = reader.integer("hidden_size", 16, kMaxModelWidth);
  c.intermediate = reader.integer("intermediate_size", 1, kMaxModelIntermediate);
  c.layers = reader.integer("num_hidden_layers", 1, kMaxModelLayers);
  c.heads = reader.integer("num_attention_heads", 1, kMaxModelHeads);
  c.kv_heads = reader.integer_or("num_key_value_heads", c.heads, 1, kMaxModelHeads);
  c.head_dim = reader.integer_or("head_dim", c.hidden / c.heads, 16, kMaxModelHeadDim);
  c.key_heads = reader.integer("linear_num_key_heads", 1, kMaxModelHeads);
  c.value_heads = reader.integer("linear_num_value_heads", 1, kMaxModelHeads);
  c.key_dim = reader.integer("linear_key_head_dim", 16, kMaxModelHeadDim);
  c.value_dim = reader.integer("linear_value_head_dim", 16, kMaxModelHeadDim);
  c.vocab = reader.integer("vocab_size", 1, kMaxModelVocab);
  c.max_position = reader.integer_or("max_position_embeddings", 262144, 1, kMaxModelPositions);
  c.rms_norm_eps = static_cast<float>(reader.number_or("rms_norm_eps", 1e-6, 0, 1));
  c.layer_kinds = layer_kinds(reader, c.layers);
  read_rope(reader, path, &c);

  const Json* tied = reader.find("tie_word_embeddings");
  if (!tied) tied = top.find("tie_word_embeddings");
  if (tied && !tied->is_boolean())
    reader.fail("tie_word_embeddings", fmt::format("is {}, true or false is needed", json_excerpt(*tied)));
  c.tied = tied && tied->get<bool>();
  if (const Json* eos = reader.find("eos_token_id")) read_eos(reader, *eos, &c);

  reader.expect("linear_conv_kernel_dim", 4);
  reader.expect("hidden_act", "silu");
  reader.expect("attention_bias", false);
  reader.expect("attn_output_gate", true);
  const Json* gate = reader.find("output_gate_type");
  if (gate && *gate != "silu" && *gate != "swish")
    reader.fail("output_gate_type", fmt::format("is {}, only silu (swish) is supported", json_excerpt(*gate)));
  check_relations(reader, c);
  return c;
}

ModelConfig load_model_config(const std::string& path) {
  const std::string file = is_directory(path) ? path + "/config.json" : path;
  return parse_model_config(read_text_file(file, kMaxConfigBytes), file);
}

}  // namespace pq
