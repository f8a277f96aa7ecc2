// What the products of matrices in tiles (kernels/cuda/tiles.h) read: quarters of a row of a tile, the signed weights in them, and
// the activations that meet them.
#pragma once

#include "kernels/cuda/tiles.h"

namespace pq::cuda {

// Row `place` of a tile, quarter `q`: weights 32 q .. 32 q + 31.
struct Quarter {
  uint4 nibbles;
  uint32_t signs;
  uint16_t norm;
};

// tile: the first byte of a tile of n rows; norms: its n norms.
__device__ inline Quarter load_quarter(const uint8_t* tile, const uint16_t* norms, int n, int place, int q) {
  Quarter w;
  w.nibbles = __ldg(reinterpret_cast<const uint4*>(tile + 64 * place + 16 * q));
  w.signs = __ldg(reinterpret_cast<const uint32_t*>(tile + 64 * n + 16 * place + 4 * q));
  w.norm = __ldg(norms + place);
  return w;
}

// Magnitudes of weights 4 k .. 4 k + 3 of the quarter. A selector above 7 asks for the sign of the byte it names, which is 0, so
// the halves of the table can be joined without masks.
__device__ inline uint32_t magnitudes_of(const Quarter& w, const uint32_t table[4], int k) {
  const uint32_t words[4] = {w.nibbles.x, w.nibbles.y, w.nibbles.z, w.nibbles.w};
  const uint32_t nibbles = words[k / 2] >> (16 * (k % 2));
  const uint32_t upper = (words[k / 2] ^ 0x88888888u) >> (16 * (k % 2));
  return select_bytes(table[0], table[1], nibbles) | select_bytes(table[2], table[3], upper);
}

// Their signs as bytes of 0 or 255.
__device__ inline uint32_t signs_of(const Quarter& w, int k) { return spread_signs(w.signs << k); }

__device__ inline void load_table(const int8_t* magnitudes, uint32_t table[4]) {
  const uint4 words = *reinterpret_cast<const uint4*>(magnitudes);
  table[0] = words.x;
  table[1] = words.y;
  table[2] = words.z;
  table[3] = words.w;
}

__device__ inline void load_activations(const int8_t* codes, int q, uint32_t x[8]) {
  const uint4 low = __ldg(reinterpret_cast<const uint4*>(codes + 32 * q));
  const uint4 high = __ldg(reinterpret_cast<const uint4*>(codes + 32 * q + 16));
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
