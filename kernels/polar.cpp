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

void unpack_block(const uint8_t* packed, int bits, uint8_t* codes) {
  const int half = 1 << (bits - 1);
  const Planes planes = planes_of(bits);
  for (int i = 0; i < 128; ++i) {
    const uint8_t* plane = packed;
    int shift = 0;
    int magnitude = 0;
    for (int width : planes.width) {
      if (width == 0) break;
      const int bytes = 16 * width;
      const int value = width == 1 ? plane[i / 8] >> (i % 8) : plane[i % bytes] >> (width * (i / bytes));
      magnitude |= (value & ((1 << width) - 1)) << shift;
      shift += width;
      plane += bytes;
    }
    const bool negative = (plane[i / 8] >> (i % 8)) & 1;
    codes[i] = static_cast<uint8_t>(negative ? half - 1 - magnitude : half + magnitude);
  }
}

}  // namespace pq
