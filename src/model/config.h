// The shape of a Qwen3.5 dense text model as its config.json tells it. Which ranks may share it is left to partition.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pq {

enum class LayerKind : int { delta, attention };

// Names are those of config.json where it has one.
struct ModelConfig {
  std::string model_type;
  int64_t hidden = 0;
  int64_t intermediate = 0;
  int64_t layers = 0;
  std::vector<LayerKind> layer_kinds;  // [layers]
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t rotary_dim = 0;
  double rope_theta = 0;
  int64_t key_heads = 0;    // linear_num_key_heads
  int64_t value_heads = 0;  // linear_num_value_heads
  int64_t key_dim = 0;      // linear_key_head_dim
  int64_t value_dim = 0;    // linear_value_head_dim
  int64_t vocab = 0;
  int64_t max_position = 0;
  float rms_norm_eps = 0;
  bool tied = false;             // lm_head shares embed_tokens
  std::vector<int64_t> eos_ids;  // of config.json; generation_config.json may add more

  int64_t key_width() const { return key_heads * key_dim; }
  int64_t value_width() const { return value_heads * value_dim; }
  int64_t conv_channels() const { return 2 * key_width() + value_width(); }
};

// Parses config.json text (nested text_config or flat; rope_parameters or flat rope keys; layer_types or full_attention_interval).
// Throws ErrorKind::input naming `path`, the key and its value for anything absent, impossible or unsupported.
ModelConfig parse_model_config(const std::string& text, const std::string& path);

// Reads `path`, a config.json or a directory that holds one.
ModelConfig load_model_config(const std::string& path);

}  // namespace pq
