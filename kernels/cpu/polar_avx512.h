// The integer product of a coded tile with AVX-512 VNNI and VBMI, every width. Included inside a namespace by isa_avx512.cpp.
// Up to four tokens: magnitudes (unsigned) times activations that take the weight's sign. More: 16 rows are decoded once into quads
// of consecutive columns by row lanes, biased to unsigned, so that one broadcast of four activations meets 16 rows.
#pragma once

// Magnitudes of more than 5 bits take two bytes.
template <int B>
inline constexpr bool kWide = B > 5;

struct ByteTables {
  __m512i low[2];
  __m512i high[2];
};

PQ_INLINE ByteTables load_tables(const IntTable& table) {
  ByteTables tables;
  for (int i = 0; i < 2; ++i) {
    tables.low[i] = _mm512_load_si512(table.low + 64 * i);
    tables.high[i] = _mm512_load_si512(table.high + 64 * i);
  }
  return tables;
}

template <int B>
PQ_INLINE __m512i pick(const __m512i table[2], __m512i index) {
  if constexpr (B == 8) {
    return _mm512_permutex2var_epi8(table[0], index, table[1]);
  } else {
    return _mm512_permutexvar_epi8(index, table[0]);
  }
}

PQ_INLINE __mmask64 mask_at(const uint8_t* p) {
  uint64_t bits;
  std::memcpy(&bits, p, 8);
  return bits;
}

// Magnitude indices of weights 0-63 and 64-127, and the masks of negative ones.
template <int B>
PQ_INLINE void unpack(const uint8_t* p, __m512i m[2], __mmask64 sign[2]) {
  m[0] = m[1] = _mm512_setzero_si512();
  if constexpr (B >= 5) {
    const __m512i x = _mm512_loadu_si512(p);
    const __m512i nibble = _mm512_set1_epi8(15);
    m[0] = _mm512_and_si512(x, nibble);
    m[1] = _mm512_and_si512(_mm512_srli_epi16(x, 4), nibble);
    p += 64;
  }
  constexpr int kAbove = B >= 5 ? 4 : 0;
  constexpr int kLeft = B - 1 - kAbove;
  if constexpr (kLeft >= 2) {
    const __m512i x = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    const __m512i two = _mm512_set1_epi8(3);
    // The lower half takes bits 0-1 (4-5), the upper half bits 2-3 (6-7).
    const __m512i shift = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(2), 1);
    const __m512i first = _mm512_and_si512(_mm512_srlv_epi16(x, shift), two);
    const __m512i second = _mm512_and_si512(_mm512_srlv_epi16(_mm512_srli_epi16(x, 4), shift), two);
    m[0] = _mm512_or_si512(m[0], _mm512_slli_epi16(first, kAbove));
    m[1] = _mm512_or_si512(m[1], _mm512_slli_epi16(second, kAbove));
    p += 32;
  }
  if constexpr (kLeft % 2 == 1) {
    const __m512i bit = _mm512_set1_epi8(static_cast<char>(1 << (B - 2)));
    m[0] = _mm512_mask_add_epi8(m[0], mask_at(p), m[0], bit);
    m[1] = _mm512_mask_add_epi8(m[1], mask_at(p + 8), m[1], bit);
    p += 16;
  }
  sign[0] = mask_at(p);
  sign[1] = mask_at(p + 8);
}

// Transposes 16 registers of 16 dwords in place.
PQ_INLINE void transpose16(__m512i v[16]) {
  __m512i t[16];
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

// Lane r of the result is the sum of the lanes of v[r].
PQ_INLINE __m512i sum_rows(__m512i v[16]) {
  __m512i a[8];
  for (int i = 0; i < 8; ++i) {
    a[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
  }
  __m512i b[4];
  for (int i = 0; i < 4; ++i) {
    b[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(a[2 * i], a[2 * i + 1]), _mm512_unpackhi_epi64(a[2 * i], a[2 * i + 1]));
  }
  // b[i] holds rows 4i to 4i + 3 in each 128-bit lane.
  const __m512i c0 = _mm512_add_epi32(_mm512_shuffle_i32x4(b[0], b[1], 0x88), _mm512_shuffle_i32x4(b[0], b[1], 0xdd));
  const __m512i c1 = _mm512_add_epi32(_mm512_shuffle_i32x4(b[2], b[3], 0x88), _mm512_shuffle_i32x4(b[2], b[3], 0xdd));
  return _mm512_add_epi32(_mm512_shuffle_i32x4(c0, c1, 0x88), _mm512_shuffle_i32x4(c0, c1, 0xdd));
}

// Norms of 16 rows for 16 blocks from `block`: norms[i] holds the rows of block + i.
PQ_INLINE void load_norms(const PolarTile& t, int64_t block, __m512 norms[16]) {
  const __mmask16 present = part(std::min<int64_t>(16, t.blocks - block));
  __m512i v[16];
  for (int64_t r = 0; r < 16; ++r) {
    v[r] = _mm512_castps_si512(
        _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(present, t.norms + std::min(r, t.rows - 1) * t.blocks + block)));
  }
  transpose16(v);
  for (int i = 0; i < 16; ++i) norms[i] = _mm512_castsi512_ps(v[i]);
}

PQ_INLINE void add_dots(const PolarTile& t, __m512 norms, __m512i dots, int64_t token, int64_t block, float* out) {
  const Lanes factor = mul(mul(norms, all(t.scales[token * t.scale_stride + block])), all(t.int_step));
  float* y = out + token * kTileRows;
  store(y, fma(_mm512_cvtepi32_ps(dots), factor, load(y)));
}

template <int B, int T>
PQ_FUNCTION void polar_direct(const PolarTile& t, float* out) {
  const ByteTables tables = load_tables(*t.table);
  const __m512i zero = _mm512_setzero_si512();
  __m512 norms[16];
  for (int i = 0; i < T; ++i) store(out + i * kTileRows, all(0.0f));
  const uint8_t* rows[kTileRows];
  for (int64_t r = 0; r < kTileRows; ++r) rows[r] = t.data + std::min(r, t.rows - 1) * t.blocks * coded_block_bytes(B);
  const int64_t tile_bytes = kTileRows * t.blocks * coded_block_bytes(B);
  for (int64_t b = 0; b < t.blocks; ++b) {
    if (b % 16 == 0) load_norms(t, b, norms);
    __m512i dots[T][kTileRows];
    __m512i x[T][2];
    for (int i = 0; i < T; ++i) {
      x[i][0] = _mm512_loadu_si512(t.codes + i * t.code_stride + b * kBlock);
      x[i][1] = _mm512_loadu_si512(t.codes + i * t.code_stride + b * kBlock + 64);
    }
    for (int64_t r = 0; r < kTileRows; ++r) {
      __m512i m[2];
      __mmask64 sign[2];
      const uint8_t* block = rows[r] + b * coded_block_bytes(B);
      // The rows of the next tile follow this tile's. Sixteen streams of short steps are more than the hardware prefetcher follows.
      _mm_prefetch(reinterpret_cast<const char*>(block + tile_bytes), _MM_HINT_T1);
      _mm_prefetch(reinterpret_cast<const char*>(block + tile_bytes + 64), _MM_HINT_T1);
      unpack<B>(block, m, sign);
      const __m512i low[2] = {pick<B>(tables.low, m[0]), pick<B>(tables.low, m[1])};
      __m512i high[2];
      if constexpr (kWide<B>) {
        high[0] = pick<B>(tables.high, m[0]);
        high[1] = pick<B>(tables.high, m[1]);
      }
      for (int i = 0; i < T; ++i) {
        const __m512i a = _mm512_mask_sub_epi8(x[i][0], sign[0], zero, x[i][0]);
        const __m512i c = _mm512_mask_sub_epi8(x[i][1], sign[1], zero, x[i][1]);
        __m512i sum = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(zero, low[0], a), low[1], c);
        if constexpr (kWide<B>) {
          const __m512i upper = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(zero, high[0], a), high[1], c);
          sum = _mm512_add_epi32(sum, _mm512_slli_epi32(upper, 8));
        }
        dots[i][r] = sum;
      }
    }
    for (int i = 0; i < T; ++i) add_dots(t, norms[b % 16], sum_rows(dots[i]), i, b, out);
  }
}

// Quads of columns: quad[j] holds, for row r in dword r, the bytes of columns 4j to 4j + 3. `low` bytes are unsigned with the
// signed weight = low + 256 * (high - 128) when two bytes are used and low - 128 when one is.
struct Quads {
  __m512i low[32];
  __m512i high[32];
};

template <int B>
PQ_INLINE void decode_quads(const PolarTile& t, const ByteTables& tables, int64_t block, Quads* quads) {
  const __m512i zero = _mm512_setzero_si512();
  const __m512i bias = _mm512_set1_epi8(static_cast<char>(0x80));
  for (int64_t r = 0; r < kTileRows; ++r) {
    __m512i m[2];
    __mmask64 sign[2];
    unpack<B>(t.data + (std::min(r, t.rows - 1) * t.blocks + block) * coded_block_bytes(B), m, sign);
    for (int64_t half = 0; half < 2; ++half) {
      const __m512i low = pick<B>(tables.low, m[half]);
      const __m512i signed_low = _mm512_mask_sub_epi8(low, sign[half], zero, low);
      if constexpr (kWide<B>) {
        const __m512i high = pick<B>(tables.high, m[half]);
        // Two's complement of a 16-bit value by bytes: a non-zero low byte borrows from the high one.
        const __mmask64 borrow = _mm512_mask_test_epi8_mask(sign[half], low, low);
        const __m512i negative = _mm512_mask_sub_epi8(high, sign[half], zero, high);
        const __m512i signed_high = _mm512_mask_sub_epi8(negative, borrow, negative, _mm512_set1_epi8(1));
        quads->low[half * 16 + r] = signed_low;
        quads->high[half * 16 + r] = _mm512_xor_si512(signed_high, bias);
      } else {
        quads->low[half * 16 + r] = _mm512_xor_si512(signed_low, bias);
      }
    }
  }
  for (int half = 0; half < 2; ++half) {
    transpose16(quads->low + 16 * half);
    if constexpr (kWide<B>) transpose16(quads->high + 16 * half);
  }
}

template <int B, int T>
PQ_INLINE void quad_tokens(const PolarTile& t, const Quads& quads, __m512 norms, int64_t token, int64_t block, float* out) {
  __m512i low[T];
  __m512i high[T];
  __m512i total[T];
  const int8_t* x = t.codes + token * t.code_stride + block * kBlock;
  for (int i = 0; i < T; ++i) low[i] = high[i] = _mm512_setzero_si512();
  for (int j = 0; j < 32; ++j) {
    for (int i = 0; i < T; ++i) {
      int32_t four;
      std::memcpy(&four, x + i * t.code_stride + 4 * j, 4);
      const __m512i a = _mm512_set1_epi32(four);
      low[i] = _mm512_dpbusd_epi32(low[i], quads.low[j], a);
      if constexpr (kWide<B>) high[i] = _mm512_dpbusd_epi32(high[i], quads.high[j], a);
    }
  }
  for (int i = 0; i < T; ++i) {
    const __m512i excess = _mm512_set1_epi32(128 * t.code_sums[(token + i) * t.scale_stride + block]);
    if constexpr (kWide<B>) {
      total[i] = _mm512_add_epi32(low[i], _mm512_slli_epi32(_mm512_sub_epi32(high[i], excess), 8));
    } else {
      total[i] = _mm512_sub_epi32(low[i], excess);
    }
    add_dots(t, norms, total[i], token + i, block, out);
  }
}

template <int B>
PQ_FUNCTION void polar_quads(const PolarTile& t, float* out) {
  constexpr int kStep = kWide<B> ? 4 : 8;
  const ByteTables tables = load_tables(*t.table);
  __m512 norms[16];
  Quads quads;
  for (int64_t i = 0; i < t.tokens; ++i) store(out + i * kTileRows, all(0.0f));
  for (int64_t b = 0; b < t.blocks; ++b) {
    if (b % 16 == 0) load_norms(t, b, norms);
    decode_quads<B>(t, tables, b, &quads);
    int64_t token = 0;
    for (; token + kStep <= t.tokens; token += kStep) quad_tokens<B, kStep>(t, quads, norms[b % 16], token, b, out);
    for (; token < t.tokens; ++token) quad_tokens<B, 1>(t, quads, norms[b % 16], token, b, out);
  }
}

template <int B>
PQ_FUNCTION void polar_tile_bits(const PolarTile& t, float* out) {
  switch (t.tokens) {
    case 1:
      return polar_direct<B, 1>(t, out);
    case 2:
      return polar_direct<B, 2>(t, out);
    case 3:
      return polar_direct<B, 3>(t, out);
    case 4:
      return polar_direct<B, 4>(t, out);
    default:
      return polar_quads<B>(t, out);
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
    case 6:
      return polar_tile_bits<6>(t, out);
    case 7:
      return polar_tile_bits<7>(t, out);
    default:
      return polar_tile_bits<8>(t, out);
  }
}
