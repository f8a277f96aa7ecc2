// What the encoder needs beyond lanes, in AVX-512: double sums, lookups in small tables, bits of signs. Included inside a namespace
// by isa_avx512.cpp.
#pragma once

PQ_INLINE Lanes add_product(Lanes x, Lanes y, Lanes z) { return fma(y, z, x); }

// Sixteen double lanes.
struct Doubles {
  __m512d a;  // lanes 0-7
  __m512d b;  // lanes 8-15
};

PQ_INLINE Doubles no_doubles() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
PQ_INLINE __m512d low_doubles(Lanes x) { return _mm512_cvtps_pd(_mm512_castps512_ps256(x)); }
PQ_INLINE __m512d high_doubles(Lanes x) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)); }
// The square of a float is exact in double, so fma rounds like a product and a sum.
PQ_INLINE Doubles add_squares(const Doubles& s, Lanes x) {
  const __m512d a = low_doubles(x);
  const __m512d b = high_doubles(x);
  return {_mm512_fmadd_pd(a, a, s.a), _mm512_fmadd_pd(b, b, s.b)};
}
PQ_INLINE Doubles add_squared_errors(const Doubles& s, Lanes z, double gain, Lanes c) {
  const __m512d g = _mm512_set1_pd(gain);
  const __m512d a = _mm512_sub_pd(low_doubles(z), _mm512_mul_pd(g, low_doubles(c)));
  const __m512d b = _mm512_sub_pd(high_doubles(z), _mm512_mul_pd(g, high_doubles(c)));
  return {_mm512_add_pd(s.a, _mm512_mul_pd(a, a)), _mm512_add_pd(s.b, _mm512_mul_pd(b, b))};
}
PQ_INLINE double fold(const Doubles& s) {
  const __m512d eight = _mm512_add_pd(s.a, s.b);
  const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd(eight, 1));
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

// Lane l: fold(v[l]).
PQ_INLINE Lanes fold_each(const Lanes v[16]) {
  Lanes eight[8], four[4], two[2];
  for (int i = 0; i < 8; ++i) {
    eight[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[i], v[i + 8], 0x44), _mm512_shuffle_f32x4(v[i], v[i + 8], 0xee));
  }
  for (int i = 0; i < 4; ++i) {
    four[i] = _mm512_add_ps(_mm512_shuffle_f32x4(eight[i], eight[i + 4], 0x88), _mm512_shuffle_f32x4(eight[i], eight[i + 4], 0xdd));
  }
  for (int i = 0; i < 2; ++i) {
    const __m512d x = _mm512_castps_pd(four[i]);
    const __m512d y = _mm512_castps_pd(four[i + 2]);
    two[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  const Lanes one = _mm512_add_ps(_mm512_shuffle_ps(two[0], two[1], 0x88), _mm512_shuffle_ps(two[0], two[1], 0xdd));
  // Quarters of `one` hold v[0..3], v[8..11], v[4..7], v[12..15], each in the order 0, 2, 1, 3.
  const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
  return _mm512_permutexvar_ps(order, one);
}

PQ_INLINE Lanes if_above(Lanes x, Lanes y, Lanes yes, Lanes no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_GT_OQ), no, yes);
}
PQ_INLINE uint16_t bits_not_above(Lanes x, Lanes y) { return _mm512_cmp_ps_mask(x, y, _CMP_NGT_UQ); }

using Index = __m512i;
PQ_INLINE Index step_above(Index index, Lanes x, Lanes y) {
  return _mm512_mask_add_epi32(index, _mm512_cmp_ps_mask(x, y, _CMP_GT_OQ), index, _mm512_set1_epi32(1));
}
PQ_INLINE void store_bytes(uint8_t* p, Index index) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(index));
}

PQ_INLINE Index bucket_number(Lanes bucket) {
  return _mm512_sub_epi32(_mm512_castps_si512(bucket), _mm512_castps_si512(_mm512_set1_ps(kBucketZero)));
}
PQ_INLINE Lanes gather(const float* table, Index index) { return _mm512_i32gather_ps(index, table, 4); }
PQ_INLINE Index gather(const int32_t* table, Index index) { return _mm512_i32gather_epi32(index, table, 4); }

// Tables of up to 16 or 32 entries held in registers. An index is right in its low byte only.
template <int kEntries>
struct SmallTable {
  PQ_INLINE int steps(const EncodeTable&) { return 1; }
  PQ_INLINE Index first(const EncodeTable& t, Lanes bucket) {
    // The dword that holds the byte, moved down to it: a byte permutation would need VBMI.
    const __m512i index = _mm512_castps_si512(bucket);
    const __m512i four = _mm512_permutexvar_epi32(_mm512_srli_epi32(index, 2), _mm512_load_si512(t.small_first));
    return _mm512_srlv_epi32(four, _mm512_slli_epi32(_mm512_and_si512(index, _mm512_set1_epi32(3)), 3));
  }
  PQ_INLINE Lanes pick(const float* table, Index index) {
    if constexpr (kEntries == 16) return _mm512_permutexvar_ps(index, _mm512_load_ps(table));
    return _mm512_permutex2var_ps(_mm512_load_ps(table), index, _mm512_load_ps(table + 16));
  }
};
constexpr int kSmallMagnitudes = 32;
constexpr int kSmallBuckets = 64;
