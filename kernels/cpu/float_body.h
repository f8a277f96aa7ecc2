// Products with weights that are used as fp32, a block of 128 columns of four rows at a time.
#pragma once

// Columns [column, column + count) of one row of the unit, count <= 128; the rest of the last 16 lanes is zero.
PQ_INLINE const float* float_weights(const FloatTile& t, int64_t row, int64_t column, int64_t count, float* buffer) {
  const Matrix& m = *t.matrix;
  const int64_t cols = m.unit_cols();
  const int64_t line = t.unit * m.rows + t.row + row;
  const int64_t whole = count / 16 * 16;
  switch (m.format) {
    case WeightFormat::f32: {
      const float* data = static_cast<const float*>(m.data) + line * cols + column;
      if (whole == count) return data;
      for (int64_t i = 0; i < count; i += 16) store(buffer + i, load_part(data + i, std::min<int64_t>(16, count - i)));
      return buffer;
    }
    case WeightFormat::bf16: {
      const uint16_t* data = static_cast<const uint16_t*>(m.data) + line * cols + column;
      for (int64_t i = 0; i < whole; i += 16) store(buffer + i, load_bf16(data + i));
      for (int64_t i = whole; i < (count + 15) / 16 * 16; ++i) buffer[i] = i < count ? bf16_to_f32(data[i]) : 0.0f;
      return buffer;
    }
    case WeightFormat::int4: {
      const int64_t index = line * (cols / kBlock) + column / kBlock;
      const uint8_t* data = static_cast<const uint8_t*>(m.data) + index * 64;
      const float scale = bf16_to_f32(m.scales[index]);
      const float zero = m.zeros != nullptr ? bf16_to_f32(m.zeros[index]) : 0.0f;
      for (int64_t i = 0; i < 64; ++i) {
        buffer[i] = static_cast<float>((data[i] & 15) - 8) * scale + zero;
        buffer[64 + i] = static_cast<float>((data[i] >> 4) - 8) * scale + zero;
      }
      return buffer;
    }
    case WeightFormat::polar: {
      const int64_t index = line * (cols / kBlock) + column / kBlock;
      const int bits = m.codebook->bits;
      uint8_t codes[128];
      unpack_block(static_cast<const uint8_t*>(m.data) + index * coded_block_bytes(bits), bits, codes);
      for (int64_t i = 0; i < kBlock; ++i) buffer[i] = m.codebook->centroids[codes[i]];
      return buffer;
    }
  }
  return buffer;
}

// sum[r][t] += w_r * x_t over `count` columns by lanes, R rows and T tokens held in registers.
template <int R, int T>
PQ_INLINE void float_block(const float* const* w, const float* x, int64_t x_stride, int64_t count, Lanes* sum) {
  Lanes local[R][T];
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) local[r][t] = sum[r * kTileTokens + t];
  }
  for (int64_t i = 0; i < count; i += 16) {
    Lanes input[T];
    for (int t = 0; t < T; ++t)
      input[t] = i + 16 <= count ? load(x + t * x_stride + i) : load_part(x + t * x_stride + i, count - i);
    for (int r = 0; r < R; ++r) {
      const Lanes weight = load(w[r] + i);
      for (int t = 0; t < T; ++t) local[r][t] = fma(weight, input[t], local[r][t]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) sum[r * kTileTokens + t] = local[r][t];
  }
}

PQ_FUNCTION void float_tile(const FloatTile& tile, float* out) {
  constexpr int kRows = 4;
  const Matrix& m = *tile.matrix;
  const bool polar = m.format == WeightFormat::polar;
  const int64_t cols = m.unit_cols();
  alignas(64) float buffer[kRows][kBlock];
  const float* w[kRows];
  Lanes sum[kRows * kTileTokens];
  const float root = static_cast<float>(11.313708498984761);
  for (int64_t row = 0; row < tile.rows; row += kRows) {
    const int64_t rows = std::min<int64_t>(kRows, tile.rows - row);
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t t = 0; t < tile.tokens; ++t) sum[r * kTileTokens + t] = all(0.0f);
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t t = 0; t < tile.tokens; ++t) out[t * kTileRows + row + r] = 0.0f;
    }
    for (int64_t column = 0; column < cols; column += kBlock) {
      const int64_t count = std::min(kBlock, cols - column);
      // Missing rows repeat the last one and are dropped.
      for (int64_t r = 0; r < kRows; ++r) w[r] = r < rows ? float_weights(tile, row + r, column, count, buffer[r]) : w[rows - 1];
      int64_t t = 0;
      for (; t + 4 <= tile.tokens; t += 4)
        float_block<kRows, 4>(w, tile.x + t * tile.x_stride + column, tile.x_stride, count, sum + t);
      for (; t < tile.tokens; ++t) float_block<kRows, 1>(w, tile.x + t * tile.x_stride + column, tile.x_stride, count, sum + t);
      if (!polar) continue;
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t index = (tile.unit * m.rows + tile.row + row + r) * (cols / kBlock) + column / kBlock;
        const float factor = f16_to_f32(m.scales[index]) / root;
        for (t = 0; t < tile.tokens; ++t) {
          float& y = out[t * kTileRows + row + r];
          y = std::fma(fold(sum[r * kTileTokens + t]), factor, y);
          sum[r * kTileTokens + t] = all(0.0f);
        }
      }
    }
    if (polar) continue;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t t = 0; t < tile.tokens; ++t) out[t * kTileRows + row + r] = fold(sum[r * kTileTokens + t]);
    }
  }
}
