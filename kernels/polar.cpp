// Packs and unpacks coded blocks one weight at a time; fast decoders read the planes themselves.
#include "kernels/polar.h"

#include <algorithm>

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

void pack_block(const uint8_t* codes, int bits, uint8_t* out) {
  const int half = 1 << (bits - 1);
  std::fill(out, out + coded_block_bytes(bits), uint8_t{0});
  const Planes planes = planes_of(bits);
  for (int i = 0; i < 128; ++i) {
    const bool negative = codes[i] < half;
    const int magnitude = negative ? half - 1 - codes[i] : codes[i] - half;
    uint8_t* plane = out;
    int shift = 0;
    for (int width : planes.width) {
      if (width == 0) break;
      const int value = (magnitude >> shift) & ((1 << width) - 1);
      if (width == 1) {
        plane[i / 8] |= static_cast<uint8_t>(value << (i % 8));
      } else {
        const int bytes = 16 * width;
        plane[i % bytes] |= static_cast<uint8_t>(value << (width * (i / bytes)));
      }
      shift += width;
      plane += 16 * width;
    }
    plane[i / 8] |= static_cast<uint8_t>(negative << (i % 8));
  }
}

// Plane by plane in loops of independent bytes, which compilers turn into vector code: this is the decoder of every path that has
// no own one.
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
