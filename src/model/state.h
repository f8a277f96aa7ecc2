// The sizes of everything a rank holds besides weights: caches, recurrent state, scratch of a step. One description serves the
// memory plan, which must be right before anything is allocated, and the transformer, which allocates by it.
#pragma once

#include <cstdint>

#include "model/config.h"
#include "model/partition.h"

namespace pq {

// Rows of logits computed and gathered at a time.
inline constexpr int64_t kLogitRows = 16;

// One rank's share of the heads and widths.
struct LocalShape {
  int64_t heads;
  int64_t kv_heads;  // at least 1: replicated when ranks exceed the kv heads
  int64_t key_heads;
  int64_t value_heads;
  int64_t intermediate;
  int64_t key_width;
  int64_t value_width;
  int64_t conv_channels;
  int64_t attention_width;  // heads * head_dim
  int64_t vocab_rows;       // of the largest share
};

// `ranks` is legal for `config`.
LocalShape local_shape(const ModelConfig& config, int ranks);

// Elements per layer and slot.
struct LayerStateSize {
  int64_t delta_s;
  int64_t delta_k;
  int64_t delta_delta;
  int64_t delta_decay;
  int64_t conv;
  int64_t kv;  // bytes of keys, and as many of values
};
// ErrorKind::usage where the model's heads do not fit the type of the cache.
LayerStateSize layer_state_size(const ModelConfig& config, const RuntimeOptions& options, int ranks);

// Bytes of the scratch areas of a step of options.batch tokens. mixer and mlp overlay each other in `scratch`.
struct WorkspaceSize {
  int64_t residual;    // h, normed h and the partial sums: 3 * batch * hidden fp32
  int64_t activation;  // prepared form of the normed residual
  int64_t inner;       // prepared form of the widest of the other inputs
  int64_t scratch;     // projections of the largest layer part
  int64_t logits;      // kLogitRows rows of the local vocabulary
  int64_t total() const { return residual + activation + inner + scratch + logits; }
};
WorkspaceSize workspace_size(const ModelConfig& config, const RuntimeOptions& options, int ranks);

// What the cuda backend takes for a step beside those areas: staging, its sums of units or one product of SwiGLU, and what it gives
// to cuBLAS.
int64_t device_workspace_bytes(const ModelConfig& config, const RuntimeOptions& options, int ranks);

// fp32 elements of the parts of `scratch`, in the order the transformer lays them out, for one token.
int64_t delta_scratch_floats(const LocalShape& shape);
int64_t attention_scratch_floats(const LocalShape& shape, const ModelConfig& config);
int64_t mlp_scratch_floats(const LocalShape& shape);

}  // namespace pq
