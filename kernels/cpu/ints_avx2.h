// Bytes, int16 and int32 in AVX2 registers: what both AVX2 paths of the coded product need but the dot product. Included inside a
// namespace by isa_avx2*.cpp.
#pragma once

using Ints = __m256i;
// int32 sums. g++ copies accumulators of type Ints around every dot product.
using Dots = int32_t __attribute__((vector_size(32)));
using Floats = __m256;
using Sign = __m256i;  // bytes below zero where negative, else above
static constexpr int kVectors = 4;     // of the 128 bytes of a block
static constexpr int kRowVectors = 8;   // rows times vectors of tokens whose sums the registers hold

PQ_INLINE Ints zeros() { return _mm256_setzero_si256(); }
PQ_INLINE Ints load_ints(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
PQ_INLINE void store_ints(void* p, Ints v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
PQ_INLINE Ints four_at(const uint8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm256_set1_epi32(four);
}
PQ_INLINE Ints add_bytes(Ints a, Ints b) { return _mm256_add_epi8(a, b); }
PQ_INLINE Ints all_bytes(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }
// Minus x where the sign is set, modulo 256.
PQ_INLINE Ints flip(Ints x, Sign sign) { return _mm256_sign_epi8(x, sign); }
PQ_INLINE Ints absolute_bytes(Ints x) { return _mm256_abs_epi8(x); }
PQ_INLINE Sign sign_of(Ints x) { return x; }

// Sixteen bytes repeated in every 128-bit lane.
PQ_INLINE Ints repeat(const uint8_t* p) { return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
PQ_INLINE Ints shuffle(Ints table, Ints index) { return _mm256_shuffle_epi8(table, index); }
// b where the bit of the byte is set, else a.
template <int bit>
PQ_INLINE Ints choose(Ints bits, Ints a, Ints b) {
  return _mm256_blendv_epi8(a, b, _mm256_slli_epi16(bits, 7 - bit));
}

PQ_INLINE Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
// y <- fma(dots, norm * step, y)
PQ_INLINE void add_scaled(float* y, Dots dots, float norm, Floats step) {
  _mm256_storeu_ps(y, _mm256_fmadd_ps(_mm256_cvtepi32_ps(Ints(dots)), _mm256_mul_ps(_mm256_set1_ps(norm), step), _mm256_loadu_ps(y)));
}

// Byte i is 255 where bit i of the 32 bits at `p` is set.
PQ_INLINE Ints spread_bits(const uint8_t* p) {
  const Ints bytes = _mm256_shuffle_epi8(
      four_at(p), _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3));
  const Ints bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
  return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
}

// Magnitude indices of the four quarters of a block, and which are negative. kRaw is for paths that read an index by its low bits.
template <int B, bool kRaw>
PQ_INLINE void unpack(const uint8_t* p, Ints m[4], Sign sign[4]) {
  for (int i = 0; i < 4; ++i) m[i] = zeros();
  if constexpr (B >= 5) {
    for (int i = 0; i < 2; ++i) {
      const Ints x = load_ints(p + 32 * i);
      m[i] = _mm256_and_si256(x, all_bytes(15));
      m[2 + i] = _mm256_and_si256(_mm256_srli_epi16(x, 4), all_bytes(15));
    }
    p += 64;
  }
  constexpr int kAbove = B >= 5 ? 4 : 0;
  constexpr int kLeft = B - 1 - kAbove;
  if constexpr (kLeft >= 2) {
    const Ints x = load_ints(p);
    for (int i = 0; i < 4; ++i) {
      const Ints two = _mm256_and_si256(_mm256_srli_epi16(x, 2 * i), all_bytes(3));
      m[i] = _mm256_or_si256(m[i], _mm256_slli_epi16(two, kAbove));
    }
    p += 32;
  }
  if constexpr (kLeft % 2 == 1) {
    for (int i = 0; i < 4; ++i) {
      m[i] = _mm256_or_si256(m[i], _mm256_and_si256(spread_bits(p + 4 * i), all_bytes(1 << (B - 2))));
    }
    p += 16;
  }
  for (int i = 0; i < 4; ++i) sign[i] = _mm256_or_si256(spread_bits(p + 4 * i), all_bytes(1));
}

// 32 weights as int16 from the bytes of their magnitudes.
PQ_INLINE void signed_words(Ints low, Ints high, Sign sign, Ints w[2]) {
  const Ints a = _mm256_sign_epi16(_mm256_unpacklo_epi8(low, high), _mm256_unpacklo_epi8(sign, sign));
  const Ints b = _mm256_sign_epi16(_mm256_unpackhi_epi8(low, high), _mm256_unpackhi_epi8(sign, sign));
  w[0] = _mm256_permute2x128_si256(a, b, 0x20);
  w[1] = _mm256_permute2x128_si256(a, b, 0x31);
}

// 32 int8 as int16.
PQ_INLINE void widen(const int8_t* x, Ints w[2]) {
  for (int i = 0; i < 2; ++i) w[i] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 16 * i)));
}

// Sums of eight registers of eight int32 lanes, in order.
PQ_INLINE Dots sum_eight(const Dots v[8]) {
  const Ints a = _mm256_hadd_epi32(_mm256_hadd_epi32(Ints(v[0]), Ints(v[1])), _mm256_hadd_epi32(Ints(v[2]), Ints(v[3])));
  const Ints b = _mm256_hadd_epi32(_mm256_hadd_epi32(Ints(v[4]), Ints(v[5])), _mm256_hadd_epi32(Ints(v[6]), Ints(v[7])));
  return Dots(_mm256_permute2x128_si256(a, b, 0x20)) + Dots(_mm256_permute2x128_si256(a, b, 0x31));
}

// Lane r of the result is the sum of the lanes of v[r], less `excess`.
PQ_INLINE Lanes sum_rows(const Dots v[16], int32_t excess) {
  return {_mm256_cvtepi32_ps(Ints(sum_eight(v) - excess)), _mm256_cvtepi32_ps(Ints(sum_eight(v + 8) - excess))};
}

// y[t * y_stride + r] = x[r * x_stride + t] for up to 16 rows r and 16 columns t.
PQ_INLINE void store_transposed(float* y, int64_t y_stride, const float* x, int64_t x_stride, int64_t rows, int64_t columns) {
  for (int64_t t = 0; t < columns; ++t) {
    for (int64_t r = 0; r < rows; ++r) y[t * y_stride + r] = x[r * x_stride + t];
  }
}

// out[q][t] = dword q of row t: sixteen rows of 64 bytes.
PQ_INLINE void transpose_dwords(const int8_t* x, int64_t stride, uint8_t* out) {
  for (int64_t q = 0; q < 16; ++q) {
    for (int64_t t = 0; t < 16; ++t) std::memcpy(out + 64 * q + 4 * t, x + t * stride + 4 * q, 4);
  }
}
