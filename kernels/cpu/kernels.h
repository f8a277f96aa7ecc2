// The leaf functions that exist once per instruction set, as a table of pointers. Each isa_*.cpp compiles the same bodies
// (*_body.h) over its own sixteen float lanes (lanes_*.h); walking batches, spans and units is left to cpu_backend.cpp
// and cpu_sequence.cpp.
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cpu/isa.h"

namespace pq {

// Rows and tokens of one tile of a matrix product; a tile's result is float [kTileTokens][kTileRows].
inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kTileTokens = 32;

// What a codebook looks like to the integer kernels: magnitude m is low[m] + 256 * high[m]; value[code] carries the sign.
struct IntTable {
  alignas(64) uint8_t low[128] = {};
  alignas(64) uint8_t high[128] = {};
  int16_t value[256] = {};
};

// Up to kTileRows rows of one unit of a coded matrix against up to kTileTokens tokens of int8 activations. Pointers are at the
// first row and the first token, column 0 of the unit.
struct PolarTile {
  const uint8_t* data;
  const uint16_t* norms;
  const int8_t* codes;
  const float* scales;
  const int32_t* code_sums;  // sum of the codes of each block, laid out like scales
  int64_t rows;
  int64_t tokens;
  int64_t blocks;        // of the unit: stride of norms, and of data in coded blocks
  int64_t code_stride;   // dim
  int64_t scale_stride;  // dim / 128
  int bits;
  float int_step;
  const IntTable* table;
};

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

// The query heads of one kv head at one token.
struct AttentionTile {
  float* y;           // [heads, head_dim]
  const float* q;     // [heads, head_dim]
  const float* gate;  // [heads] rows of stride 2 * head_dim
  const void* k;      // [positions, head_dim]
  const void* v;
  KvType type;
  int64_t heads;
  int64_t head_dim;
  int64_t positions;
  float* scores;  // [heads, positions rounded up to 16], scratch
};

// Buckets of a magnitude are numbered in the low bits of a float: kBucketZero + n.
inline constexpr float kBucketZero = 12582912.0f;

// Multipliers of the norm that a scale search tries at most, in whole vectors.
inline constexpr int kEncodeTries = 48;

// A codebook as the encoder sees it. The index of a magnitude is the number of bounds below it: `first` of its bucket, then `steps`
// comparisons with the bound of the index so far. Bounds end with infinity.
struct EncodeTable {
  int bits = 0;
  int steps = 0;
  int tries = 0;
  bool small = false;  // small_first and one step do
  float per_unit = 0;  // bucket of a: kBucketZero + a * per_unit, rounded to nearest even, at most last_bucket
  float last_bucket = 0;
  float largest = 0;  // the largest magnitude
  float centre = 0;   // the largest z that is no nearer to the lowest centroid above zero than to the highest one below
  alignas(64) float magnitude[128] = {};
  alignas(64) float bound[128] = {};                // midpoints of magnitudes
  alignas(64) float signed_bound[2][128] = {};      // the largest |z| whose code is not the next one: z > centre, and the others
  alignas(64) float centroid[2][128] = {};          // by index: z above, and the others
  alignas(64) float multiplier[kEncodeTries] = {};  // [1, tries): times the largest coordinate over the largest magnitude
  alignas(64) uint8_t small_first[64] = {};
  int32_t large_first[1024] = {};
};

// Consecutive blocks. Codes are packed; `error` may be null, else it is added to, block by block.
struct EncodeTile {
  const EncodeTable* table;
  const float* w;
  int64_t blocks;
  bool scale_search;
  uint8_t* codes;
  uint16_t* norms;
  EncodeError* error;
};

struct Kernels {
  void (*polar_tile)(const PolarTile& tile, float* out);
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
  void (*store_halves)(uint16_t* y, const float* x, int64_t count);
  // The number of blocks before the first one with a weight that is not finite or a norm beyond fp16.
  int64_t (*encode_blocks)(const EncodeTile& tile);
  // Largest table, and buckets in the EncodeTable, of the encoder's fast path; 0: none.
  int encode_small_magnitudes;
  int encode_small_buckets;
};

extern const Kernels kGenericKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;

const Kernels& kernels_of(Isa isa);

}  // namespace pq
