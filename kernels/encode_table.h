// The PolarQuant encoder's view of a codebook, shared by the host backends and the CUDA plugin so that codes are the same bits, and
// what both refuse. Coding blocks is left to cpu/encode_body.h and cuda/encode.cu.
#pragma once

#include <cstdint>

#include "base/tensor.h"
#include "kernels/codebook.h"

namespace pq {

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

// small_magnitudes, small_buckets: the largest table and the buckets of a fast path that reads small_first; 0: none.
EncodeTable make_encode_table(const Codebook& book, int small_magnitudes, int small_buckets);

// Throws ErrorKind::internal unless w [rows, cols] of that type can be coded by blocks.
void check_encode(const char* op, DType dtype, int64_t rows, int64_t cols);

// Throws ErrorKind::input for a block that cannot be coded: names its first weight that is not finite, else says that its scale
// overflows. block [128]: the weights; row, first: where the block is.
[[noreturn]] void refuse_block(const char* op, const void* block, DType dtype, int64_t row, int64_t first);

}  // namespace pq
