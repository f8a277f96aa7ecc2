// Packs and unpacks coded blocks plane by plane, in loops of independent bytes that compilers turn into vector code. Fast decoders
// read the planes themselves.
#include "kernels/polar.h"

#include <initializer_list>

namespace pq {
namespace {

// Bits of the magnitude planes in storage order; 0 ends the list.
struct Planes {
  int width[4] = {0, 0, 0, 0};
};

Planes planes_of(int bits) {
  Planes planes;
  int left = bits - 1;
  int count = 0;
  for (int width : {4, 2, 1}) {
    if (left >= width) {
      planes.width[count++] = width;
      left -= width;
    }
  }
  return planes;
}

}  // namespace

void pack_planes(const uint8_t* magnitudes, const uint16_t* signs, int bits, uint8_t* out) {
  int shift = 0;
  for (int width : planes_of(bits).width) {
    if (width == 4) {
      for (int i = 0; i < 64; ++i) out[i] = static_cast<uint8_t>((magnitudes[i] & 15) | (magnitudes[64 + i] << 4));
    } else if (width == 2) {
      for (int i = 0; i < 32; ++i) {
        int value = 0;
        for (int k = 0; k < 4; ++k) value |= ((magnitudes[32 * k + i] >> shift) & 3) << (2 * k);
        out[i] = static_cast<uint8_t>(value);
      }
    } else if (width == 1) {
      for (int i = 0; i < 16; ++i) {
        int value = 0;
        for (int k = 0; k < 8; ++k) value |= ((magnitudes[8 * i + k] >> shift) & 1) << k;
        out[i] = static_cast<uint8_t>(value);
      }
    }
    shift += width;
    out += 16 * width;
  }
  for (int i = 0; i < 8; ++i) {
    out[2 * i] = static_cast<uint8_t>(signs[i] & 255);
    out[2 * i + 1] = static_cast<uint8_t>(signs[i] >> 8);
  }
}

void pack_block(const uint8_t* codes, int bits, uint8_t* out) {
  const int half = 1 << (bits - 1);
  uint8_t magnitudes[128];
  uint16_t signs[8] = {};
  for (int i = 0; i < 128; ++i) {
    const bool negative = codes[i] < half;
    magnitudes[i] = static_cast<uint8_t>(negative ? half - 1 - codes[i] : codes[i] - half);
    signs[i / 16] = static_cast<uint16_t>(signs[i / 16] | (negative << (i % 16)));
  }
  pack_planes(magnitudes, signs, bits, out);
}

// The decoder of every path that has no own one.
void unpack_block(const uint8_t* packed, int bits, uint8_t* codes) {
  const int half = 1 << (bits - 1);
  uint8_t magnitude[128] = {};
  const uint8_t* plane = packed;
  int shift = 0;
  for (int width : planes_of(bits).width) {
    if (width == 4) {
      for (int i = 0; i < 64; ++i) {
        magnitude[i] = plane[i] & 15;
        magnitude[64 + i] = plane[i] >> 4;
      }
    } else if (width == 2) {
      for (int k = 0; k < 4; ++k) {
        for (int i = 0; i < 32; ++i) magnitude[32 * k + i] |= static_cast<uint8_t>(((plane[i] >> (2 * k)) & 3) << shift);
      }
    } else if (width == 1) {
      for (int i = 0; i < 16; ++i) {
        for (int k = 0; k < 8; ++k) magnitude[8 * i + k] |= static_cast<uint8_t>(((plane[i] >> k) & 1) << shift);
      }
    }
    shift += width;
    plane += 16 * width;
  }
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 8; ++k) {
      const bool negative = (plane[i] >> k) & 1;
      const int m = magnitude[8 * i + k];
      codes[8 * i + k] = static_cast<uint8_t>(negative ? half - 1 - m : half + m);
    }
  }
}

}  // namespace pq
