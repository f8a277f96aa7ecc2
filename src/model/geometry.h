// Shapes of the published dense sizes by name, for planning and measuring without a checkpoint. Weights are left to their makers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"

namespace pq {

// "qwen3.5-27b", "qwen3.5-9b", "qwen3.5-4b", "qwen3.5-2b", "qwen3.5-0.8b".
std::vector<std::string> geometry_names();

// layers and vocab replace the published numbers when positive; layers keep the pattern of three delta layers and one attention layer.
// Throws ErrorKind::usage naming the known geometries, or the legal range.
ModelConfig named_geometry(const std::string& name, int64_t layers, int64_t vocab);

}  // namespace pq
