// The integer product of a coded tile in plain C++: unpack a block of 16 rows, then an int32 dot product for each token.
// Included inside a namespace; the tile of the generic path, and of AVX2 for widths above 5 bits.
#pragma once

// norm * scale * int_step by the order of the contract, added to the tile's sums.
PQ_INLINE void add_block(const PolarTile& t, Lanes norms, const int32_t* dots, int64_t token, int64_t block, float* out) {
  const Lanes factor = mul(mul(norms, all(t.scales[token * t.scale_stride + block])), all(t.int_step));
  float* y = out + token * kTileRows;
  store(y, fma(from_int(dots), factor, load(y)));
}

PQ_INLINE Lanes block_norms(const PolarTile& t, int64_t block) {
  uint16_t norms[kTileRows];
  for (int64_t r = 0; r < kTileRows; ++r) norms[r] = t.norms[std::min(r, t.rows - 1) * t.blocks + block];
  return load_f16(norms);
}

PQ_INLINE void clear_tile(const PolarTile& t, float* out) {
  for (int64_t i = 0; i < t.tokens; ++i) store(out + i * kTileRows, all(0.0f));
}

PQ_FUNCTION void polar_tile_scalar(const PolarTile& t, float* out) {
  alignas(64) int16_t weights[kTileRows][kBlock];
  uint8_t codes[kBlock];
  const int64_t bytes = coded_block_bytes(t.bits);
  clear_tile(t, out);
  for (int64_t b = 0; b < t.blocks; ++b) {
    for (int64_t r = 0; r < t.rows; ++r) {
      unpack_block(t.data + (r * t.blocks + b) * bytes, t.bits, codes);
      for (int64_t i = 0; i < kBlock; ++i) weights[r][i] = t.table->value[codes[i]];
    }
    const Lanes norms = block_norms(t, b);
    for (int64_t token = 0; token < t.tokens; ++token) {
      const int8_t* x = t.codes + token * t.code_stride + b * kBlock;
      int32_t dots[kTileRows] = {};
      for (int64_t r = 0; r < t.rows; ++r) {
        int32_t sum = 0;
        for (int64_t i = 0; i < kBlock; ++i) sum += weights[r][i] * x[i];
        dots[r] = sum;
      }
      add_block(t, norms, dots, token, b, out);
    }
  }
}
