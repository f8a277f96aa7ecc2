// The reader of generation_config.h.
#include "engine/generation_config.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"
#include "base/strict_json.h"

namespace pq {
namespace {

constexpr int64_t kMaxTokenId = std::numeric_limits<int32_t>::max();

bool has(const nlohmann::json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && !found->is_null();
}

}  // namespace

GenerationConfig load_generation_config(const std::string& directory) {
  GenerationConfig config;
  const std::string path = directory + "/generation_config.json";
  if (!path_exists(path)) return config;
  const nlohmann::json file = parse_strict_json(read_text_file(path, kMaxGenerationConfigBytes), path);
  if (!file.is_object()) throw Error(ErrorKind::input, path + ": not a JSON object");
  config.present = true;
  SamplingOptions& sampling = config.sampling;
  const bool samples = has(file, "do_sample") && json_bool(file, "do_sample", path);
  if (samples) {
    sampling.temperature = has(file, "temperature") ? json_number(file, "temperature", path) : 1;
    if (has(file, "top_k")) sampling.top_k = json_integer(file, "top_k", path, 0, kMaxTokenId);
    if (has(file, "top_p")) sampling.top_p = json_number(file, "top_p", path);
    if (has(file, "min_p")) sampling.min_p = json_number(file, "min_p", path);
  }
  if (has(file, "repetition_penalty")) sampling.repeat_penalty = json_number(file, "repetition_penalty", path);
  try {
    check(sampling);
  } catch (const Error& error) {
    throw Error(ErrorKind::input, path + ": " + error.what());
  }
  if (has(file, "eos_token_id")) {
    const nlohmann::json& eos = file.at("eos_token_id");
    const std::string where = path + ": eos_token_id";
    if (eos.is_array() && static_cast<int64_t>(eos.size()) > kMaxEndTokens)
      throw Error(ErrorKind::input,
                  where + " has " + std::to_string(eos.size()) + " ids, at most " + std::to_string(kMaxEndTokens) + " are read");
    for (const nlohmann::json& id : eos.is_array() ? eos : nlohmann::json::array({eos})) {
      config.eos_ids.push_back(static_cast<int32_t>(json_as_integer(id, where, 0, kMaxTokenId)));
    }
  }
  return config;
}

std::vector<int32_t> stop_ids(const std::vector<int64_t>& config_eos_ids, const GenerationConfig& generation) {
  std::vector<int32_t> ids = generation.eos_ids;
  for (const int64_t id : config_eos_ids) ids.push_back(static_cast<int32_t>(id));
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

}  // namespace pq
