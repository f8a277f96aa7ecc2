// The integer product of a coded tile, written once over the vectors of polar_avx512.h or polar_avx2.h. Included inside a
// namespace. Up to direct_tokens tokens: a row's weights stay in registers, lanes are columns. More: lanes are tokens, a panel of
// weights is decoded once for all of them and read four bytes at a time. Up to 5 bits a weight is a byte; above it is an int16.
#pragma once

template <int B>
inline constexpr bool kWide = B > 5;
template <int B>
inline constexpr int64_t kDecodedBytes = kWide<B> ? 2 * kBlock : kBlock;

template <int B>
PQ_INLINE void decode_bytes(const uint8_t* p, const Tables& tables, Weights w[kVectors]) {
  Ints m[kVectors];
  Sign sign[kVectors];
  unpack<B, kRawIndex>(p, m, sign);
  for (int i = 0; i < kVectors; ++i) w[i] = weights_from(pick<B>(tables.low, m[i]), sign[i]);
}

template <int B>
PQ_INLINE void decode_words(const uint8_t* p, const Tables& tables, Ints w[2 * kVectors]) {
  Ints m[kVectors];
  Sign sign[kVectors];
  unpack<B, kRawIndex>(p, m, sign);
  for (int i = 0; i < kVectors; ++i) signed_words(pick<B>(tables.low, m[i]), pick<B>(tables.high, m[i]), sign[i], w + 2 * i);
}

// norms[b] holds rows 0 to 15 of block `b`; missing rows repeat the last. blocks <= 8.
PQ_INLINE void load_norms(const uint16_t* p, int64_t stride, int64_t rows, int64_t blocks, uint16_t norms[8][16]) {
  if (blocks < 8) {
    for (int64_t r = 0; r < 16; ++r) {
      for (int64_t b = 0; b < blocks; ++b) norms[b][r] = p[std::min(r, rows - 1) * stride + b];
    }
    return;
  }
  for (int64_t half = 0; half < 16; half += 8) {
    __m128i v[8];
    __m128i t[8];
    for (int64_t r = 0; r < 8; ++r)
      v[r] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + std::min(half + r, rows - 1) * stride));
    for (int i = 0; i < 4; ++i) {
      t[2 * i] = _mm_unpacklo_epi16(v[2 * i], v[2 * i + 1]);
      t[2 * i + 1] = _mm_unpackhi_epi16(v[2 * i], v[2 * i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
      v[4 * i] = _mm_unpacklo_epi32(t[4 * i], t[4 * i + 2]);
      v[4 * i + 1] = _mm_unpackhi_epi32(t[4 * i], t[4 * i + 2]);
      v[4 * i + 2] = _mm_unpacklo_epi32(t[4 * i + 1], t[4 * i + 3]);
      v[4 * i + 3] = _mm_unpackhi_epi32(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(norms[2 * i] + half), _mm_unpacklo_epi64(v[i], v[4 + i]));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(norms[2 * i + 1] + half), _mm_unpackhi_epi64(v[i], v[4 + i]));
    }
  }
}

PQ_INLINE int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// Codes and norms of sixteen rows of a unit.
struct Rows {
  const uint8_t* data;
  const uint16_t* norms;
};

PQ_INLINE Rows rows_at(const PolarTile& t, int64_t unit, int64_t row) {
  const int64_t index = unit * t.unit_stride + row * t.blocks;
  return {t.data + index * coded_block_bytes(t.bits), t.norms + index};
}

// `blocks` blocks further.
template <int B>
PQ_INLINE Rows skip_rows(const Rows& at, int64_t blocks) {
  return {at.data + blocks * coded_block_bytes(B), at.norms + blocks};
}

// What is read after the rows before `row` of a unit: the next rows of the unit, those of the next unit, or what the caller reads
// next.
template <int B>
PQ_INLINE Rows rows_after(const PolarTile& t, int64_t unit, int64_t row) {
  while (row >= t.rows && unit < t.units) {
    row = std::max<int64_t>(0, row - round_up(t.rows, 16));
    ++unit;
  }
  return unit < t.units ? rows_at(t, unit, row) : skip_rows<B>({t.next, t.next_norms}, row * t.blocks);
}

PQ_INLINE void fetch_line(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

// Fetches the part of the next sixteen rows that is due while row r of block b is worked on: a line every 64 bytes of codes. They
// are walked as four streams, which keeps more reads of memory under way than one stream or sixteen.
template <int B>
PQ_INLINE void fetch(const Rows& next, int64_t blocks, int64_t b, int64_t r) {
  const int64_t part = 4 * blocks * coded_block_bytes(B);
  // B / 4 lines a row: two or one, then the same one twice.
  for (const int64_t line : {r * B / 4, (r + 1) * B / 4 - 1})
    fetch_line(next.data + (line & 3) * part + (b * B + (line >> 2)) * 64);
  if (r == 0) fetch_line(next.norms + 16 * b);
}

// out [T][16] of sixteen rows of one unit, whose first block of the input is `first`.
template <int B, int T>
PQ_FUNCTION void direct_rows(const PolarTile& t, const Rows& at, const Rows& next, int64_t rows, int64_t first, float* out) {
  constexpr int kParts = kWide<B> ? 2 * kVectors : kVectors;
  const Tables tables = load_tables<B>(*t.table, kWide<B> ? 0 : kBias);
  const uint8_t* lines[16];
  for (int64_t r = 0; r < 16; ++r) lines[r] = at.data + std::min(r, rows - 1) * t.blocks * coded_block_bytes(B);
  Lanes sum[T];
  for (int i = 0; i < T; ++i) sum[i] = all(0.0f);
  uint16_t norms[8][16];
  for (int64_t b = 0; b < t.blocks; ++b) {
    if (b % 8 == 0) load_norms(at.norms + b, t.blocks, rows, std::min<int64_t>(8, t.blocks - b), norms);
    Ints x[T][kParts];
    for (int i = 0; i < T; ++i) {
      const int8_t* codes = t.codes + i * t.code_stride + (first + b) * kBlock;
      if constexpr (kWide<B>) {
        for (int k = 0; k < kVectors; ++k) widen(codes + k * (kBlock / kVectors), x[i] + 2 * k);
      } else {
        for (int k = 0; k < kVectors; ++k) x[i][k] = load_ints(codes + k * (kBlock / kVectors));
      }
    }
    Dots dots[T][16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) {
      const uint8_t* block = lines[r] + b * coded_block_bytes(B);
      fetch<B>(next, t.blocks, b, r);
      if constexpr (kWide<B>) {
        Ints w[kParts];
        decode_words<B>(block, tables, w);
        for (int i = 0; i < T; ++i) {
          dots[i][r] = Dots{};
          for (int k = 0; k < kParts; ++k) dots[i][r] = dot_words(dots[i][r], w[k], x[i][k]);
        }
      } else {
        Weights w[kParts];
        decode_bytes<B>(block, tables, w);
        for (int i = 0; i < T; ++i) {
          dots[i][r] = Dots{};
          for (int k = 0; k < kParts; ++k) dots[i][r] = dot(dots[i][r], w[k], x[i][k]);
        }
      }
    }
    const Lanes norm = load_f16(norms[b % 8]);
    for (int i = 0; i < T; ++i) {
      const int64_t at_block = (first + b) * t.padded + i;
      const int32_t excess = kWide<B> ? 0 : t.excess[at_block];
      sum[i] = fma(sum_rows(dots[i], excess), mul(norm, all(t.steps[at_block])), sum[i]);
    }
  }
  for (int i = 0; i < T; ++i) store(out + 16 * i, sum[i]);
}

// The balanced tree over units; `count` values each.
PQ_INLINE void add_units(float* sums, int64_t units, int64_t count) {
  for (int64_t distance = 1; distance < units; distance *= 2) {
    for (int64_t unit = 0; unit < units; unit += 2 * distance) {
      float* a = sums + unit * count;
      const float* b = sums + (unit + distance) * count;
      for (int64_t i = 0; i < count; i += 16) store(a + i, add(load(a + i), load(b + i)));
    }
  }
}

// How many groups of sixteen rows ahead memory is read: as far as it takes to keep it busy, and no further.
template <int B>
PQ_INLINE int64_t groups_ahead(int64_t blocks) {
  constexpr int64_t kAheadBytes = 12 << 10;
  const int64_t group = 16 * blocks * coded_block_bytes(B);
  return std::min<int64_t>(4, (kAheadBytes + group - 1) / group);
}

template <int B, int T>
PQ_FUNCTION void direct(const PolarTile& t) {
  const int64_t groups = (t.rows + 15) / 16;
  const int64_t ahead = groups_ahead<B>(t.blocks);
  for (int64_t unit = 0; unit < t.units; ++unit) {
    for (int64_t g = 0; g < groups; ++g) {
      direct_rows<B, T>(t, rows_at(t, unit, 16 * g), rows_after<B>(t, unit, 16 * (g + ahead)),
                        std::min<int64_t>(16, t.rows - 16 * g), unit * t.blocks, t.scratch + (unit * groups + g) * T * 16);
    }
  }
  add_units(t.scratch, t.units, groups * T * 16);
  for (int64_t g = 0; g < groups; ++g) {
    for (int i = 0; i < T; ++i) {
      store_part(t.y + i * t.y_stride + 16 * g, load(t.scratch + (g * T + i) * 16), std::min<int64_t>(16, t.rows - 16 * g));
    }
  }
}

// Blocks decoded at a time for all tokens, and rows of a group when the tokens are few.
static constexpr int64_t kPanelBlocks = 8;
static constexpr int64_t kFewRows = 32;
// Tokens whose sums stay in the first-level cache while a panel passes.
static constexpr int64_t kTokensAtOnce = 64;

template <int B>
struct alignas(64) Panel {
  uint8_t weights[kPanelBlocks][kTileRows][kDecodedBytes<B>];
  float norms[kPanelBlocks][kTileRows];
};

// A range of rows to be fetched while others are worked on, by pieces of equal length that are walked side by side.
struct Ahead {
  Rows at;
  int64_t pieces;
  int64_t stride;  // of pieces, in blocks
  int64_t lines;   // all of them
  int64_t done = 0;
  int64_t piece = 0;
  int64_t line = 0;
};

template <int B>
PQ_INLINE Ahead make_ahead(const Rows& at, int64_t pieces, int64_t piece_blocks, int64_t stride) {
  return {.at = at, .pieces = pieces, .stride = stride, .lines = pieces * (piece_blocks * B / 4 + 1)};
}

// Fetches the lines before the `end`th.
template <int B>
PQ_INLINE void advance(Ahead* ahead, int64_t end) {
  for (; ahead->done < end; ++ahead->done) {
    const Rows piece = skip_rows<B>(ahead->at, ahead->piece * ahead->stride);
    fetch_line(piece.data + 64 * ahead->line);
    // A line of norms covers 32 blocks, which are 8 * B lines of codes.
    if (ahead->line % (8 * B) == 0) fetch_line(piece.norms + 4 * ahead->line / B);
    if (++ahead->piece == ahead->pieces) {
      ahead->piece = 0;
      ++ahead->line;
    }
  }
}

// Blocks [b, b + count) of `rows` rows, up to a multiple of 32; missing rows repeat the last. Fetches lines [begin, end) meanwhile.
template <int B>
PQ_FUNCTION void decode_panel(const PolarTile& t, const Rows& at, int64_t rows, int64_t b, int64_t count, Ahead* ahead,
                              int64_t begin, int64_t end, Panel<B>* panel) {
  constexpr int64_t kBytes = sizeof(Ints);
  const Tables tables = load_tables<B>(*t.table, kWide<B> ? 0 : kPanelBias);
  const int64_t padded = round_up(rows, 32);
  for (int64_t r = 0; r < padded; ++r) {
    const Rows row = skip_rows<B>(at, std::min(r, rows - 1) * t.blocks + b);
    for (int64_t k = 0; k < count; ++k) {
      uint8_t* out = panel->weights[k][r];
      const uint8_t* block = row.data + k * coded_block_bytes(B);
      if constexpr (kWide<B>) {
        Ints w[2 * kVectors];
        decode_words<B>(block, tables, w);
        for (int i = 0; i < 2 * kVectors; ++i) store_ints(out + i * kBytes, w[i]);
      } else {
        Weights w[kVectors];
        decode_bytes<B>(block, tables, w);
        for (int i = 0; i < kVectors; ++i) store_ints(out + i * kBytes, bytes_of(w[i]));
      }
      panel->norms[k][r] = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(row.norms[k])));
    }
    advance<B>(ahead, begin + (end - begin) * (r + 1) / padded);
  }
}

// The path's product of one block of the panel with tokens [token, token + count) of the tile, added to sums [rows][stride] of the
// tile's tokens.
template <int B>
struct Product {
  const PolarTile* tile;
  const Panel<B>* panel;
  int64_t k;      // of the panel
  int64_t block;  // over all units
  int64_t rows;
  int64_t token;
  int64_t count;
  float* sums;
  int64_t stride;
  Ahead* ahead;  // to be advanced evenly from `begin` to `end`
  int64_t begin;
  int64_t end;
};

// Fetches what is due when `done` parts of `all` are multiplied.
template <int B>
PQ_INLINE void fetch_due(const Product<B>& p, int64_t done, int64_t all) {
  advance<B>(p.ahead, p.begin + (p.end - p.begin) * done / all);
}

template <int B, void (*kMultiply)(const Product<B>&)>
PQ_FUNCTION void blocked(const PolarTile& t) {
  Panel<B> panel;
  const int64_t padded = round_up(t.tokens, kTokenGroup);
  // Not a power of two, or the rows of a column would fall on few sets of the cache.
  const int64_t stride = padded + kTokenGroup;
  const int64_t unit_sums = round_up(t.rows, 32) * stride;
  const bool few = t.tokens <= kTokenGroup;
  const int64_t group = few ? kFewRows : kTileRows;
  for (int64_t unit = 0; unit < t.units; ++unit) {
    float* sums = t.scratch + unit * unit_sums;
    std::fill(sums, sums + unit_sums, 0.0f);
    for (int64_t row = 0; row < t.rows; row += group) {
      const int64_t rows = std::min(group, t.rows - row);
      const Rows at = rows_at(t, unit, row);
      const Rows after = rows_after<B>(t, unit, row + group);
      // Few tokens leave memory no time to rest: the next rows are fetched from end to end, as by direct_rows.
      Ahead next_rows = make_ahead<B>(after, 4, kFewRows / 4 * t.blocks, kFewRows / 4 * t.blocks);
      for (int64_t b = 0; b < t.blocks; b += kPanelBlocks) {
        const int64_t count = std::min(kPanelBlocks, t.blocks - b);
        const bool last = b + count == t.blocks;
        const int64_t next_count = std::min(kPanelBlocks, last ? t.blocks : t.blocks - b - count);
        Ahead next_blocks = make_ahead<B>(last ? after : skip_rows<B>(at, b + count), rows, next_count, t.blocks);
        Ahead* ahead = few ? &next_rows : &next_blocks;
        const int64_t begin = few ? ahead->lines * b / t.blocks : 0;
        const int64_t end = few ? ahead->lines * (b + count) / t.blocks : ahead->lines;
        const int64_t middle = few ? (begin + end) / 2 : 0;
        decode_panel<B>(t, at, rows, b, count, ahead, begin, middle, &panel);
        const int64_t steps = count * ((t.tokens + kTokensAtOnce - 1) / kTokensAtOnce);
        int64_t step = 0;
        for (int64_t token = 0; token < t.tokens; token += kTokensAtOnce) {
          for (int64_t k = 0; k < count; ++k, ++step) {
            kMultiply({.tile = &t,
                       .panel = &panel,
                       .k = k,
                       .block = unit * t.blocks + b + k,
                       .rows = rows,
                       .token = token,
                       .count = std::min(kTokensAtOnce, t.tokens - token),
                       .sums = sums + row * stride,
                       .stride = stride,
                       .ahead = ahead,
                       .begin = middle + (end - middle) * step / steps,
                       .end = middle + (end - middle) * (step + 1) / steps});
          }
        }
      }
    }
  }
  add_units(t.scratch, t.units, unit_sums);
  for (int64_t r = 0; r < t.rows; r += 16) {
    for (int64_t token = 0; token < t.tokens; token += 16) {
      store_transposed(t.y + token * t.y_stride + r, t.y_stride, t.scratch + r * stride + token, stride,
                       std::min<int64_t>(16, t.rows - r), std::min<int64_t>(16, t.tokens - token));
    }
  }
}
