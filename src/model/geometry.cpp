// The table of geometry.h. Source: the published config.json files.
#include "model/geometry.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/error.h"

namespace pq {
namespace {

struct Row {
  const char* name;
  int64_t hidden;
  int64_t layers;
  int64_t intermediate;
  int64_t heads;
  int64_t kv_heads;
  int64_t key_heads;
  int64_t value_heads;
  bool tied;
};

constexpr Row kRows[] = {{"qwen3.5-27b", 5120, 64, 17408, 24, 4, 16, 48, false},
                         {"qwen3.5-9b", 4096, 32, 12288, 16, 4, 16, 32, false},
                         {"qwen3.5-4b", 2560, 32, 9216, 16, 4, 16, 32, true},
                         {"qwen3.5-2b", 2048, 24, 6144, 8, 2, 16, 16, true},
                         {"qwen3.5-0.8b", 1024, 24, 3584, 8, 2, 16, 16, true}};

}  // namespace

std::vector<std::string> geometry_names() {
  std::vector<std::string> names;
  for (const Row& row : kRows) names.emplace_back(row.name);
  return names;
}

ModelConfig named_geometry(const std::string& name, int64_t layers, int64_t vocab) {
  for (const Row& row : kRows) {
    if (name != row.name) continue;
    if (layers > 1024 || vocab > (1 << 24))
      throw Error(ErrorKind::usage,
                  fmt::format("{} layers and a vocabulary of {} exceed the limits of 1024 and {}", layers, vocab, 1 << 24));
    ModelConfig c;
    c.model_type = "qwen3_5_text";
    c.hidden = row.hidden;
    c.intermediate = row.intermediate;
    c.layers = layers > 0 ? layers : row.layers;
    for (int64_t i = 0; i < c.layers; ++i) c.layer_kinds.push_back(i % 4 == 3 ? LayerKind::attention : LayerKind::delta);
    c.heads = row.heads;
    c.kv_heads = row.kv_heads;
    c.head_dim = 256;
    c.rotary_dim = 64;
    c.rope_theta = 1e7;
    c.key_heads = row.key_heads;
    c.value_heads = row.value_heads;
    c.key_dim = 128;
    c.value_dim = 128;
    c.vocab = vocab > 0 ? vocab : 248320;
    c.max_position = 262144;
    c.rms_norm_eps = 1e-6f;
    c.tied = row.tied;
    c.eos_ids = {248044};
    return c;
  }
  throw Error(ErrorKind::usage, fmt::format("no geometry is called {}; known are {}", name, fmt::join(geometry_names(), ", ")));
}

}  // namespace pq
