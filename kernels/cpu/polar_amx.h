// The product of a panel by AMX, up to 5 bits: tiles of sixteen rows of 64 signed weights against tiles of 64 codes of sixteen tokens.
// Included inside a namespace after polar_body.h.
#pragma once

struct alignas(64) TileShape {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Two tiles of rows against one or two of tokens; dots [2][V][16 rows][16 tokens].
template <int V>
PQ_INLINE void tile_dots(const uint8_t* w, const uint8_t* x, int32_t* dots) {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (V == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int half = 0; half < 2; ++half) {
    _tile_loadd(4, w + 64 * half, kBlock);
    _tile_loadd(6, x + 1024 * half, 64);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(5, w + 16 * kBlock + 64 * half, kBlock);
    _tile_dpbssd(1, 5, 6);
    if constexpr (V == 2) {
      _tile_loadd(7, x + 2048 + 1024 * half, 64);
      _tile_dpbssd(2, 4, 7);
      _tile_dpbssd(3, 5, 7);
    }
  }
  _tile_stored(0, dots, 64);
  _tile_stored(1, dots + 256 * V, 64);
  if constexpr (V == 2) {
    _tile_stored(2, dots + 256, 64);
    _tile_stored(3, dots + 768, 64);
  }
}

template <int V>
PQ_INLINE void add_tiles(const int32_t* dots, const float* norms, const float* steps, float* sums, int64_t stride) {
  for (int half = 0; half < 2; ++half) {
    for (int v = 0; v < V; ++v) {
      const Floats step = load_floats(steps + 16 * v);
      const int32_t* tile = dots + 256 * (V * half + v);
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r) {
        add_scaled(sums + (16 * half + r) * stride + 16 * v, Dots(load_ints(tile + 16 * r)), norms[16 * half + r], step);
      }
    }
  }
}

template <int B>
PQ_FUNCTION void multiply_tiles(const Product<B>& p) {
  alignas(64) int32_t dots[4 * 256];
  const PolarTile& t = *p.tile;
  for (int64_t token = p.token; token < p.token + p.count; token += 32) {
    const int64_t at = p.block * t.padded + token;
    const uint8_t* x = t.packed + at * kBlock;
    for (int64_t r = 0; r < p.rows; r += 32) {
      const float* norms = p.panel->norms[p.k] + r;
      float* sums = p.sums + r * p.stride + token;
      if (p.token + p.count - token > 16) {
        tile_dots<2>(p.panel->weights[p.k][r], x, dots);
        add_tiles<2>(dots, norms, t.steps + at, sums, p.stride);
      } else {
        tile_dots<1>(p.panel->weights[p.k][r], x, dots);
        add_tiles<1>(dots, norms, t.steps + at, sums, p.stride);
      }
      fetch_due(p, (token - p.token) * p.rows + r * 32, p.count * p.rows);
    }
  }
}

template <int B>
PQ_FUNCTION void polar_tile_amx(const PolarTile& t) {
  TileShape shape;
  for (int i = 0; i < 8; ++i) {
    shape.row_bytes[i] = 64;
    shape.rows[i] = 16;
  }
  _tile_loadconfig(&shape);
  blocked<B, multiply_tiles<B>>(t);
  _tile_release();
}
