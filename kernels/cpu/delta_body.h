// The gated delta rule by columns of the state: every quantity of the rule is independent from column to column.
#pragma once

// C lane vectors of columns, T rows of k and of q against the whole state: kept[t] = S^T k_t, read[t] = S^T q_t.
template <int C, int T>
PQ_INLINE void read_state(const DeltaTile& d, int64_t row, int64_t column, Lanes (*kept)[C], Lanes (*read)[C]) {
  Lanes sum_k[T][C];
  Lanes sum_q[T][C];
  for (int t = 0; t < T; ++t) {
    for (int c = 0; c < C; ++c) sum_k[t][c] = sum_q[t][c] = all(0.0f);
  }
  const float* k = d.k + row * d.k_stride;
  const float* q = d.q + (row - d.begin) * d.q_stride;
  for (int64_t i = 0; i < d.key_dim; ++i) {
    Lanes s[C];
    for (int c = 0; c < C; ++c) s[c] = load(d.s + i * d.value_dim + column + 16 * c);
    for (int t = 0; t < T; ++t) {
      const Lanes key = all(k[t * d.k_stride + i]);
      const Lanes query = all(q[t * d.q_stride + i]);
      for (int c = 0; c < C; ++c) {
        sum_k[t][c] = fma(s[c], key, sum_k[t][c]);
        sum_q[t][c] = fma(s[c], query, sum_q[t][c]);
      }
    }
  }
  for (int t = 0; t < T; ++t) {
    for (int c = 0; c < C; ++c) {
      kept[t][c] = sum_k[t][c];
      read[t][c] = sum_q[t][c];
    }
  }
}

template <int C>
PQ_INLINE void delta_columns(const DeltaTile& d, const float (*decays)[kDeltaChunk], const float* decay_now, int64_t column) {
  Lanes kept[kDeltaChunk][C];
  Lanes read[kDeltaChunk][C];
  int64_t row = d.begin;
  for (; row + 2 <= d.end; row += 2) read_state<C, 2>(d, row, column, kept + row, read + row);
  if (row < d.end) read_state<C, 1>(d, row, column, kept + row, read + row);
  for (int64_t i = d.begin; i < d.end; ++i) {
    const Lanes now = all(decay_now[i]);
    for (int c = 0; c < C; ++c) {
      const int64_t offset = column + 16 * c;
      Lanes pending = all(0.0f);
      for (int64_t j = 0; j < i; ++j) {
        pending = fma(all(decays[i][j] * d.kk[i * kDeltaChunk + j]), load(d.delta + j * d.delta_stride + offset), pending);
      }
      const Lanes value = load(d.v + (i - d.begin) * d.v_stride + offset);
      const Lanes delta = mul(all(d.beta[i - d.begin]), sub(fma(negate(now), kept[i][c], value), pending));
      store(d.delta + i * d.delta_stride + offset, delta);
      Lanes sum = all(0.0f);
      for (int64_t j = 0; j <= i; ++j) {
        sum = fma(all(decays[i][j] * d.qk[i * kDeltaChunk + j]), load(d.delta + j * d.delta_stride + offset), sum);
      }
      store(d.y + (i - d.begin) * d.y_stride + offset, fma(now, read[i][c], sum));
    }
  }
}

PQ_FUNCTION void delta(const DeltaTile& d) {
  // decays[i][j] = exp(G_i - G_j), decay_now[i] = exp(G_i).
  float decays[kDeltaChunk][kDeltaChunk];
  float decay_now[kDeltaChunk];
  const Lanes total = load(d.decay);
  store(decay_now, exp_lanes(total));
  for (int64_t i = d.begin; i < d.end; ++i) store(decays[i], exp_lanes(sub(all(d.decay[i]), total)));
  int64_t column = 0;
  for (; column + 64 <= d.value_dim; column += 64) delta_columns<4>(d, decays, decay_now, column);
  for (; column < d.value_dim; column += 16) delta_columns<1>(d, decays, decay_now, column);
  if (d.end < kDeltaChunk) return;
  const Lanes now = all(decay_now[kDeltaChunk - 1]);
  for (int64_t i = 0; i < d.key_dim; ++i) {
    float key[kDeltaChunk];
    for (int64_t j = 0; j < kDeltaChunk; ++j) key[j] = decays[kDeltaChunk - 1][j] * d.k[j * d.k_stride + i];
    for (column = 0; column < d.value_dim; column += 16) {
      float* s = d.s + i * d.value_dim + column;
      Lanes sum = mul(now, load(s));
      for (int64_t j = 0; j < kDeltaChunk; ++j) sum = fma(all(key[j]), load(d.delta + j * d.delta_stride + column), sum);
      store(s, sum);
    }
  }
}
