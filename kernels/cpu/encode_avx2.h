// What the encoder needs beyond lanes, in AVX2: double sums, lookups in small tables, bits of signs. Included inside a namespace by
// isa_avx2.cpp.
#pragma once

PQ_INLINE Lanes add_product(Lanes x, Lanes y, Lanes z) { return fma(y, z, x); }

// Sixteen double lanes; part i holds lanes 4 i to 4 i + 3.
struct Doubles {
  __m256d part[4];
};

PQ_INLINE Doubles no_doubles() {
  const __m256d zero = _mm256_setzero_pd();
  return {{zero, zero, zero, zero}};
}
PQ_INLINE Doubles to_doubles(Lanes x) {
  return {{_mm256_cvtps_pd(_mm256_castps256_ps128(x.a)), _mm256_cvtps_pd(_mm256_extractf128_ps(x.a, 1)),
           _mm256_cvtps_pd(_mm256_castps256_ps128(x.b)), _mm256_cvtps_pd(_mm256_extractf128_ps(x.b, 1))}};
}
// The square of a float is exact in double, so fma rounds like a product and a sum.
PQ_INLINE Doubles add_squares(const Doubles& s, Lanes x) {
  const Doubles d = to_doubles(x);
  Doubles r;
  for (int i = 0; i < 4; ++i) r.part[i] = _mm256_fmadd_pd(d.part[i], d.part[i], s.part[i]);
  return r;
}
PQ_INLINE Doubles add_squared_errors(const Doubles& s, Lanes z, double gain, Lanes c) {
  const Doubles dz = to_doubles(z);
  const Doubles dc = to_doubles(c);
  Doubles r;
  for (int i = 0; i < 4; ++i) {
    const __m256d d = _mm256_sub_pd(dz.part[i], _mm256_mul_pd(_mm256_set1_pd(gain), dc.part[i]));
    r.part[i] = _mm256_add_pd(s.part[i], _mm256_mul_pd(d, d));
  }
  return r;
}
PQ_INLINE double fold(const Doubles& s) {
  const __m256d four = _mm256_add_pd(_mm256_add_pd(s.part[0], s.part[2]), _mm256_add_pd(s.part[1], s.part[3]));
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

// Eight vectors to one: lane l is the fold of v[l].
PQ_INLINE __m256 fold_eight(const __m256 v[8]) {
  __m256 four[4], two[2];
  for (int i = 0; i < 4; ++i) {
    four[i] = _mm256_add_ps(_mm256_permute2f128_ps(v[i], v[i + 4], 0x20), _mm256_permute2f128_ps(v[i], v[i + 4], 0x31));
  }
  for (int i = 0; i < 2; ++i) {
    const __m256d x = _mm256_castps_pd(four[i]);
    const __m256d y = _mm256_castps_pd(four[i + 2]);
    two[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)), _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
  }
  // Halves of the sum hold v[0..3] and v[4..7], each in the order 0, 2, 1, 3.
  const __m256 one = _mm256_add_ps(_mm256_shuffle_ps(two[0], two[1], 0x88), _mm256_shuffle_ps(two[0], two[1], 0xdd));
  return _mm256_permute_ps(one, 0xd8);
}

// Lane l: fold(v[l]).
PQ_INLINE Lanes fold_each(const Lanes v[16]) {
  __m256 eight[16];
  for (int i = 0; i < 16; ++i) eight[i] = _mm256_add_ps(v[i].a, v[i].b);
  return {fold_eight(eight), fold_eight(eight + 8)};
}

PQ_INLINE Lanes if_above(Lanes x, Lanes y, Lanes yes, Lanes no) {
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ)),
          _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ))};
}
PQ_INLINE uint16_t bits_not_above(Lanes x, Lanes y) {
  return static_cast<uint16_t>(_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_NGT_UQ)) |
                               (_mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_NGT_UQ)) << 8));
}

struct Index {
  __m256i a;
  __m256i b;
};
PQ_INLINE Index step_above(Index index, Lanes x, Lanes y) {
  // A true comparison is all ones, that is -1.
  return {_mm256_sub_epi32(index.a, _mm256_castps_si256(_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ))),
          _mm256_sub_epi32(index.b, _mm256_castps_si256(_mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ)))};
}
PQ_INLINE void store_bytes(uint8_t* p, Index index) {
  store_low_bytes(reinterpret_cast<int8_t*>(p), {_mm256_castsi256_ps(index.a), _mm256_castsi256_ps(index.b)});
}
PQ_INLINE Index bucket_number(Lanes bucket) {
  const __m256i zero = _mm256_castps_si256(_mm256_set1_ps(kBucketZero));
  return {_mm256_sub_epi32(_mm256_castps_si256(bucket.a), zero), _mm256_sub_epi32(_mm256_castps_si256(bucket.b), zero)};
}
PQ_INLINE Lanes gather(const float* table, Index index) {
  return {_mm256_i32gather_ps(table, index.a, 4), _mm256_i32gather_ps(table, index.b, 4)};
}
PQ_INLINE Index gather(const int32_t* table, Index index) {
  return {_mm256_i32gather_epi32(table, index.a, 4), _mm256_i32gather_epi32(table, index.b, 4)};
}

// Tables of up to 16 entries held in registers. An index is right in its low byte only.
template <int kEntries>
struct SmallTable {
  PQ_INLINE int steps(const EncodeTable&) { return 1; }
  PQ_INLINE __m256i first(const uint8_t* table, __m256 bucket) {
    // A byte shuffle gives 0 where bit 7 is set: + 0x70 sets it from 16 on, - 16 below 16.
    const __m256i n = _mm256_castps_si256(bucket);
    const __m256i low = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
    const __m256i high = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table + 16)));
    return _mm256_or_si256(_mm256_shuffle_epi8(low, _mm256_add_epi32(n, _mm256_set1_epi32(0x70))),
                           _mm256_shuffle_epi8(high, _mm256_add_epi8(n, _mm256_set1_epi32(0xf0))));
  }
  PQ_INLINE Index first(const EncodeTable& t, Lanes bucket) {
    return {first(t.small_first, bucket.a), first(t.small_first, bucket.b)};
  }
  PQ_INLINE __m256 pick(const float* table, __m256i index) {
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_load_ps(table), index);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 8), index);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
  }
  PQ_INLINE Lanes pick(const float* table, Index index) { return {pick(table, index.a), pick(table, index.b)}; }
};
constexpr int kSmallMagnitudes = 16;
constexpr int kSmallBuckets = 32;
