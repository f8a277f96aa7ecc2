// The launches of the plugin's kernels, one function an operation: device pointers only, arguments already checked, at least one
// row. Order on the stream; nothing here blocks.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/device.h"
#include "kernels/device_memory.h"

namespace pq::cuda {

// Device copies of one codebook.
struct DeviceCodebook {
  const float* centroids = nullptr;  // [2^bits]
  const int16_t* values = nullptr;   // [2^bits], integer centroids by code
  const int8_t* bytes = nullptr;     // [16], make_byte_table (kernels/cuda/quarters.h)
  int bits = 0;
  float int_step = 0;
};

void launch_rms_norm(const RmsNormArgs& args, cudaStream_t stream);
void launch_prepare(const PrepareArgs& args, cudaStream_t stream);
void launch_gated_rms_norm(const GatedRmsNormArgs& args, cudaStream_t stream);
// inner.x holds the gate, which silu(gate) * up replaces; inner.prepared of that where it is wanted.
void launch_silu_mul(const PrepareArgs& inner, const float* up, cudaStream_t stream);
void launch_embed(const EmbedArgs& args, const int32_t* device_ids, const float* centroids, cudaStream_t stream);

// The sums of each unit, unit_sums [units][tokens][rows]; args.y is not looked at. Int8 activations, but not what
// launch_row_products is for: by the order of LinearArgs, so the same bits as the host backends.
void launch_polar_int8(const LinearArgs& args, float* unit_sums, const DeviceCodebook& book, cudaStream_t stream);
// The same for matrices in tiles of which choose_rows_kernel says panels (kernels/cuda/rows_choice.h).
void launch_panels(const LinearArgs& args, float* unit_sums, const DeviceCodebook& book, cudaStream_t stream);
// The same for coded matrices against rotated fp32 activations, and f32, bf16 and int4 matrices against raw ones. In the order of
// LinearArgs.
void launch_float_linear(const LinearArgs& args, float* unit_sums, const DeviceCodebook& book, cudaStream_t stream);
// y [count] = the units [units][count] added by a balanced binary tree; units a power of two.
void launch_unit_tree(float* y, const float* unit_sums, int64_t units, int64_t count, cudaStream_t stream);

// Launches depend on the positions of spans (host memory) by this alone, so that a recorded step holds for all positions of a
// bucket: the power of two, at least kKeyBlock, that no position exceeds.
inline int64_t position_bucket(const Spans& spans) {
  int64_t bucket = kKeyBlock;
  for (int64_t i = 0; i < spans.count; ++i) {
    while (bucket < spans.data[i].position + spans.data[i].tokens) bucket *= 2;
  }
  return bucket;
}

void launch_causal_conv(const CausalConvArgs& args, const Span* device_spans, cudaStream_t stream);
// tensor: spans of many tokens on tensor cores, to other bits than the contract's.
void launch_gated_delta(const GatedDeltaArgs& args, const Span* device_spans, bool tensor, cudaStream_t stream);
// Whether heads are small enough for launch_gated_delta_step, whose spans have one token each and no slot twice.
bool delta_step_fits(const GatedDeltaArgs& args);
void launch_gated_delta_step(const GatedDeltaLayerArgs& args, const Span* device_spans, cudaStream_t stream);
void launch_attention_input(const AttentionInputArgs& args, const Span* device_spans, int64_t tokens, cudaStream_t stream);
// Tokens of one position each, none of them beyond `positions`, on which alone the grid depends; their coded form too, where it is
// wanted and heads are whole blocks. scratch: attention_row_floats(...)
// (kernels/device_memory.h).
void launch_attention_rows(const AttentionArgs& args, const Span* device_rows, int64_t rows, int64_t positions, float* scratch,
                           cudaStream_t stream);
// Tiles of at most attention_tile_tokens consecutive tokens of a sequence.
int64_t attention_tile_tokens(const AttentionArgs& args);  // 0: none
void launch_attention_tiles(const AttentionArgs& args, const Span* device_tiles, int64_t tiles, cudaStream_t stream);
// What the runtime says of the code of this build for the current device: cudaSuccess, or cudaErrorNoKernelImageForDevice.
cudaError_t kernel_image_error();
void launch_decode(const DecodeArgs& args, const DeviceCodebook& book, cudaStream_t stream);

}  // namespace pq::cuda
