// Sixteen float lanes in plain C++. Every operation is the IEEE one that the other lane types use, so results agree bit for bit.
// Included inside a namespace by isa_generic.cpp.
#pragma once

struct Lanes {
  float v[16];
};

// Register tiles of attention: query heads by positions, query heads by lane vectors of columns.
constexpr int kTileHeads = 2;
constexpr int kTilePositions = 2;
constexpr int kTileColumns = 2;

#define PQ_LANES(expression)                        \
  Lanes r;                                          \
  for (int l = 0; l < 16; ++l) r.v[l] = expression; \
  return r

PQ_INLINE Lanes load(const float* p) { PQ_LANES(p[l]); }
PQ_INLINE Lanes load_part(const float* p, int64_t count) { PQ_LANES(l < count ? p[l] : 0.0f); }
PQ_INLINE Lanes load_strided(const float* p, int64_t stride) { PQ_LANES(p[l * stride]); }
PQ_INLINE Lanes load_i8(const int8_t* p) { PQ_LANES(static_cast<float>(p[l])); }
PQ_INLINE Lanes all_f16(const uint16_t* p) { PQ_LANES(f16_to_f32(*p)); }
PQ_INLINE Lanes load_f16(const uint16_t* p) { PQ_LANES(f16_to_f32(p[l])); }
PQ_INLINE Lanes load_bf16(const uint16_t* p) { PQ_LANES(bf16_to_f32(p[l])); }
PQ_INLINE void store(float* p, const Lanes& a) {
  for (int l = 0; l < 16; ++l) p[l] = a.v[l];
}
PQ_INLINE void store_part(float* p, const Lanes& a, int64_t count) {
  for (int l = 0; l < count; ++l) p[l] = a.v[l];
}
PQ_INLINE void store_f16(uint16_t* p, const Lanes& a) {
  for (int l = 0; l < 16; ++l) p[l] = f32_to_f16(a.v[l]);
}
PQ_INLINE Lanes all(float value) { PQ_LANES(value); }
PQ_INLINE Lanes add(const Lanes& a, const Lanes& b) { PQ_LANES(a.v[l] + b.v[l]); }
PQ_INLINE Lanes sub(const Lanes& a, const Lanes& b) { PQ_LANES(a.v[l] - b.v[l]); }
PQ_INLINE Lanes mul(const Lanes& a, const Lanes& b) { PQ_LANES(a.v[l] * b.v[l]); }
PQ_INLINE Lanes div(const Lanes& a, const Lanes& b) { PQ_LANES(a.v[l] / b.v[l]); }
PQ_INLINE Lanes fma(const Lanes& a, const Lanes& b, const Lanes& c) { PQ_LANES(std::fma(a.v[l], b.v[l], c.v[l])); }
// Like the x86 instructions: the second operand when the two are equal or one is a NaN.
PQ_INLINE Lanes max(const Lanes& a, const Lanes& b) { PQ_LANES(a.v[l] > b.v[l] ? a.v[l] : b.v[l]); }
PQ_INLINE Lanes min(const Lanes& a, const Lanes& b) { PQ_LANES(a.v[l] < b.v[l] ? a.v[l] : b.v[l]); }
PQ_INLINE Lanes absolute(const Lanes& a) { PQ_LANES(std::bit_cast<float>(std::bit_cast<uint32_t>(a.v[l]) & 0x7fffffffu)); }
PQ_INLINE Lanes negate(const Lanes& a) { PQ_LANES(std::bit_cast<float>(std::bit_cast<uint32_t>(a.v[l]) ^ 0x80000000u)); }
// Adds the low bits of `n`, as an integer, to the exponent of `a`.
PQ_INLINE Lanes add_exponent(const Lanes& a, const Lanes& n) {
  PQ_LANES(std::bit_cast<float>(std::bit_cast<uint32_t>(a.v[l]) + (std::bit_cast<uint32_t>(n.v[l]) << 23)));
}
// The low byte of each lane's bit pattern.
PQ_INLINE void store_low_bytes(int8_t* p, const Lanes& a) {
  for (int l = 0; l < 16; ++l) p[l] = static_cast<int8_t>(std::bit_cast<uint32_t>(a.v[l]) & 0xffu);
}
// x; asks for a line of memory once it is computed: compilers move a plain prefetch to where they like.
PQ_INLINE const Lanes& prefetch_after(const Lanes& x, const char* line) {
  __builtin_prefetch(line, 0, 2);
  return x;
}
PQ_INLINE float fold(const Lanes& a) {
  Lanes r = a;
  for (int width = 8; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) r.v[l] += r.v[l + width];
  }
  return r.v[0];
}
PQ_INLINE float fold_max(const Lanes& a) {
  Lanes r = a;
  for (int width = 8; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) r.v[l] = r.v[l] > r.v[l + width] ? r.v[l] : r.v[l + width];
  }
  return r.v[0];
}
// Lane l without bit d: a[l] + a[l + d]; with it: a[l - d] - a[l].
template <int d>
PQ_INLINE Lanes butterfly(const Lanes& a) {
  PQ_LANES(l & d ? a.v[l ^ d] - a.v[l] : a.v[l] + a.v[l ^ d]);
}
PQ_INLINE Lanes from_int(const int32_t* p) { PQ_LANES(static_cast<float>(p[l])); }
#undef PQ_LANES
