// Coded matrices in the order made for this plugin's kernels (WeightLayout::tiles), 5 bits a weight, and blocks of coded matrices
// in either order. A tile is one block of 128 inputs of up to eight consecutive rows of a unit: the nibbles of its rows, 64 bytes
// each, then their signs, 16 bytes each. Tiles of eight rows follow each other along the inputs, then comes the next eight rows;
// norms lie in a plane of their own in the same order. Byte for byte as large as in a store, so that matrices are put in order in
// place.
//
// Quarter q of a row of a tile is weights 32 q .. 32 q + 31: 16 bytes of nibbles in order, the lower half of a byte first, and one
// word of signs, weight 4 k + j being bit 8 j + 7 - k, so that a shift by k brings the signs of four weights to where
// spread_signs looks for them.
#pragma once

#include "kernels/cuda/device.h"

namespace pq::cuda {

inline constexpr int64_t kTileRows = 8;
inline constexpr int64_t kTileBytesARow = 80;
inline constexpr int kTileBits = 5;

// Bit of the sign of weight j of a quarter.
__device__ inline int sign_bit(int j) { return 8 * (j % 4) + 7 - j / 4; }

struct CodedBlock {
  const uint8_t* planes;
  const uint8_t* signs;  // tiles; else they are the last plane
  int64_t norm;          // index of its norm
};

// Block b of `blocks` of a row of a unit.
__device__ inline CodedBlock coded_block(const Matrix& m, int bits, int64_t unit, int64_t row, int64_t b, int64_t blocks) {
  const auto* data = static_cast<const uint8_t*>(m.data);
  if (m.layout == WeightLayout::store) {
    const int64_t index = (unit * m.rows + row) * blocks + b;
    return {data + index * 16 * bits, nullptr, index};
  }
  const int64_t first = row / kTileRows * kTileRows, within = row - first;
  const int64_t n = min(kTileRows, m.rows - first);
  const int64_t tile = (unit * m.rows + first) * blocks + b * n;
  const uint8_t* base = data + tile * kTileBytesARow;
  return {base + 64 * within, base + 64 * n + 16 * within, tile + within};
}

// The code 0 .. 2^bits - 1 of weight i of a block.
__device__ inline int code_at(const CodedBlock& block, int bits, int i) {
  if (block.signs == nullptr) return code_at(block.planes, bits, i);
  const int magnitude = (block.planes[i / 2] >> (4 * (i % 2))) & 15;
  const int bit = sign_bit(i % 32);
  const bool negative = (block.signs[4 * (i / 32) + bit / 8] >> (bit % 8)) & 1;
  return negative ? 15 - magnitude : 16 + magnitude;
}

// Rows [rows] of one unit, from a multiple of eight on: from store order at `from` to tiles at `data`.
void launch_arrange(uint8_t* data, uint16_t* norms, const uint8_t* from_data, const uint16_t* from_norms, int64_t rows,
                    int64_t blocks, cudaStream_t stream);

}  // namespace pq::cuda
