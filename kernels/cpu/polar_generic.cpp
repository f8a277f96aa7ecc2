// The coded product in plain C++: a block of every row is unpacked, then an int32 dot product for each token.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/tensor.h"
#include "kernels/cpu/kernels.h"
#include "kernels/polar.h"

namespace pq {
namespace {

// sums [rows][tokens] of one unit.
void add_unit(const PolarTile& t, int64_t unit, float* sums) {
  int16_t weights[kTileRows][kBlock];
  float norms[kTileRows];
  uint8_t codes[kBlock];
  const int64_t bytes = coded_block_bytes(t.bits);
  std::fill(sums, sums + t.rows * t.tokens, 0.0f);
  for (int64_t b = 0; b < t.blocks; ++b) {
    for (int64_t r = 0; r < t.rows; ++r) {
      unpack_block(t.data + (unit * t.unit_stride + r * t.blocks + b) * bytes, t.bits, codes);
      for (int64_t i = 0; i < kBlock; ++i) weights[r][i] = t.table->value[codes[i]];
      norms[r] = f16_to_f32(t.norms[unit * t.unit_stride + r * t.blocks + b]);
    }
    for (int64_t token = 0; token < t.tokens; ++token) {
      const int64_t block = unit * t.blocks + b;
      const int8_t* x = t.codes + token * t.code_stride + block * kBlock;
      const float step = t.steps[block * t.padded + token];
      for (int64_t r = 0; r < t.rows; ++r) {
        int32_t dot = 0;
        for (int64_t i = 0; i < kBlock; ++i) dot += weights[r][i] * x[i];
        float& sum = sums[r * t.tokens + token];
        sum = std::fma(static_cast<float>(dot), norms[r] * step, sum);
      }
    }
  }
}

void tile(const PolarTile& t) {
  const int64_t count = t.rows * t.tokens;
  for (int64_t unit = 0; unit < t.units; ++unit) add_unit(t, unit, t.scratch + unit * count);
  for (int64_t distance = 1; distance < t.units; distance *= 2) {
    for (int64_t unit = 0; unit < t.units; unit += 2 * distance) {
      for (int64_t i = 0; i < count; ++i) t.scratch[unit * count + i] += t.scratch[(unit + distance) * count + i];
    }
  }
  for (int64_t token = 0; token < t.tokens; ++token) {
    for (int64_t r = 0; r < t.rows; ++r) t.y[token * t.y_stride + r] = t.scratch[r * t.tokens + token];
  }
}

void pack(const PolarInput& in, int64_t group) {
  const int64_t blocks = in.dim / kBlock;
  for (int64_t token = group * kTokenGroup; token < std::min((group + 1) * kTokenGroup, in.tokens); ++token) {
    for (int64_t b = 0; b < blocks; ++b) in.steps[b * in.padded + token] = in.scales[token * blocks + b] * in.int_step;
  }
}

}  // namespace

const PolarKernels kPolarGeneric = {.tile = tile, .pack = pack, .direct_tokens = std::numeric_limits<int64_t>::max()};

}  // namespace pq
