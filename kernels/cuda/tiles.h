// Coded matrices in the order made for this plugin's kernels (WeightLayout::tiles), and blocks of coded matrices in either order. A
// tile is one block of 128 inputs of up to eight consecutive rows of a unit, cut into planes of 4, 4, 2 and 1 bits of each code, as
// many as its width is the sum of, the low bits first. A plane has its rows one after the other, 16 bytes for each of its bits.
// Tiles of eight rows follow each other along the inputs, then comes the next eight rows; norms lie in a plane of their own in the
// same order. Byte for byte as large as in a store, so that matrices are put in order in place.
//
// Quarter q of a row of a plane of w bits is weights 32 q .. 32 q + 31 in w words. Weights 8 k .. 8 k + 7 lie in the eight nibbles
// of a word, in order: of 4 bits in word k; of 2, in bits 2 (k % 2) .. of the nibbles of word k / 2; of 1, in bit k of each nibble.
//
// 5 bits differ: the magnitude is what the nibbles hold, and the single bits are 1 where a weight is negative, weight 4 k + j being
// bit 8 j + 7 - k, so that a shift by k brings the signs of four weights to where spread_signs looks for them.
#pragma once

#include "kernels/cuda/device.h"

namespace pq::cuda {

inline constexpr int64_t kTileRows = 8;

// Bits of a plane that begins at bit `low` of codes of `bits`; so many words of a quarter of a row are its own, and `low` of them
// are those of the planes before it.
__host__ __device__ constexpr int plane_width(int bits, int low) {
  const int left = bits - low;
  return left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

// Where weight j of a quarter lies in a plane.
struct PlaneBit {
  int word;
  int shift;
};
__host__ __device__ constexpr PlaneBit plane_bit(int bits, int width, int j) {
  const int k = j / 8, nibble = 4 * (j % 8);
  if (width == 4) return {k, nibble};
  if (width == 2) return {k / 2, nibble + 2 * (k % 2)};
  if (bits == 5) return {0, 8 * (j % 4) + 7 - j / 4};
  return {0, nibble + k};
}

// What planes hold of a code, and back.
__host__ __device__ constexpr int tile_code(int bits, int code) { return bits != 5 ? code : code < 16 ? 31 - code : code - 16; }
__host__ __device__ constexpr int code_of_tile(int bits, int stored) {
  return bits != 5 ? stored : stored < 16 ? stored + 16 : 31 - stored;
}

struct CodedBlock {
  const uint8_t* data;
  int rows;      // of the tile whose first byte `data` is; 0: a block in store order
  int row;       // in that tile
  int64_t norm;  // index of its norm
};

// Block b of `blocks` of a row of a unit.
__device__ inline CodedBlock coded_block(const Matrix& m, int bits, int64_t unit, int64_t row, int64_t b, int64_t blocks) {
  const auto* data = static_cast<const uint8_t*>(m.data);
  if (m.layout == WeightLayout::store) {
    const int64_t index = (unit * m.rows + row) * blocks + b;
    return {data + index * 16 * bits, 0, 0, index};
  }
  const int64_t first = row / kTileRows * kTileRows;
  const int64_t n = min(kTileRows, m.rows - first);
  const int64_t tile = (unit * m.rows + first) * blocks + b * n;
  return {data + tile * 16 * bits, static_cast<int>(n), static_cast<int>(row - first), tile + row - first};
}

// Quarter q of a row of the plane at bit `low`.
template <typename Byte>
__device__ inline Byte* plane_quarter(Byte* tile, int rows, int row, int bits, int low, int q) {
  return tile + 16 * low * rows + 4 * plane_width(bits, low) * (4 * row + q);
}

// The code 0 .. 2^bits - 1 of weight i of a block.
__device__ inline int code_at(const CodedBlock& block, int bits, int i) {
  if (block.rows == 0) return code_at(block.data, bits, i);
  int stored = 0, low = 0;
#pragma unroll
  for (int plane = 0; plane < 3 && low < bits; ++plane) {
    const int width = plane_width(bits, low);
    const PlaneBit at = plane_bit(bits, width, i % 32);
    const uint8_t* quarter = plane_quarter(block.data, block.rows, block.row, bits, low, i / 32);
    const int field = static_cast<int>(reinterpret_cast<const uint32_t*>(quarter)[at.word] >> at.shift) & ((1 << width) - 1);
    stored |= field << low;
    low += width;
  }
  return code_of_tile(bits, stored);
}

// Rows [rows] of one unit, from a multiple of eight on: from store order at `from` to tiles at `data`.
void launch_arrange(uint8_t* data, uint16_t* norms, const uint8_t* from_data, const uint16_t* from_norms, int bits, int64_t rows,
                    int64_t blocks, cudaStream_t stream);

}  // namespace pq::cuda
