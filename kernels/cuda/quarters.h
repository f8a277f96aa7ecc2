// What the products of matrices in tiles (kernels/cuda/tiles.h) read: quarters of a row of a tile, the signed weights in them, and
// the activations that meet them.
#pragma once

#include "kernels/cuda/tiles.h"

namespace pq::cuda {

// Quarter q of a row of a tile: weights 32 q .. 32 q + 31.
struct Quarter {
  uint4 nibbles;
  uint32_t signs;
  uint16_t norm;
};

// The quarters q of row `place` of every `step`th tile of a row of tiles, one after the other. tiles: the first byte of the first
// of them, of n rows; norms: its n norms. A pointer each, so that going on is an addition.
class Quarters {
 public:
  __device__ Quarters(const uint8_t* tiles, const uint16_t* norms, int n, int place, int q, int step)
      : nibbles_(tiles + 64 * place + 16 * q),
        signs_(tiles + 64 * n + 16 * place + 4 * q),
        norms_(norms + place),
        bytes_(static_cast<uint32_t>(step * n * static_cast<int>(kTileBytesARow))),
        rows_(static_cast<uint32_t>(step * n)) {}

  __device__ Quarter next() {
    Quarter w;
    w.nibbles = __ldg(reinterpret_cast<const uint4*>(nibbles_));
    w.signs = __ldg(reinterpret_cast<const uint32_t*>(signs_));
    w.norm = __ldg(norms_);
    nibbles_ += bytes_;
    signs_ += bytes_;
    norms_ += rows_;
    return w;
  }

 private:
  const uint8_t* nibbles_;
  const uint8_t* signs_;
  const uint16_t* norms_;
  uint32_t bytes_;
  uint32_t rows_;
};

// Weights 8 k .. 8 k + 7 of the quarter, four a word: their signs as bytes of 0 or 255, and their magnitudes, complemented (-m - 1)
// where they are negative. A selector above 7 asks for the sign of the byte it names, which is 0, so the halves of the table can be
// joined without masks.
struct EightWeights {
  uint32_t sign[2];
  uint32_t value[2];
};
__device__ inline EightWeights eight_weights(const Quarter& w, const uint32_t table[4], int k) {
  const uint32_t words[4] = {w.nibbles.x, w.nibbles.y, w.nibbles.z, w.nibbles.w};
  const uint32_t lower = words[k], upper = words[k] ^ 0x88888888u;
  EightWeights e;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    e.sign[i] = spread_signs(w.signs << (2 * k + i));
    e.value[i] =
        (select_bytes(table[0], table[1], lower >> (16 * i)) | select_bytes(table[2], table[3], upper >> (16 * i))) ^ e.sign[i];
  }
  return e;
}

__device__ inline void load_table(const int8_t* magnitudes, uint32_t table[4]) {
  const uint4 words = *reinterpret_cast<const uint4*>(magnitudes);
  table[0] = words.x;
  table[1] = words.y;
  table[2] = words.z;
  table[3] = words.w;
}

// Those that meet a quarter.
__device__ inline void load_activations(const int8_t* codes, uint32_t x[8]) {
  const uint4 low = __ldg(reinterpret_cast<const uint4*>(codes));
  const uint4 high = __ldg(reinterpret_cast<const uint4*>(codes + 16));
  x[0] = low.x;
  x[1] = low.y;
  x[2] = low.z;
  x[3] = low.w;
  x[4] = high.x;
  x[5] = high.y;
  x[6] = high.z;
  x[7] = high.w;
}

}  // namespace pq::cuda
