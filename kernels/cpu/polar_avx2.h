// The integer product of a coded tile with AVX2, 2 to 5 bits: magnitudes by byte shuffle, signs by byte sign, pairs by maddubs.
// Included inside a namespace by isa_avx2.cpp.
#pragma once

// Byte i is 255 where bit i of the 32 bits at `p` is set.
PQ_INLINE __m256i spread_bits(const uint8_t* p) {
  int32_t bits;
  std::memcpy(&bits, p, 4);
  const __m256i bytes = _mm256_shuffle_epi8(
      _mm256_set1_epi32(bits),
      _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3));
  const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
  return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
}

// Signed centroids of one block.
template <int B>
PQ_INLINE void decode_block(const uint8_t* p, __m256i table, int8_t* w) {
  __m256i m[4];
  for (__m256i& v : m) v = _mm256_setzero_si256();
  if constexpr (B == 5) {
    const __m256i low = _mm256_set1_epi8(15);
    for (int i = 0; i < 2; ++i) {
      const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32 * i));
      m[i] = _mm256_and_si256(x, low);
      m[2 + i] = _mm256_and_si256(_mm256_srli_epi16(x, 4), low);
    }
    p += 64;
  }
  if constexpr (B == 3 || B == 4) {
    const __m256i low = _mm256_set1_epi8(3);
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    m[0] = _mm256_and_si256(x, low);
    m[1] = _mm256_and_si256(_mm256_srli_epi16(x, 2), low);
    m[2] = _mm256_and_si256(_mm256_srli_epi16(x, 4), low);
    m[3] = _mm256_and_si256(_mm256_srli_epi16(x, 6), low);
    p += 32;
  }
  if constexpr (B == 2 || B == 4) {
    const __m256i bit = _mm256_set1_epi8(B == 2 ? 1 : 4);
    for (int i = 0; i < 4; ++i) m[i] = _mm256_or_si256(m[i], _mm256_and_si256(spread_bits(p + 4 * i), bit));
    p += 16;
  }
  for (int i = 0; i < 4; ++i) {
    const __m256i sign = _mm256_or_si256(spread_bits(p + 4 * i), _mm256_set1_epi8(1));
    _mm256_store_si256(reinterpret_cast<__m256i*>(w + 32 * i), _mm256_sign_epi8(_mm256_shuffle_epi8(table, m[i]), sign));
  }
}

// Sums of eight registers of eight int32 lanes, in order.
PQ_INLINE __m256i sum_eight(const __m256i v[8]) {
  const __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
  const __m256i b = _mm256_hadd_epi32(_mm256_hadd_epi32(v[4], v[5]), _mm256_hadd_epi32(v[6], v[7]));
  return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

template <int B>
PQ_FUNCTION void polar_tile_bits(const PolarTile& t, float* out) {
  alignas(32) int8_t weights[kTileRows][kBlock] = {};
  const __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(t.table->low)));
  const __m256i ones = _mm256_set1_epi16(1);
  clear_tile(t, out);
  for (int64_t b = 0; b < t.blocks; ++b) {
    for (int64_t r = 0; r < t.rows; ++r) decode_block<B>(t.data + (r * t.blocks + b) * coded_block_bytes(B), table, weights[r]);
    const Lanes norms = block_norms(t, b);
    for (int64_t token = 0; token < t.tokens; ++token) {
      const int8_t* x = t.codes + token * t.code_stride + b * kBlock;
      alignas(32) int32_t dots[kTileRows];
      for (int64_t half = 0; half < kTileRows; half += 8) {
        __m256i sum[8];
        for (int64_t r = 0; r < 8; ++r) {
          sum[r] = _mm256_setzero_si256();
          for (int64_t i = 0; i < kBlock; i += 32) {
            const __m256i w = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights[half + r] + i));
            const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
            // |w| * (a with the sign of w): pairs stay below 2 * 127 * 127 < 2^15.
            const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
            sum[r] = _mm256_add_epi32(sum[r], _mm256_madd_epi16(pairs, ones));
          }
        }
        _mm256_store_si256(reinterpret_cast<__m256i*>(dots + half), sum_eight(sum));
      }
      add_block(t, norms, dots, token, b, out);
    }
  }
}

PQ_FUNCTION void polar_tile(const PolarTile& t, float* out) {
  switch (t.bits) {
    case 2:
      return polar_tile_bits<2>(t, out);
    case 3:
      return polar_tile_bits<3>(t, out);
    case 4:
      return polar_tile_bits<4>(t, out);
    case 5:
      return polar_tile_bits<5>(t, out);
    default:
      return polar_tile_scalar(t, out);
  }
}
