// The leaf functions that exist once per instruction set, as a table of pointers. Each isa_*.cpp compiles the same bodies
// (*_body.h) over its own sixteen float lanes (lanes_*.h); walking batches, spans and units is left to cpu_backend.cpp
// and cpu_sequence.cpp.
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cpu/isa.h"
#include "kernels/encode_table.h"

namespace pq {

// Rows and tokens of one tile of a matrix product. A fp32 tile's result is float [kTileTokens][kTileRows].
inline constexpr int64_t kTileRows = 64;
inline constexpr int64_t kTileTokens = 256;

// Tokens of the packed input of a coded product come in groups of so many.
inline constexpr int64_t kTokenGroup = 16;

// What a codebook looks like to the integer kernels: magnitude m is low[m] + 256 * high[m]; value[code] carries the sign.
struct IntTable {
  alignas(64) uint8_t low[128] = {};
  alignas(64) uint8_t high[128] = {};
  int16_t value[256] = {};
};

// The int8 input of a coded product, put once a call into the order the kernels read. [dim / 128] blocks of `padded` tokens each:
// tokens rounded up to groups when packed, else `tokens`.
struct PolarInput {
  const int8_t* codes;  // [tokens][dim]
  const float* scales;  // [tokens][dim / 128]
  int64_t tokens;
  int64_t dim;
  int bits;  // of the weights
  float int_step;
  int64_t padded;
  float* steps;     // scale * int_step
  int32_t* excess;  // what the path's dot product with the block is too large by
  uint8_t* packed;  // null, or by groups: dword q of sixteen tokens, then dword q + 1; a dword is four codes, or two above 5 bits
};

// Up to kTileRows rows of a coded matrix against up to kTileTokens tokens, units added. The first row, the first token.
struct PolarTile {
  const uint8_t* data;  // unit 0
  const uint16_t* norms;
  const uint8_t* next;  // what the caller will read after these rows, to be fetched ahead; any address will do
  const uint16_t* next_norms;
  int64_t unit_stride;  // from unit to unit, in blocks
  int64_t units;
  int64_t blocks;  // of one row of one unit
  int64_t rows;
  int64_t tokens;
  int bits;
  const IntTable* table;
  const int8_t* codes;
  int64_t code_stride;    // dim
  const uint8_t* packed;  // as are steps, excess and padded, PolarInput's
  const float* steps;
  const int32_t* excess;
  int64_t padded;
  float* y;  // row t of y_stride floats: token t
  int64_t y_stride;
  float* scratch;  // polar_scratch(units) floats
};

inline constexpr int64_t polar_scratch(int64_t units) { return units * kTileRows * (kTileTokens + kTokenGroup); }

// The same for weights that are used as fp32: f32, bf16, int4 and, against rotated activations, polar.
struct FloatTile {
  const Matrix* matrix;
  int64_t unit;
  int64_t row;
  const float* x;  // first token, column 0 of the unit
  int64_t rows;
  int64_t tokens;
  int64_t x_stride;
};

struct RmsTile {
  float* y;
  const float* x;
  const float* weight;
  const float* gate;  // null, or multiplied as silu(gate)
  int64_t dim;
  float eps;
  float weight_offset;
};

// 16 channels (or fewer) of one span: x and y at its first token, stride `channels`; state [3] rows of stride `channels`.
struct ConvTile {
  float* y;
  const float* x;
  const float* weight;
  float* state;
  int64_t channels;
  int64_t width;
  int64_t tokens;
  int64_t position;
};

// One chunk part of one value head: rows [begin, end) of the chunk. Pointers to row 0 of the chunk; strides in floats.
struct DeltaTile {
  float* s;        // [key_dim, value_dim]
  const float* k;  // [16] rows, normalised
  int64_t k_stride;
  float* delta;  // [16] rows
  int64_t delta_stride;
  const float* decay;  // [16] cumulative log-decay, valid below `end`
  const float* q;      // row `begin`, normalised and scaled
  int64_t q_stride;
  const float* v;  // row `begin`
  int64_t v_stride;
  const float* beta;  // [end - begin]
  const float* kk;    // [16][16]: k_i . k_j for begin <= i < end, j < i
  const float* qk;    // [16][16]: q_i . k_j for j <= i
  float* y;           // row `begin`
  int64_t y_stride;
  int64_t key_dim;
  int64_t value_dim;
  int64_t begin;
  int64_t end;
};

// Largest number of query heads that share a kv head.
inline constexpr int64_t kMaxGroupHeads = 64;

// Consecutive tokens of a span, the query heads of one kv head, against one key block. What the block gives is merged into the
// running softmax of every token and head: largest score, sum of exponentials, weighted values not yet divided by the sum. Before
// the first block these are -infinity, 0 and zeros.
struct AttentionTile {
  const float* q;  // [tokens] rows of stride q_stride: [heads, head_dim]
  int64_t q_stride;
  float* out;  // [tokens] rows of stride out_stride: [heads, head_dim]
  int64_t out_stride;
  float* largest;  // [tokens, heads]
  float* sum;      // [tokens, heads]
  const void* k;   // from the first position of the block on
  const void* v;
  KvType type;
  int64_t heads;
  int64_t head_dim;
  int64_t tokens;
  int64_t visible;  // positions of the block that the first token sees; token t sees visible + t, within [0, kKeyBlock]
  bool more;        // another block follows
  float* scratch;   // attention_scratch(heads, tokens, head_dim) floats
};

constexpr int64_t attention_scratch(int64_t heads, int64_t tokens, int64_t head_dim) {
  return tokens * heads * kKeyBlock + 2 * ((tokens * heads + 15) / 16 * 16) + 2 * kKeyBlock * head_dim;
}

// What one block gave to one token, started afresh, joins the running softmax. All [heads] or [heads, head_dim].
struct AttentionMerge {
  float* out;
  float* largest;
  float* sum;
  const float* part;
  const float* part_largest;
  const float* part_sum;
  int64_t heads;
  int64_t head_dim;
};

// Consecutive blocks of weights of type f32, bf16 or f16. Codes are packed; `error` may be null, else it is added to, block by
// block.
struct EncodeTile {
  const EncodeTable* table;
  const void* w;
  DType dtype;
  int64_t blocks;
  bool scale_search;
  uint8_t* codes;
  uint16_t* norms;
  EncodeError* error;
};

// The same for INT4; zeros null: symmetric.
struct Int4EncodeTile {
  const void* w;
  DType dtype;
  int64_t blocks;
  uint8_t* codes;
  uint16_t* scales;
  uint16_t* zeros;
  EncodeError* error;
};

// The integer product of coded matrices.
struct PolarKernels {
  void (*tile)(const PolarTile& tile);
  // Tokens [16 * group, 16 * group + 16) of the input.
  void (*pack)(const PolarInput& input, int64_t group);
  int64_t direct_tokens;  // up to so many tokens the tile reads the codes themselves and `packed` is null
};

extern const PolarKernels kPolarGeneric;
extern const PolarKernels kPolarAvx2;
extern const PolarKernels kPolarAvx2Vnni;
extern const PolarKernels kPolarAvx512;
extern const PolarKernels kPolarAvx512Vnni;
extern const PolarKernels kPolarAvx512Vbmi;
extern const PolarKernels kPolarAvx512Amx;

const PolarKernels& polar_kernels_of(Isa isa);

// All else.
struct Kernels {
  void (*float_tile)(const FloatTile& tile, float* out);
  void (*rms)(const RmsTile& tile);
  void (*prepare)(const PrepareArgs& args, int64_t token);
  // gate <- silu(gate) * up, count a multiple of 16
  void (*silu_mul)(float* gate, const float* up, int64_t count);
  void (*conv)(const ConvTile& tile);
  // y = x / sqrt(sum x^2 + 1e-6) * scale
  void (*l2_normalise)(float* y, const float* x, int64_t dim, float scale);
  float (*dot)(const float* a, const float* b, int64_t dim);
  float (*exp)(float x);
  void (*delta)(const DeltaTile& tile);
  void (*attention)(const AttentionTile& tile);
  void (*attention_merge)(const AttentionMerge& merge);
  // y = y / sum * sigmoid(gate); y [heads, head_dim], sum [heads], gate [heads] rows of stride 2 * head_dim.
  void (*attention_finish)(float* y, const float* sum, const float* gate, int64_t heads, int64_t head_dim);
  void (*store_halves)(uint16_t* y, const float* x, int64_t count);
  // The number of blocks before the first one with a weight that is not finite or a scale beyond the stored range.
  int64_t (*encode_blocks)(const EncodeTile& tile);
  int64_t (*encode_int4)(const Int4EncodeTile& tile);
  // Largest table, and buckets in the EncodeTable, of the encoder's fast path; 0: none.
  int encode_small_magnitudes;
  int encode_small_buckets;
};

extern const Kernels kGenericKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;

const Kernels& kernels_of(Isa isa);

}  // namespace pq
