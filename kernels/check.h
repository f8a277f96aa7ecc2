// Preconditions of operations, checked by every host backend before it touches memory.
#pragma once

#include "kernels/backend.h"

namespace pq {

// Each throws ErrorKind::internal with the name of the operation and the sizes that do not fit: these are errors of pq, not of
// input.
void check_matrix(const char* op, const Matrix& matrix);
void check_embed(const EmbedArgs& args);
void check_prepare(const PrepareArgs& args);
// What RmsNormArgs, SwigluArgs, GatedRmsNormArgs and AttentionArgs want beside y, as the operation that `prepare` would be.
PrepareArgs prepare_of(const RmsNormArgs& args);
PrepareArgs prepare_of(const SwigluArgs& args);
PrepareArgs prepare_of(const GatedRmsNormArgs& args);
PrepareArgs prepare_of(const AttentionArgs& args);
void check_norm(const RmsNormArgs& args);
void check_gated_norm(const GatedRmsNormArgs& args);
void check_linear(const LinearArgs& args);
void check_swiglu(const SwigluArgs& args);
void check_gated_delta(const GatedDeltaArgs& args);
void check_gated_delta_layer(const GatedDeltaLayerArgs& args);
void check_attention_input(const AttentionInputArgs& args);
void check_attention(const AttentionArgs& args);
void check_coded_shape(const char* op, int64_t rows, int64_t cols);

}  // namespace pq
