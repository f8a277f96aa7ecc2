// Attention of the query heads that share a kv head, at one token: scores, softmax, weighted values.
#pragma once

template <bool kHalf>
PQ_INLINE Lanes load_cache(const void* plane, int64_t offset) {
  if constexpr (kHalf) {
    return load_f16(static_cast<const uint16_t*>(plane) + offset);
  } else {
    return load(static_cast<const float*>(plane) + offset);
  }
}

template <bool kHalf, int H, int P>
PQ_INLINE void score_block(const AttentionTile& a, int64_t head, int64_t position, int64_t stride, float scale) {
  Lanes sum[H][P];
  for (int h = 0; h < H; ++h) {
    for (int p = 0; p < P; ++p) sum[h][p] = all(0.0f);
  }
  for (int64_t i = 0; i < a.head_dim; i += 16) {
    Lanes k[P];
    for (int p = 0; p < P; ++p) k[p] = load_cache<kHalf>(a.k, (position + p) * a.head_dim + i);
    for (int h = 0; h < H; ++h) {
      const Lanes q = load(a.q + (head + h) * a.head_dim + i);
      for (int p = 0; p < P; ++p) sum[h][p] = fma(q, k[p], sum[h][p]);
    }
  }
  for (int h = 0; h < H; ++h) {
    for (int p = 0; p < P; ++p) a.scores[(head + h) * stride + position + p] = fold(sum[h][p]) * scale;
  }
}

template <bool kHalf, int H>
PQ_INLINE void score_heads(const AttentionTile& a, int64_t head, int64_t stride, float scale) {
  int64_t p = 0;
  for (; p + 4 <= a.positions; p += 4) score_block<kHalf, H, 4>(a, head, p, stride, scale);
  for (; p < a.positions; ++p) score_block<kHalf, H, 1>(a, head, p, stride, scale);
}

// Scores become exp(score - largest); returns their sum in 16 interleaved lanes.
PQ_INLINE float softmax(float* scores, int64_t positions) {
  float largest = scores[0];
  for (int64_t p = 1; p < positions; ++p) largest = largest > scores[p] ? largest : scores[p];
  Lanes sum = all(0.0f);
  for (int64_t p = 0; p < positions; p += 16) {
    const int64_t count = std::min<int64_t>(16, positions - p);
    const Lanes e = keep_part(exp_lanes(sub(load_part(scores + p, count), all(largest))), count);
    store_part(scores + p, e, count);
    sum = add(sum, e);
  }
  return fold(sum);
}

template <bool kHalf, int H, int C>
PQ_INLINE void value_block(const AttentionTile& a, int64_t head, int64_t column, int64_t stride, const float* sums) {
  Lanes out[H][C];
  for (int h = 0; h < H; ++h) {
    for (int c = 0; c < C; ++c) out[h][c] = all(0.0f);
  }
  for (int64_t p = 0; p < a.positions; ++p) {
    Lanes v[C];
    for (int c = 0; c < C; ++c) v[c] = load_cache<kHalf>(a.v, p * a.head_dim + column + 16 * c);
    for (int h = 0; h < H; ++h) {
      const Lanes weight = all(a.scores[(head + h) * stride + p]);
      for (int c = 0; c < C; ++c) out[h][c] = fma(weight, v[c], out[h][c]);
    }
  }
  for (int h = 0; h < H; ++h) {
    for (int c = 0; c < C; ++c) {
      const int64_t offset = column + 16 * c;
      const Lanes gate = load(a.gate + (head + h) * 2 * a.head_dim + offset);
      const Lanes y = div(div(out[h][c], all(sums[head + h])), one_plus_exp_minus(gate));
      store(a.y + (head + h) * a.head_dim + offset, y);
    }
  }
}

template <bool kHalf, int H>
PQ_INLINE void value_heads(const AttentionTile& a, int64_t head, int64_t stride, const float* sums) {
  int64_t column = 0;
  for (; column + 64 <= a.head_dim; column += 64) value_block<kHalf, H, 4>(a, head, column, stride, sums);
  for (; column < a.head_dim; column += 16) value_block<kHalf, H, 1>(a, head, column, stride, sums);
}

template <bool kHalf>
PQ_INLINE void attention_typed(const AttentionTile& a) {
  const int64_t stride = (a.positions + 15) / 16 * 16;
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(a.head_dim)));
  int64_t head = 0;
  for (; head + 3 <= a.heads; head += 3) score_heads<kHalf, 3>(a, head, stride, scale);
  for (; head < a.heads; ++head) score_heads<kHalf, 1>(a, head, stride, scale);
  float sums[kMaxGroupHeads];
  for (head = 0; head < a.heads; ++head) sums[head] = softmax(a.scores + head * stride, a.positions);
  for (head = 0; head + 3 <= a.heads; head += 3) value_heads<kHalf, 3>(a, head, stride, sums);
  for (; head < a.heads; ++head) value_heads<kHalf, 1>(a, head, stride, sums);
}

PQ_FUNCTION void attention(const AttentionTile& a) {
  if (a.type == KvType::f16) {
    attention_typed<true>(a);
  } else {
    attention_typed<false>(a);
  }
}
