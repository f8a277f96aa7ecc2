// What the products of matrices in tiles (kernels/cuda/tiles.h) read: quarters of a row of a tile, the weights in them as rows of
// fragments of integer tensor cores, and the activations that meet them.
#pragma once

#include <array>

#include "kernels/cuda/tiles.h"

namespace pq::cuda {

// Widths whose integer centroids are bytes; those of the others have 16 bits.
constexpr bool byte_centroids(int bits) { return bits <= 5; }

// Quarter q of a row of a tile: its words in the order of the planes.
template <int kBits>
struct Quarter {
  uint32_t words[kBits];
  uint16_t norm;
};

// The quarters q of row `row` of every `step`th tile of a row of tiles, one after the other. tiles: the first byte of the first of
// them, of n rows; norms: its n norms. A pointer for each plane, so that going on is an addition.
template <int kBits>
class Quarters {
 public:
  __device__ Quarters(const uint8_t* tiles, const uint16_t* norms, int n, int row, int q, int step)
      : norms_(norms + row), bytes_(static_cast<uint32_t>(step * n * 16 * kBits)), rows_(static_cast<uint32_t>(step * n)) {
#pragma unroll
    for (int low = 0, p = 0; low < kBits; low += plane_width(kBits, low), ++p)
      planes_[p] = plane_quarter(tiles, n, row, kBits, low, q);
  }

  __device__ Quarter<kBits> next() {
    Quarter<kBits> w;
#pragma unroll
    for (int low = 0, p = 0; low < kBits; low += plane_width(kBits, low), ++p) {
      if (plane_width(kBits, low) == 4) {
        const uint4 words = __ldg(reinterpret_cast<const uint4*>(planes_[p]));
        w.words[low] = words.x;
        w.words[low + 1] = words.y;
        w.words[low + 2] = words.z;
        w.words[low + 3] = words.w;
      } else if (plane_width(kBits, low) == 2) {
        const uint2 words = __ldg(reinterpret_cast<const uint2*>(planes_[p]));
        w.words[low] = words.x;
        w.words[low + 1] = words.y;
      } else {
        w.words[low] = __ldg(reinterpret_cast<const uint32_t*>(planes_[p]));
      }
      planes_[p] += bytes_;
    }
    w.norm = __ldg(norms_);
    norms_ += rows_;
    return w;
  }

 private:
  static constexpr int kPlanes = kBits / 4 + kBits % 4 / 2 + kBits % 2;
  const uint8_t* planes_[kPlanes];
  const uint16_t* norms_;
  uint32_t bytes_;
  uint32_t rows_;
};

// Bits 2 k .. of the nibbles that are weights 8 k .. 8 k + 7 in a plane of two bits.
template <int kBits>
__device__ inline uint32_t two_bits(const Quarter<kBits>& w, int low, int k) {
  return (w.words[low + k / 2] >> (2 * (k % 2))) & 0x33333333u;
}

// Those of the plane of one bit, the last of 3 and 7 bits, as bits 2 of the nibbles.
template <int kBits>
__device__ inline uint32_t one_bit(const Quarter<kBits>& w, int k) {
  const uint32_t word = w.words[kBits - 1];
  return (k <= 2 ? word << (2 - k) : word >> 1) & 0x44444444u;
}

// Weights 8 k .. 8 k + 7 of a quarter, four a word, as bytes of two parts that depend on the width: two rows of a left fragment
// (upper_row, lower), whose sums join_rows puts together, or signed_bytes.
struct EightWeights {
  uint32_t upper[2];
  uint32_t lower[2];
};

// What bytes are selected from: the integer centroids by code of 2 and 3 bits; of 4, the magnitudes of codes 0 .. 7, which are
// negative, then those of 8 .. 15; of 5, magnitudes ascending. Zeros where centroids are no bytes.
inline std::array<int8_t, 16> make_byte_table(const Codebook& book) {
  std::array<int8_t, 16> table{};
  if (!byte_centroids(book.bits)) return table;
  const size_t half = book.int_magnitudes.size();
  for (size_t m = 0; m < half; ++m) {
    const auto magnitude = static_cast<int8_t>(book.int_magnitudes[m]);
    if (book.bits == 5) {
      table[m] = magnitude;
    } else {
      table[half - 1 - m] = book.bits == 4 ? magnitude : static_cast<int8_t>(-magnitude);
      table[half + m] = magnitude;
    }
  }
  return table;
}

// That table in registers.
template <int kBits>
struct ByteTable {
  uint32_t words[4];
  __device__ explicit ByteTable(const int8_t* bytes) {
    const uint4 all = *reinterpret_cast<const uint4*>(bytes);
    words[0] = all.x;
    words[1] = all.y;
    words[2] = all.z;
    words[3] = all.w;
  }

  // 2 and 3 bits: `upper` are the weights. 4 bits: `lower` are the magnitudes of negative weights, `upper` of the others. 5 bits:
  // `upper` are magnitudes, `lower` signs, bytes of 0 or 255. A selector above 7 asks for the sign of the byte it names, which is 0
  // of a magnitude, so that halves of a table need no masks.
  __device__ EightWeights eight(const Quarter<kBits>& w, int k) const {
    EightWeights e;
    if constexpr (kBits <= 3) {
      uint32_t codes = two_bits(w, 0, k);
      if constexpr (kBits == 3) codes |= one_bit(w, k);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        e.upper[i] = select_bytes(words[0], words[1], codes >> (16 * i));
        e.lower[i] = 0;
      }
    } else {
      const uint32_t codes = w.words[k], flipped = codes ^ 0x88888888u;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t first = select_bytes(words[0], words[1], codes >> (16 * i));
        const uint32_t second = select_bytes(words[2], words[3], flipped >> (16 * i));
        if constexpr (kBits == 4) {
          e.lower[i] = first;
          e.upper[i] = second;
        } else {
          e.lower[i] = spread_signs(w.words[4] << (2 * k + i));
          e.upper[i] = first | second;
        }
      }
    }
    return e;
  }

  // Weights as signed bytes. No byte of the difference borrows from the next, because magnitudes are below 128.
  __device__ static uint32_t signed_bytes(const EightWeights& e, int i) {
    if (kBits <= 3) return e.upper[i];
    const uint32_t positive = kBits == 4 ? e.upper[i] : e.upper[i] & ~e.lower[i];
    const uint32_t negative = kBits == 4 ? e.lower[i] : e.upper[i] & e.lower[i];
    return ((0x80808080u - negative) ^ 0x80808080u) | positive;
  }
};

// The integer centroids of other widths in shared memory, a copy for each lane's bank, because lanes ask for different codes:
// `upper` are their low bytes less 128, `lower` their high ones.
template <int kBits>
struct WideTable {
  static constexpr int kWords = 32 << kBits;
  const unsigned char* table;
  uint32_t lane;  // its offset in a row of copies

  // All threads of the block call it and wait for each other.
  __device__ WideTable(uint32_t* shared, const int16_t* values)
      : table(reinterpret_cast<const unsigned char*>(shared)), lane(4 * (threadIdx.x % 32)) {
    for (int i = threadIdx.x; i < kWords; i += blockDim.x) shared[i] = static_cast<uint16_t>(values[i / 32]) ^ 0x80u;
    __syncthreads();
  }

  __device__ EightWeights eight(const Quarter<kBits>& w, int k) const {
    // Codes of weights 8 k + 2 i and 8 k + 2 i + 1 as byte i of either word.
    const uint32_t low = w.words[k];
    uint32_t high;
    if constexpr (kBits == 8) {
      high = w.words[4 + k];
    } else {
      high = two_bits(w, 4, k);
      if constexpr (kBits == 7) high |= one_bit(w, k);
    }
    const uint32_t codes[2] = {(low & 0x0f0f0f0fu) | (high & 0x0f0f0f0fu) << 4, ((low >> 4) & 0x0f0f0f0fu) | (high & 0xf0f0f0f0u)};
    EightWeights e;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t value[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int shift = 8 * (2 * i + j / 2) - 7;
        const uint32_t at = (shift < 0 ? codes[j % 2] << -shift : codes[j % 2] >> shift) & (0xffu << 7);
        value[j] = *reinterpret_cast<const uint32_t*>(table + (at | lane));
      }
      const uint32_t first = select_bytes(value[0], value[1], 0x5140u), second = select_bytes(value[2], value[3], 0x5140u);
      e.upper[i] = select_bytes(first, second, 0x5410u);
      e.lower[i] = select_bytes(first, second, 0x7632u);
    }
    return e;
  }
};

// 5 bits: complements (-m - 1) where weights are negative, one too low, which the sum of their signs makes up for.
template <int kBits>
__device__ inline uint32_t upper_row(const EightWeights& e, int i) {
  return kBits == 5 ? e.upper[i] ^ e.lower[i] : e.upper[i];
}

// The dot product of a weight row with a token from the sums of its two rows, and from the sum of the token's codes where centroids
// have 16 bits.
template <int kBits>
__device__ inline int join_rows(int upper, int lower, int codes) {
  if (kBits <= 3) return upper;
  return byte_centroids(kBits) ? upper - lower : upper + 256 * lower + 128 * codes;
}

// The activations that meet a quarter.
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
