// Sixteen float lanes in two AVX registers. Included inside a namespace by isa_avx2.cpp.
#pragma once

struct Lanes {
  __m256 a;  // lanes 0-7
  __m256 b;  // lanes 8-15
};

// Register tiles of attention: query heads by positions, query heads by lane vectors of columns.
constexpr int kTileHeads = 3;
constexpr int kTilePositions = 2;
constexpr int kTileColumns = 2;

PQ_INLINE Lanes load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
PQ_INLINE Lanes load_part(const float* p, int64_t count) {
  alignas(32) float v[16] = {};
  for (int64_t l = 0; l < count; ++l) v[l] = p[l];
  return {_mm256_load_ps(v), _mm256_load_ps(v + 8)};
}
PQ_INLINE Lanes load_strided(const float* p, int64_t stride) {
  alignas(32) float v[16];
  for (int64_t l = 0; l < 16; ++l) v[l] = p[l * stride];
  return {_mm256_load_ps(v), _mm256_load_ps(v + 8)};
}
PQ_INLINE Lanes load_i8(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
PQ_INLINE Lanes all_f16(const uint16_t* p) {
  const __m256 value = _mm256_cvtph_ps(_mm_set1_epi16(static_cast<int16_t>(*p)));
  return {value, value};
}
PQ_INLINE Lanes load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
PQ_INLINE __m256 widen_bf16(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
PQ_INLINE Lanes load_bf16(const uint16_t* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
PQ_INLINE void store(float* p, Lanes x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
PQ_INLINE void store_part(float* p, Lanes x, int64_t count) {
  alignas(32) float v[16];
  store(v, x);
  for (int64_t l = 0; l < count; ++l) p[l] = v[l];
}
PQ_INLINE void store_f16(uint16_t* p, Lanes x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
PQ_INLINE Lanes all(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
PQ_INLINE Lanes add(Lanes x, Lanes y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
PQ_INLINE Lanes sub(Lanes x, Lanes y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
PQ_INLINE Lanes mul(Lanes x, Lanes y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
PQ_INLINE Lanes div(Lanes x, Lanes y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
PQ_INLINE Lanes fma(Lanes x, Lanes y, Lanes z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
PQ_INLINE Lanes max(Lanes x, Lanes y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
PQ_INLINE Lanes min(Lanes x, Lanes y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
PQ_INLINE Lanes absolute(Lanes x) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(x.a, mask), _mm256_and_ps(x.b, mask)};
}
PQ_INLINE Lanes negate(Lanes x) {
  const __m256 mask = _mm256_set1_ps(-0.0f);
  return {_mm256_xor_ps(x.a, mask), _mm256_xor_ps(x.b, mask)};
}
PQ_INLINE __m256 add_exponent(__m256 x, __m256 n) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(_mm256_castps_si256(n), 23)));
}
PQ_INLINE Lanes add_exponent(Lanes x, Lanes n) { return {add_exponent(x.a, n.a), add_exponent(x.b, n.b)}; }
PQ_INLINE void store_low_bytes(int8_t* p, Lanes x) {
  const __m256i pick = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1,
                                        -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 1, 1, 1, 1, 1);
  const __m256i a = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(_mm256_castps_si256(x.a), pick), order);
  const __m256i b = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(_mm256_castps_si256(x.b), pick), order);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_unpacklo_epi64(_mm256_castsi256_si128(a), _mm256_castsi256_si128(b)));
}
// x; asks for a line of memory once it is computed: compilers move a plain prefetch to where they like.
PQ_INLINE Lanes prefetch_after(Lanes x, const char* line) {
  asm("prefetcht1 (%1)" : "+x"(x.b) : "r"(line));
  return x;
}
PQ_INLINE float fold(Lanes x) {
  const __m256 eight = _mm256_add_ps(x.a, x.b);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
PQ_INLINE float fold_max(Lanes x) {
  const __m256 eight = _mm256_max_ps(x.a, x.b);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
template <int d>
PQ_INLINE __m256 butterfly(__m256 x) {
  __m256 r;
  if constexpr (d == 1) r = _mm256_permute_ps(x, 0xb1);
  if constexpr (d == 2) r = _mm256_permute_ps(x, 0x4e);
  if constexpr (d == 4) r = _mm256_permute2f128_ps(x, x, 0x01);
  constexpr int kUpper = d == 1 ? 0xaa : d == 2 ? 0xcc : 0xf0;
  return _mm256_blend_ps(_mm256_add_ps(x, r), _mm256_sub_ps(r, x), kUpper);
}
template <int d>
PQ_INLINE Lanes butterfly(Lanes x) {
  if constexpr (d == 8) {
    return {_mm256_add_ps(x.a, x.b), _mm256_sub_ps(x.a, x.b)};
  } else {
    return {butterfly<d>(x.a), butterfly<d>(x.b)};
  }
}
PQ_INLINE Lanes from_int(const int32_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))),
          _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8)))};
}
