// The weights of one rank: its pieces of every tensor in backend memory, grouped by layer for the forward pass.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/backend.h"
#include "model/config.h"
#include "store/weight_source.h"

namespace pq {

// Matrix views point into `buffers` of Weights. Vectors are fp32.
struct DeltaWeights {
  Matrix in_proj_qkv;  // local q rows, k rows, v rows
  Matrix in_proj_z;
  Matrix in_proj_b;
  Matrix in_proj_a;
  const float* conv = nullptr;  // [conv_channels, 4], channels in the order of in_proj_qkv
  const float* dt_bias = nullptr;
  const float* a_log = nullptr;
  const float* norm = nullptr;
  Matrix out_proj;
};

struct AttentionWeights {
  Matrix q_proj;
  Matrix k_proj;
  Matrix v_proj;
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  Matrix o_proj;
};

struct LayerWeights {
  const float* input_norm = nullptr;
  const float* post_norm = nullptr;
  DeltaWeights delta;          // of delta layers
  AttentionWeights attention;  // of attention layers
  Matrix gate_proj;
  Matrix up_proj;
  Matrix down_proj;
};

struct Weights {
  Matrix embed;  // rows [vocab_first, vocab_first + embed.rows) of the vocabulary; rows = 0 when the rank owns none
  Matrix head;   // the same rows; equals embed when tied
  int64_t vocab_first = 0;
  const float* norm = nullptr;
  std::vector<LayerWeights> layers;
  std::vector<Buffer> buffers;
  int64_t bytes = 0;  // of the buffers
};

// Loads what `rank` owns. host_embedding: the embedding goes to host memory (PinnedMemory); not for tied embeddings.
// `progress` (may be empty) hears the bytes loaded so far. Throws what the source throws, and ErrorKind::input when the parts of
// in_proj_qkv have different formats.
Weights load_weights(const ModelConfig& config, Backend& backend, WeightSource& source, int rank, int ranks,
                     const std::function<void(int64_t)>& progress, bool host_embedding = false);

}  // namespace pq
