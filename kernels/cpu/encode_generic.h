// What the encoder needs beyond lanes, in plain C++: double sums, lookups, bits of signs. Included inside a namespace by
// isa_generic.cpp.
#pragma once

// x + y z, with one rounding or two: for what need not be the same bits everywhere.
PQ_INLINE Lanes add_product(const Lanes& x, const Lanes& y, const Lanes& z) { return add(x, mul(y, z)); }

struct Doubles {
  double v[16];
};

PQ_INLINE Doubles no_doubles() { return {}; }
PQ_INLINE Doubles add_squares(const Doubles& s, const Lanes& x) {
  Doubles r;
  for (int l = 0; l < 16; ++l) r.v[l] = s.v[l] + static_cast<double>(x.v[l]) * x.v[l];
  return r;
}
// Lane l: s + (z - gain c)^2, each operation rounded to double.
PQ_INLINE Doubles add_squared_errors(const Doubles& s, const Lanes& z, double gain, const Lanes& c) {
  Doubles r;
  for (int l = 0; l < 16; ++l) {
    const double d = z.v[l] - gain * c.v[l];
    r.v[l] = s.v[l] + d * d;
  }
  return r;
}
PQ_INLINE double fold(const Doubles& s) {
  Doubles r = s;
  for (int width = 8; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) r.v[l] += r.v[l + width];
  }
  return r.v[0];
}

// Lane l: fold(v[l]).
PQ_INLINE Lanes fold_each(const Lanes v[16]) {
  Lanes r;
  for (int l = 0; l < 16; ++l) r.v[l] = fold(v[l]);
  return r;
}

// By lanes, x > y ? yes : no.
PQ_INLINE Lanes if_above(const Lanes& x, const Lanes& y, const Lanes& yes, const Lanes& no) {
  Lanes r;
  for (int l = 0; l < 16; ++l) r.v[l] = x.v[l] > y.v[l] ? yes.v[l] : no.v[l];
  return r;
}
// Bit l: not x > y in lane l.
PQ_INLINE uint16_t bits_not_above(const Lanes& x, const Lanes& y) {
  int bits = 0;
  for (int l = 0; l < 16; ++l) bits |= !(x.v[l] > y.v[l]) << l;
  return static_cast<uint16_t>(bits);
}

struct Index {
  int32_t v[16];
};
// index + 1 where x > y.
PQ_INLINE Index step_above(const Index& index, const Lanes& x, const Lanes& y) {
  Index r;
  for (int l = 0; l < 16; ++l) r.v[l] = index.v[l] + (x.v[l] > y.v[l]);
  return r;
}
PQ_INLINE void store_bytes(uint8_t* p, const Index& index) {
  for (int l = 0; l < 16; ++l) p[l] = static_cast<uint8_t>(index.v[l]);
}
PQ_INLINE Index bucket_number(const Lanes& bucket) {
  Index r;
  for (int l = 0; l < 16; ++l) r.v[l] = std::bit_cast<int32_t>(bucket.v[l]) - std::bit_cast<int32_t>(kBucketZero);
  return r;
}
PQ_INLINE Lanes gather(const float* table, const Index& index) {
  Lanes r;
  for (int l = 0; l < 16; ++l) r.v[l] = table[index.v[l]];
  return r;
}
PQ_INLINE Index gather(const int32_t* table, const Index& index) {
  Index r;
  for (int l = 0; l < 16; ++l) r.v[l] = table[index.v[l]];
  return r;
}

template <int kEntries>
struct SmallTable;
constexpr int kSmallMagnitudes = 0;
constexpr int kSmallBuckets = 0;
