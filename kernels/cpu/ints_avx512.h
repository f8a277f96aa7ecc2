// Bytes, int16 and int32 in AVX-512 registers: what every AVX-512 path of the coded product needs but the choice of a centroid and
// the dot product. Included inside a namespace by isa_avx512*.cpp.
#pragma once

using Ints = __m512i;
// int32 sums. g++ copies accumulators of type Ints around every dot product.
using Dots = int32_t __attribute__((vector_size(64)));
using Floats = __m512;
using Sign = __mmask64;  // negative bytes
static constexpr int kVectors = 2;     // of the 128 bytes of a block
static constexpr int kRowVectors = 16;  // rows times vectors of tokens whose sums the registers hold

PQ_INLINE Ints zeros() { return _mm512_setzero_si512(); }
PQ_INLINE Ints load_ints(const void* p) { return _mm512_loadu_si512(p); }
PQ_INLINE void store_ints(void* p, Ints v) { _mm512_storeu_si512(p, v); }
PQ_INLINE Ints four_at(const uint8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}
PQ_INLINE Ints add_bytes(Ints a, Ints b) { return _mm512_add_epi8(a, b); }
PQ_INLINE Ints all_bytes(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }
// Minus x where the sign is set, modulo 256.
PQ_INLINE Ints flip(Ints x, Sign sign) { return _mm512_mask_sub_epi8(x, sign, zeros(), x); }
PQ_INLINE Ints absolute_bytes(Ints x) { return _mm512_abs_epi8(x); }
PQ_INLINE Sign sign_of(Ints x) { return _mm512_movepi8_mask(x); }

// Sixteen bytes repeated in every 128-bit lane.
PQ_INLINE Ints repeat(const uint8_t* p) { return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
PQ_INLINE Ints shuffle(Ints table, Ints index) { return _mm512_shuffle_epi8(table, index); }
// b where the bit of the byte is set, else a.
template <int bit>
PQ_INLINE Ints choose(Ints bits, Ints a, Ints b) {
  return _mm512_mask_blend_epi8(_mm512_test_epi8_mask(bits, all_bytes(1 << bit)), a, b);
}

PQ_INLINE Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
// y <- fma(dots, norm * step, y)
PQ_INLINE void add_scaled(float* y, Dots dots, float norm, Floats step) {
  _mm512_storeu_ps(y, _mm512_fmadd_ps(_mm512_cvtepi32_ps(Ints(dots)), _mm512_mul_ps(_mm512_set1_ps(norm), step), _mm512_loadu_ps(y)));
}

PQ_INLINE __mmask64 mask_at(const uint8_t* p) {
  uint64_t bits;
  std::memcpy(&bits, p, 8);
  return bits;
}

// Magnitude indices of weights 0-63 and 64-127, and which are negative. kRaw: of 5 bits, the upper four bits of an index are
// whatever the neighbouring weight has.
template <int B, bool kRaw>
PQ_INLINE void unpack(const uint8_t* p, Ints m[2], Sign sign[2]) {
  m[0] = m[1] = zeros();
  if constexpr (B >= 5) {
    m[0] = load_ints(p);
    m[1] = _mm512_srli_epi16(m[0], 4);
    if constexpr (B > 5 || !kRaw) {
      for (int i = 0; i < 2; ++i) m[i] = _mm512_and_si512(m[i], all_bytes(15));
    }
    p += 64;
  }
  constexpr int kAbove = B >= 5 ? 4 : 0;
  constexpr int kLeft = B - 1 - kAbove;
  if constexpr (kLeft >= 2) {
    const Ints x = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    // The lower half takes bits 0-1 (4-5), the upper half bits 2-3 (6-7).
    const Ints shift = _mm512_inserti64x4(zeros(), _mm256_set1_epi16(2), 1);
    const Ints first = _mm512_and_si512(_mm512_srlv_epi16(x, shift), all_bytes(3));
    const Ints second = _mm512_and_si512(_mm512_srlv_epi16(_mm512_srli_epi16(x, 4), shift), all_bytes(3));
    m[0] = _mm512_or_si512(m[0], _mm512_slli_epi16(first, kAbove));
    m[1] = _mm512_or_si512(m[1], _mm512_slli_epi16(second, kAbove));
    p += 32;
  }
  if constexpr (kLeft % 2 == 1) {
    const Ints bit = all_bytes(1 << (B - 2));
    m[0] = _mm512_mask_add_epi8(m[0], mask_at(p), m[0], bit);
    m[1] = _mm512_mask_add_epi8(m[1], mask_at(p + 8), m[1], bit);
    p += 16;
  }
  sign[0] = mask_at(p);
  sign[1] = mask_at(p + 8);
}

// 64 weights as int16 from the bytes of their magnitudes.
PQ_INLINE void signed_words(Ints low, Ints high, Sign sign, Ints w[2]) {
  // Two's complement of a 16-bit value by bytes: a non-zero low byte borrows from the high one.
  const Sign borrow = _mm512_mask_test_epi8_mask(sign, low, low);
  high = flip(high, sign);
  high = _mm512_mask_sub_epi8(high, borrow, high, all_bytes(1));
  low = flip(low, sign);
  const Ints a = _mm512_unpacklo_epi8(low, high);
  const Ints b = _mm512_unpackhi_epi8(low, high);
  w[0] = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), b);
  w[1] = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), b);
}

// 64 int8 as int16.
PQ_INLINE void widen(const int8_t* x, Ints w[2]) {
  for (int i = 0; i < 2; ++i) w[i] = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 32 * i)));
}

// The even 128-bit lanes of x, then of y, plus the odd ones.
PQ_INLINE Dots add_halves(Dots x, Dots y) {
  return Dots(_mm512_shuffle_i32x4(Ints(x), Ints(y), 0x88)) + Dots(_mm512_shuffle_i32x4(Ints(x), Ints(y), 0xdd));
}

// Lane r of the result is the sum of the lanes of v[r], less `excess`.
PQ_INLINE Lanes sum_rows(const Dots v[16], int32_t excess) {
  Dots a[8];
  for (int i = 0; i < 8; ++i) {
    const Ints x = Ints(v[2 * i]);
    const Ints y = Ints(v[2 * i + 1]);
    a[i] = Dots(_mm512_unpacklo_epi32(x, y)) + Dots(_mm512_unpackhi_epi32(x, y));
  }
  Dots b[4];
  for (int i = 0; i < 4; ++i) {
    const Ints x = Ints(a[2 * i]);
    const Ints y = Ints(a[2 * i + 1]);
    b[i] = Dots(_mm512_unpacklo_epi64(x, y)) + Dots(_mm512_unpackhi_epi64(x, y));
  }
  // b[i] holds rows 4i to 4i + 3 in each 128-bit lane.
  Dots c[2];
  for (int i = 0; i < 2; ++i) c[i] = add_halves(b[2 * i], b[2 * i + 1]);
  return _mm512_cvtepi32_ps(Ints(add_halves(c[0], c[1]) - excess));
}

// Transposes sixteen registers of sixteen dwords.
PQ_INLINE void transpose(Ints v[16]) {
  Ints t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 16; i += 8) {
    for (int k = 0; k < 4; ++k) {
      t[i + k] = _mm512_shuffle_i32x4(v[i + k], v[i + 4 + k], 0x88);
      t[i + 4 + k] = _mm512_shuffle_i32x4(v[i + k], v[i + 4 + k], 0xdd);
    }
  }
  for (int k = 0; k < 8; ++k) {
    v[k] = _mm512_shuffle_i32x4(t[k], t[8 + k], 0x88);
    v[8 + k] = _mm512_shuffle_i32x4(t[k], t[8 + k], 0xdd);
  }
}

// y[t * y_stride + r] = x[r * x_stride + t] for up to 16 rows r and 16 columns t. x is readable to 16 rows and columns.
PQ_INLINE void store_transposed(float* y, int64_t y_stride, const float* x, int64_t x_stride, int64_t rows, int64_t columns) {
  Ints v[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) v[r] = load_ints(x + r * x_stride);
  transpose(v);
  const __mmask16 present = part(rows);
#pragma GCC unroll 16
  for (int t = 0; t < 16; ++t) _mm512_mask_storeu_ps(y + t * y_stride, t < columns ? present : 0, _mm512_castsi512_ps(v[t]));
}

// out[q][t] = dword q of row t: sixteen rows of 64 bytes.
PQ_INLINE void transpose_dwords(const int8_t* x, int64_t stride, uint8_t* out) {
  Ints v[16];
  for (int64_t i = 0; i < 16; ++i) v[i] = load_ints(x + i * stride);
  transpose(v);
  for (int64_t i = 0; i < 16; ++i) store_ints(out + 64 * i, v[i]);
}
