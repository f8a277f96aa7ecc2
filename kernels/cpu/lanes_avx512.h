// Sixteen float lanes in one AVX-512 register. Included inside a namespace by isa_avx512.cpp.
#pragma once

using Lanes = __m512;

// Register tiles of attention: query heads by positions, query heads by lane vectors of columns.
constexpr int kTileHeads = 6;
constexpr int kTilePositions = 4;
constexpr int kTileColumns = 4;

PQ_INLINE __mmask16 part(int64_t count) { return static_cast<__mmask16>((1u << count) - 1u); }
PQ_INLINE Lanes load(const float* p) { return _mm512_loadu_ps(p); }
PQ_INLINE Lanes load_part(const float* p, int64_t count) { return _mm512_maskz_loadu_ps(part(count), p); }
PQ_INLINE Lanes load_strided(const float* p, int64_t stride) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_i32gather_ps(_mm512_mullo_epi32(lane, _mm512_set1_epi32(static_cast<int>(stride))), p, 4);
}
PQ_INLINE Lanes load_i8(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
PQ_INLINE Lanes all_f16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<int16_t>(*p))); }
PQ_INLINE Lanes load_f16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
PQ_INLINE Lanes load_bf16(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
PQ_INLINE void store(float* p, Lanes x) { _mm512_storeu_ps(p, x); }
PQ_INLINE void store_part(float* p, Lanes x, int64_t count) { _mm512_mask_storeu_ps(p, part(count), x); }
PQ_INLINE void store_f16(uint16_t* p, Lanes x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
PQ_INLINE Lanes all(float value) { return _mm512_set1_ps(value); }
PQ_INLINE Lanes add(Lanes x, Lanes y) { return _mm512_add_ps(x, y); }
PQ_INLINE Lanes sub(Lanes x, Lanes y) { return _mm512_sub_ps(x, y); }
PQ_INLINE Lanes mul(Lanes x, Lanes y) { return _mm512_mul_ps(x, y); }
PQ_INLINE Lanes div(Lanes x, Lanes y) { return _mm512_div_ps(x, y); }
PQ_INLINE Lanes fma(Lanes x, Lanes y, Lanes z) { return _mm512_fmadd_ps(x, y, z); }
PQ_INLINE Lanes max(Lanes x, Lanes y) { return _mm512_max_ps(x, y); }
PQ_INLINE Lanes min(Lanes x, Lanes y) { return _mm512_min_ps(x, y); }
PQ_INLINE Lanes absolute(Lanes x) { return _mm512_abs_ps(x); }
PQ_INLINE Lanes negate(Lanes x) { return _mm512_xor_ps(x, _mm512_set1_ps(-0.0f)); }
PQ_INLINE Lanes add_exponent(Lanes x, Lanes n) {
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_slli_epi32(_mm512_castps_si512(n), 23)));
}
PQ_INLINE void store_low_bytes(int8_t* p, Lanes x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_castps_si512(x)));
}
// x; asks for a line of memory once it is computed: compilers move a plain prefetch to where they like.
PQ_INLINE Lanes prefetch_after(Lanes x, const char* line) {
  asm("prefetcht1 (%1)" : "+v"(x) : "r"(line));
  return x;
}
PQ_INLINE float fold(Lanes x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
// out[i] = fold(x[i]).
PQ_INLINE void store_folds(float* out, const Lanes (&x)[4]) {
  const Lanes ab = _mm512_add_ps(_mm512_mask_blend_ps(0xff00, x[0], x[1]), _mm512_shuffle_f32x4(x[0], x[1], 0x4e));
  const Lanes cd = _mm512_add_ps(_mm512_mask_blend_ps(0xff00, x[2], x[3]), _mm512_shuffle_f32x4(x[2], x[3], 0x4e));
  const Lanes four = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  const Lanes two = _mm512_add_ps(four, _mm512_permute_ps(four, 0x4e));
  const Lanes one = _mm512_add_ps(two, _mm512_permute_ps(two, 0xb1));
  _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, one)));
}
PQ_INLINE float fold_max(Lanes x) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
template <int d>
PQ_INLINE Lanes butterfly(Lanes x) {
  Lanes r;
  if constexpr (d == 1) r = _mm512_permute_ps(x, 0xb1);
  if constexpr (d == 2) r = _mm512_permute_ps(x, 0x4e);
  if constexpr (d == 4) r = _mm512_shuffle_f32x4(x, x, 0xb1);
  if constexpr (d == 8) r = _mm512_shuffle_f32x4(x, x, 0x4e);
  constexpr __mmask16 kUpper = d == 1 ? 0xaaaa : d == 2 ? 0xcccc : d == 4 ? 0xf0f0 : 0xff00;
  return _mm512_mask_sub_ps(_mm512_add_ps(x, r), kUpper, r, x);
}
PQ_INLINE Lanes from_int(const int32_t* p) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(p)); }
