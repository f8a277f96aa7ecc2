// Attention of the query heads that share a kv head over one key block: scores, softmax, weighted values, merged into what the
// blocks before gave.
#pragma once

// Keys or values of one kv head from the block's first position on, as the inner loops read them.
struct KvRows {
  const char* data;
  int64_t stride;  // bytes from row to row
  int64_t dim;     // of a row; what a q8 row's scales follow
};

// 16 elements of row p from column i on, i % 16 == 0.
template <KvType type>
PQ_INLINE Lanes load_cache(const KvRows& rows, int64_t p, int64_t i) {
  const char* row = rows.data + p * rows.stride;
  if constexpr (type == KvType::f16) {
    return load_f16(reinterpret_cast<const uint16_t*>(row) + i);
  } else if constexpr (type == KvType::q8) {
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(row + rows.dim);
    return mul(load_i8(reinterpret_cast<const int8_t*>(row) + i), all_f16(scales + i / kKvGroup));
  } else {
    return load(reinterpret_cast<const float*>(row) + i);
  }
}

// A q8 row's scales are few: they are not fetched ahead.
template <KvType type>
constexpr int64_t kElementBytes = type == KvType::q8    ? 1
                                  : type == KvType::f16 ? 2
                                                        : 4;

// What an inner loop fetches into the second cache while it computes: at step i the lines from base + i * stride on.
struct Ahead {
  const char* base;
  int64_t stride;
};

// x; part `part` of `parts` of the `bytes` bytes of a step is asked for after it. Lines asked for back to back come at half the
// rate.
template <int64_t bytes, int parts>
PQ_INLINE Lanes fetch_part(Lanes x, const char* step, int part) {
  constexpr int64_t kLines = (bytes + 63) / 64;
  for (int64_t line = 0; line < kLines; ++line) {
    if (line * parts / kLines == part) x = prefetch_after(x, step + 64 * line);
  }
  return x;
}

template <int P>
PQ_INLINE void store_folds(float* out, const Lanes (&x)[P]) {
  for (int p = 0; p < P; ++p) out[p] = fold(x[p]);
}

// q . k of H heads and P positions.
template <KvType type, bool fetch, int H, int P>
PQ_INLINE void score_tile(const KvRows& k, int64_t first, const float* q, int64_t dim, const char* ahead, float* scores) {
  constexpr int64_t kStep = 16 * P * kElementBytes<type>;
  Lanes sum[H][P];
  for (int h = 0; h < H; ++h) {
    for (int p = 0; p < P; ++p) sum[h][p] = all(0.0f);
  }
  for (int64_t i = 0; i < dim; i += 16) {
    Lanes key[P];
    for (int p = 0; p < P; ++p) key[p] = load_cache<type>(k, first + p, i);
    for (int h = 0; h < H; ++h) {
      const Lanes query = load(q + h * dim + i);
      for (int p = 0; p < P; ++p) sum[h][p] = fma(query, key[p], sum[h][p]);
      if constexpr (fetch) sum[h][P - 1] = fetch_part<kStep, H>(sum[h][P - 1], ahead + i / 16 * kStep, h);
    }
  }
  for (int h = 0; h < H; ++h) store_folds(scores + h * kKeyBlock, sum[h]);
}

// Positions [first, last) of the block for `heads` <= H heads. ahead: fetched as the keys are read, stride from position to
// position.
template <KvType type, bool fetch, int H>
PQ_FUNCTION __attribute__((noinline)) void score_rows(const KvRows& k, const float* q, int64_t dim, int64_t heads, int64_t first,
                                                      int64_t last, const Ahead& ahead, float* scores) {
  if constexpr (H > 1) {
    if (heads < H) return score_rows<type, fetch, H - 1>(k, q, dim, heads, first, last, ahead, scores);
  }
  int64_t p = first;
  for (; p + kTilePositions <= last; p += kTilePositions) {
    score_tile<type, fetch, H, kTilePositions>(k, p, q, dim, ahead.base + p * ahead.stride, scores + p);
  }
  for (; p < last; ++p) score_tile<type, false, H, 1>(k, p, q, dim, nullptr, scores + p);
}

// Scores become exp(score - largest); returns the largest, and their sum in `sum`. The row holds a multiple of 16 floats.
PQ_INLINE float soften(float* scores, int64_t positions, float scale, float* sum) {
  for (int64_t p = positions; p % 16 != 0; ++p) scores[p] = -INFINITY;
  Lanes top = all(-INFINITY);
  for (int64_t p = 0; p < positions; p += 16) {
    const Lanes score = mul(load(scores + p), all(scale));
    store(scores + p, score);
    top = max(top, score);
  }
  const float largest = fold_max(top);
  Lanes total = all(0.0f);
  for (int64_t p = 0; p < positions; p += 16) {
    Lanes e = exp_lanes(sub(load(scores + p), all(largest)));
    if (p + 16 > positions) e = keep_part(e, positions - p);
    store(scores + p, e);
    total = add(total, e);
  }
  *sum = fold(total);
  return largest;
}

// One block's softmax joins the running one of `heads` heads: keep and take are what the running and the new sums are weighted
// with.
PQ_INLINE void join(float* largest, float* sum, const float* block_largest, const float* block_sum, int64_t heads, float* keep,
                    float* take) {
  for (int64_t h = 0; h < heads; h += 16) {
    const int64_t count = std::min<int64_t>(16, heads - h);
    const Lanes old = load_part(largest + h, count);
    const Lanes added = load_part(block_largest + h, count);
    const Lanes top = max(old, added);
    const Lanes kept = exp_lanes(sub(old, top));
    const Lanes taken = exp_lanes(sub(added, top));
    store_part(largest + h, top, count);
    store_part(sum + h, fma(load_part(block_sum + h, count), taken, mul(load_part(sum + h, count), kept)), count);
    store_part(keep + h, kept, count);
    store_part(take + h, taken, count);
  }
}

// A panel of values: 16 * C columns of the block's rows.
struct Panel {
  KvRows rows;
  int64_t at;  // of the first column in a row
  Ahead ahead;
};

// out = out * keep + (sum over positions of weight * v) * take, of H heads.
template <KvType type, bool fetch, int H, int C>
PQ_INLINE void value_tile(const Panel& panel, int64_t positions, const float* weights, const float* keep, const float* take,
                          float* out, int64_t dim) {
  constexpr int64_t kStep = 16 * C * kElementBytes<type>;
  Lanes sum[H][C];
  for (int h = 0; h < H; ++h) {
    for (int c = 0; c < C; ++c) sum[h][c] = all(0.0f);
  }
  for (int64_t p = 0; p < positions; ++p) {
    Lanes value[C];
    for (int c = 0; c < C; ++c) value[c] = load_cache<type>(panel.rows, p, panel.at + 16 * c);
    for (int h = 0; h < H; ++h) {
      const Lanes weight = all(weights[h * kKeyBlock + p]);
      for (int c = 0; c < C; ++c) sum[h][c] = fma(weight, value[c], sum[h][c]);
      if constexpr (fetch) {
        sum[h][C - 1] = fetch_part<kStep, H>(sum[h][C - 1], panel.ahead.base + p * panel.ahead.stride, h);
      }
    }
  }
  for (int h = 0; h < H; ++h) {
    for (int c = 0; c < C; ++c) {
      float* y = out + h * dim + 16 * c;
      // Adding +0 makes a sum that rounded to -0 the same whether it is merged here or by attention_merge.
      store(y, fma(add(sum[h][c], all(0.0f)), all(take[h]), mul(load(y), all(keep[h]))));
    }
  }
}

template <KvType type, bool fetch, int H, int C>
PQ_FUNCTION __attribute__((noinline)) void value_heads(const Panel& panel, int64_t positions, const float* weights,
                                                       const float* keep, const float* take, float* out, int64_t dim,
                                                       int64_t heads) {
  if constexpr (H > 1) {
    if (heads < H) return value_heads<type, fetch, H - 1, C>(panel, positions, weights, keep, take, out, dim, heads);
  }
  value_tile<type, fetch, H, C>(panel, positions, weights, keep, take, out, dim);
}

// How many of `left` heads the next register tile takes: as even as possible.
PQ_INLINE int64_t heads_at_once(int64_t left) {
  const int64_t tiles = (left + kTileHeads - 1) / kTileHeads;
  return (left + tiles - 1) / tiles;
}

// Areas of a tile's scratch; attention_scratch is their sum.
struct AttentionAreas {
  float* scores;  // [tokens, heads, kKeyBlock]
  float* keep;    // [tokens, heads]
  float* take;    // [tokens, heads]
  float* keys;    // [kKeyBlock, head_dim]
  float* values;  // panels of 16 * kTileColumns columns (the last ones of 16), each [kKeyBlock, its columns]

  explicit AttentionAreas(const AttentionTile& a) {
    scores = a.scratch;
    keep = scores + a.tokens * a.heads * kKeyBlock;
    take = keep + (a.tokens * a.heads + 15) / 16 * 16;
    keys = take + (a.tokens * a.heads + 15) / 16 * 16;
    values = keys + kKeyBlock * a.head_dim;
  }
};

// Positions of the block that token t sees.
PQ_INLINE int64_t seen(const AttentionTile& a, int64_t t) { return std::clamp<int64_t>(a.visible + t, 0, kKeyBlock); }

constexpr int64_t kPanel = 16 * kTileColumns;

template <KvType type, bool wide, int C>
PQ_INLINE void value_panel(const AttentionTile& a, const AttentionAreas& areas, const KvRows& v, int64_t column, Ahead ahead) {
  constexpr int64_t kWideRow = 16 * C * kElementBytes<KvType::f32>;
  const Panel panel = wide ? Panel{{v.data + column * kKeyBlock * kElementBytes<KvType::f32>, kWideRow, 16 * C}, 0, ahead}
                           : Panel{v, column, ahead};
  for (int64_t t = 0; t < a.tokens; ++t) {
    const int64_t positions = seen(a, t);
    if (positions == 0) continue;
    for (int64_t h = 0; h < a.heads;) {
      const int64_t count = heads_at_once(a.heads - h);
      const int64_t row = t * a.heads + h;
      value_heads<type, !wide, kTileHeads, C>(panel, positions, areas.scores + row * kKeyBlock, areas.keep + row, areas.take + row,
                                              a.out + t * a.out_stride + h * a.head_dim + column, a.head_dim, count);
      h += count;
    }
  }
}

// `wide`: keys and values lie as in AttentionAreas; else as in the cache, and what comes next is fetched: the values during the
// scores, the keys of the next block during the weighted values.
template <KvType type, bool wide>
PQ_INLINE void attend(const AttentionTile& a, const AttentionAreas& areas, const KvRows& k, const KvRows& v) {
  constexpr int64_t kRows = 16;  // of keys that stay in the first cache while the tokens pass
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(a.head_dim)));
  const int64_t dim = a.head_dim;
  const int64_t most = seen(a, a.tokens - 1);
  const Ahead values = {v.data, v.stride};
  for (int64_t first = 0; first < most; first += kRows) {
    for (int64_t t = 0; t < a.tokens; ++t) {
      const int64_t last = std::min(first + kRows, seen(a, t));
      for (int64_t h = 0; h < a.heads && first < last;) {
        const int64_t count = heads_at_once(a.heads - h);
        score_rows<type, !wide, kTileHeads>(k, a.q + t * a.q_stride + h * dim, dim, count, first, last, values,
                                            areas.scores + (t * a.heads + h) * kKeyBlock);
        h += count;
      }
    }
  }
  for (int64_t t = 0; t < a.tokens; ++t) {
    float largest[kMaxGroupHeads];
    float sum[kMaxGroupHeads];
    const int64_t row = t * a.heads;
    const int64_t positions = seen(a, t);
    if (positions == 0) continue;
    for (int64_t h = 0; h < a.heads; ++h) largest[h] = soften(areas.scores + (row + h) * kKeyBlock, positions, scale, sum + h);
    join(a.largest + row, a.sum + row, largest, sum, a.heads, areas.keep + row, areas.take + row);
  }
  // Without a next block the first keys of this one stand in for it.
  const auto keys = [&](int64_t column, int64_t width) -> Ahead {
    if (!a.more) return {k.data, 0};
    return {k.data + kKeyBlock * (k.stride + column * kElementBytes<type>), width * kElementBytes<type>};
  };
  int64_t column = 0;
  for (; column + kPanel <= dim; column += kPanel) {
    value_panel<type, wide, kTileColumns>(a, areas, v, column, keys(column, kPanel));
  }
  for (; column < dim; column += 16) value_panel<type, wide, 1>(a, areas, v, column, keys(column, 16));
}

// Keys and values of the block become fp32, once for all tokens.
template <KvType type>
PQ_INLINE void widen(const AttentionTile& a, const AttentionAreas& areas, const KvRows& k, const KvRows& v) {
  const int64_t rows = seen(a, a.tokens - 1);
  const int64_t whole = a.head_dim / kPanel * kPanel;
  for (int64_t p = 0; p < rows; ++p) {
    for (int64_t column = 0; column < a.head_dim; column += 16) {
      store(areas.keys + p * a.head_dim + column, load_cache<type>(k, p, column));
      const int64_t panel = column < whole ? column / kPanel * kPanel : column;
      const int64_t width = column < whole ? kPanel : 16;
      store(areas.values + panel * kKeyBlock + p * width + column - panel, load_cache<type>(v, p, column));
    }
  }
}

template <KvType type>
PQ_INLINE void attention_typed(const AttentionTile& a) {
  const AttentionAreas areas(a);
  const int64_t stride = kv_row_bytes(type, a.head_dim);
  const KvRows k{static_cast<const char*>(a.k), stride, a.head_dim};
  const KvRows v{static_cast<const char*>(a.v), stride, a.head_dim};
  // Two tokens do not pay for writing the block down.
  if (a.tokens <= 2) return attend<type, false>(a, areas, k, v);
  widen<type>(a, areas, k, v);
  const int64_t wide = kv_row_bytes(KvType::f32, a.head_dim);
  attend<KvType::f32, true>(a, areas, {reinterpret_cast<const char*>(areas.keys), wide, a.head_dim},
                            {reinterpret_cast<const char*>(areas.values), wide, a.head_dim});
}

PQ_FUNCTION void attention(const AttentionTile& a) {
  switch (a.type) {
    case KvType::f32:
      return attention_typed<KvType::f32>(a);
    case KvType::f16:
      return attention_typed<KvType::f16>(a);
    case KvType::q8:
      return attention_typed<KvType::q8>(a);
  }
}

PQ_FUNCTION void attention_merge(const AttentionMerge& a) {
  float keep[kMaxGroupHeads];
  float take[kMaxGroupHeads];
  join(a.largest, a.sum, a.part_largest, a.part_sum, a.heads, keep, take);
  for (int64_t h = 0; h < a.heads; ++h) {
    for (int64_t i = h * a.head_dim; i < (h + 1) * a.head_dim; i += 16) {
      store(a.out + i, fma(load(a.part + i), all(take[h]), mul(load(a.out + i), all(keep[h]))));
    }
  }
}

PQ_FUNCTION void attention_finish(float* y, const float* sum, const float* gate, int64_t heads, int64_t dim) {
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t i = 0; i < dim; i += 16) {
      float* out = y + h * dim + i;
      store(out, div(div(load(out), all(sum[h])), one_plus_exp_minus(load(gate + 2 * h * dim + i))));
    }
  }
}
