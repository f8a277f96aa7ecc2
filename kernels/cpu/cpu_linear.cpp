// Matrix products of the cpu backend: tiles of rows and tokens, shared out over the threads, units of a row added by a tree.
#include <algorithm>

#include "base/error.h"
#include "kernels/check.h"
#include "kernels/cpu/cpu_backend_impl.h"
#include "kernels/polar.h"

namespace pq {
namespace {

constexpr int64_t kTile = kTileTokens * kTileRows;

bool integer_product(const Activation& x, const Matrix& w) {
  return w.format == WeightFormat::polar && x.mode == ActivationMode::int8;
}

IntTable make_int_table(const Activation& x, const Matrix& w) {
  IntTable table;
  if (!integer_product(x, w)) return table;
  const std::vector<int16_t>& magnitudes = w.codebook->int_magnitudes;
  const int64_t half = static_cast<int64_t>(magnitudes.size());
  for (int64_t m = 0; m < half; ++m) {
    const int value = magnitudes[m];
    table.low[m] = static_cast<uint8_t>(value & 255);
    table.high[m] = static_cast<uint8_t>(value >> 8);
    table.value[half + m] = static_cast<int16_t>(value);
    table.value[half - 1 - m] = static_cast<int16_t>(-value);
  }
  return table;
}

// Rows of one tile, of the tokens it has, to their places in y [tokens, rows].
void store_tile(const float* tile, int64_t row, int64_t token, int64_t rows, int64_t tokens, float* y) {
  const int64_t width = std::min(kTileRows, rows - row);
  const int64_t height = std::min(kTileTokens, tokens - token);
  for (int64_t t = 0; t < height; ++t) {
    std::copy(tile + t * kTileRows, tile + t * kTileRows + width, y + (token + t) * rows + row);
  }
}

}  // namespace

void CpuBackend::sum_codes(const Activation& x) {
  const int64_t blocks = x.dim / kBlock;
  code_sums_.resize(static_cast<size_t>(x.tokens * blocks));
  split(x.tokens, x.dim, [&](int64_t first, int64_t last, int) {
    for (int64_t b = first * blocks; b < last * blocks; ++b) {
      int32_t sum = 0;
      for (int64_t i = 0; i < kBlock; ++i) sum += x.codes[b * kBlock + i];
      code_sums_[static_cast<size_t>(b)] = sum;
    }
  });
}

void CpuBackend::product_tile(const Activation& x, const Matrix& w, const IntTable& table, int64_t row, int64_t token,
                              float* out) const {
  const int64_t rows = std::min(kTileRows, w.rows - row);
  const int64_t tokens = std::min(kTileTokens, x.tokens - token);
  for (int64_t unit = 0; unit < w.units; ++unit) {
    const int64_t column = unit * w.unit_cols();
    if (integer_product(x, w)) {
      const int64_t blocks = w.unit_cols() / kBlock;
      const int64_t index = (unit * w.rows + row) * blocks;
      const int64_t scale = token * (x.dim / kBlock) + column / kBlock;
      kernels_.polar_tile({.data = static_cast<const uint8_t*>(w.data) + index * coded_block_bytes(w.codebook->bits),
                           .norms = w.scales + index,
                           .codes = x.codes + token * x.dim + column,
                           .scales = x.scales + scale,
                           .code_sums = code_sums_.data() + scale,
                           .rows = rows,
                           .tokens = tokens,
                           .blocks = blocks,
                           .code_stride = x.dim,
                           .scale_stride = x.dim / kBlock,
                           .bits = w.codebook->bits,
                           .int_step = w.codebook->int_step,
                           .table = &table},
                          out + unit * kTile);
      continue;
    }
    const float* input = w.format == WeightFormat::polar ? x.rotated : x.raw;
    kernels_.float_tile({.matrix = &w,
                         .unit = unit,
                         .row = row,
                         .x = input + token * x.dim + column,
                         .rows = rows,
                         .tokens = tokens,
                         .x_stride = x.dim},
                        out + unit * kTile);
  }
  for (int64_t distance = 1; distance < w.units; distance *= 2) {
    for (int64_t unit = 0; unit < w.units; unit += 2 * distance) {
      float* a = out + unit * kTile;
      const float* b = out + (unit + distance) * kTile;
      for (int64_t i = 0; i < tokens * kTileRows; ++i) a[i] += b[i];
    }
  }
}

template <typename Tile>
void CpuBackend::for_tiles(int64_t rows, const Activation& x, const Tile& tile) {
  const int64_t row_tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t token_tiles = (x.tokens + kTileTokens - 1) / kTileTokens;
  // A thread walks all rows of its part for one tile of tokens before the next, or one part of the tokens of a matrix of few rows.
  const bool by_rows = row_tiles >= pool_.threads();
  const int64_t parts = by_rows ? row_tiles : token_tiles;
  split(parts, rows * x.tokens * x.dim / 16 / parts, [&](int64_t first, int64_t last, int worker) {
    const int64_t first_row = by_rows ? first : 0, last_row = by_rows ? last : row_tiles;
    const int64_t first_token = by_rows ? 0 : first, last_token = by_rows ? token_tiles : last;
    for (int64_t t = first_token; t < last_token; ++t) {
      for (int64_t r = first_row; r < last_row; ++r) tile(r * kTileRows, t * kTileTokens, worker);
    }
  });
}

void CpuBackend::linear(const LinearArgs& args) {
  check_linear(args);
  const Matrix& w = args.w;
  if (args.x.tokens == 0) return;
  const IntTable table = make_int_table(args.x, w);
  if (integer_product(args.x, w)) sum_codes(args.x);
  for_tiles(w.rows, args.x, [&](int64_t row, int64_t token, int worker) {
    float* out = reserve(&partial_[static_cast<size_t>(worker)], w.units * kTile);
    product_tile(args.x, w, table, row, token, out);
    store_tile(out, row, token, w.rows, args.x.tokens, args.y);
  });
}

void CpuBackend::swiglu(const SwigluArgs& args) {
  check_swiglu(args);
  const Matrix& gate = args.gate;
  const Matrix& up = args.up;
  if (args.x.tokens == 0) return;
  const IntTable gate_table = make_int_table(args.x, gate);
  const IntTable up_table = make_int_table(args.x, up);
  if (integer_product(args.x, gate) || integer_product(args.x, up)) sum_codes(args.x);
  for_tiles(gate.rows, args.x, [&](int64_t row, int64_t token, int worker) {
    float* out = reserve(&partial_[static_cast<size_t>(worker)], (gate.units + up.units) * kTile);
    product_tile(args.x, gate, gate_table, row, token, out);
    product_tile(args.x, up, up_table, row, token, out + gate.units * kTile);
    kernels_.silu_mul(out, out + gate.units * kTile, std::min(kTileTokens, args.x.tokens - token) * kTileRows);
    store_tile(out, row, token, gate.rows, args.x.tokens, args.y);
  });
}

}  // namespace pq
