// Bit layout of a coded block: 128 codes of b bits as a sign plane and magnitude planes, 16 * b bytes. A code c of a symmetric
// table splits into sign (1: c < 2^(b-1)) and magnitude index m = sign ? 2^(b-1) - 1 - c : c - 2^(b-1).
//
// The b - 1 magnitude bits are cut into planes from the low bits up: a 4-bit plane when b - 1 >= 4, then a 2-bit plane when two or
// more remain, then a 1-bit plane when one remains. Planes are stored in that order, the sign plane (16 bytes) last:
//   4-bit plane, 64 bytes: byte i holds weight i (low nibble) and weight 64 + i (high nibble);
//   2-bit plane, 32 bytes: byte i holds weights i, 32 + i, 64 + i, 96 + i from the low bits up;
//   1-bit plane and sign plane, 16 bytes: weight i is bit i % 8 of byte i / 8.
// 5 bits: 64 + 16 bytes. Norms live in a plane of their own.
#pragma once

#include <cstdint>

namespace pq {

inline constexpr int64_t coded_block_bytes(int bits) { return 16 * bits; }

// codes [128], each below 2^bits; out [16 * bits].
void pack_block(const uint8_t* codes, int bits, uint8_t* out);

// The same from magnitude indices [128] and signs [8]: bit i % 16 of signs[i / 16] is 1 where weight i is negative.
void pack_planes(const uint8_t* magnitudes, const uint16_t* signs, int bits, uint8_t* out);

// The inverse of pack_block.
void unpack_block(const uint8_t* packed, int bits, uint8_t* codes);

}  // namespace pq
