// What a model's generation_config.json recommends: sampling defaults and the tokens that end a turn. The file is optional.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/sampler.h"

namespace pq {

struct GenerationConfig {
  bool present = false;
  // temperature 0 when do_sample is false; keys that are absent or null keep Hugging Face's defaults (temperature 1, no top-k, no
  // top-p, no penalty). Without a file: greedy.
  SamplingOptions sampling;
  std::vector<int32_t> eos_ids;  // of eos_token_id, a number or a list
};

// Reads DIRECTORY/generation_config.json when there is one. Throws ErrorKind::input naming path, key and value for anything that is
// not what it should be.
GenerationConfig load_generation_config(const std::string& directory);

// All tokens that end a generation: those of config.json and of generation_config.json, ascending, without repetitions.
std::vector<int32_t> stop_ids(const std::vector<int64_t>& config_eos_ids, const GenerationConfig& generation);

}  // namespace pq
