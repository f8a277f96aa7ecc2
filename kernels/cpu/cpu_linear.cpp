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

IntTable make_int_table(const Codebook& book) {
  IntTable table;
  const int64_t half = static_cast<int64_t>(book.int_magnitudes.size());
  for (int64_t m = 0; m < half; ++m) {
    const int value = book.int_magnitudes[static_cast<size_t>(m)];
    table.low[m] = static_cast<uint8_t>(value & 255);
    table.high[m] = static_cast<uint8_t>(value >> 8);
    table.value[half + m] = static_cast<int16_t>(value);
    table.value[half - 1 - m] = static_cast<int16_t>(-value);
  }
  return table;
}

}  // namespace

int64_t CpuBackend::Operand::scratch_floats() const { return integer ? polar_scratch(w->units) : w->units * kTile; }

CpuBackend::Operand CpuBackend::make_operand(const Activation& x, const Matrix& w, int place) {
  Operand o{.x = &x, .w = &w, .integer = integer_product(x, w), .table = {}, .input = {}};
  if (!o.integer) return o;
  o.table = make_int_table(*w.codebook);
  const bool packed = x.tokens > polar_.direct_tokens;
  const int64_t groups = (x.tokens + kTokenGroup - 1) / kTokenGroup;
  const int64_t padded = packed ? groups * kTokenGroup : x.tokens;
  const int64_t bytes = w.codebook->bits > 5 ? 2 : 1;
  PackedScratch& scratch = packed_[place];
  // Tiles take up to four groups at once: of three left over they read the fourth, and drop it.
  o.input = {.codes = x.codes,
             .scales = x.scales,
             .tokens = x.tokens,
             .dim = x.dim,
             .bits = w.codebook->bits,
             .int_step = w.codebook->int_step,
             .padded = padded,
             .steps = reserve_lines(&scratch.steps, padded * (x.dim / kBlock) + kTokenGroup),
             .excess = reserve_lines(&scratch.excess, padded * (x.dim / kBlock) + kTokenGroup),
             .packed = packed ? reserve_lines(&scratch.packed, (padded * x.dim + kTokenGroup * kBlock) * bytes) : nullptr};
  split(groups, kTokenGroup * x.dim, [&](int64_t first, int64_t last, int) {
    for (int64_t group = first; group < last; ++group) polar_.pack(o.input, group);
  });
  return o;
}

void CpuBackend::product_tile(const Operand& o, int64_t row, int64_t token, const Matrix& next, int64_t next_row, float* y,
                              int64_t y_stride, float* scratch) const {
  const Activation& x = *o.x;
  const Matrix& w = *o.w;
  const int64_t rows = std::min(kTileRows, w.rows - row);
  const int64_t tokens = std::min(kTileTokens, x.tokens - token);
  if (o.integer) {
    const int64_t blocks = w.unit_cols() / kBlock;
    const int64_t index = row * blocks;
    // Advice only, so the rows of a matrix of another format may stand here.
    const bool same = next.format == WeightFormat::polar && next_row < next.rows;
    const int64_t after = same ? next_row * (next.unit_cols() / kBlock) : 0;
    const Matrix& ahead = same ? next : w;
    const int64_t bytes = o.input.bits > 5 ? 2 : 1;
    polar_.tile({.data = static_cast<const uint8_t*>(w.data) + index * coded_block_bytes(o.input.bits),
                 .norms = w.scales + index,
                 .next = static_cast<const uint8_t*>(ahead.data) + after * coded_block_bytes(ahead.codebook->bits),
                 .next_norms = ahead.scales + after,
                 .unit_stride = w.rows * blocks,
                 .units = w.units,
                 .blocks = blocks,
                 .rows = rows,
                 .tokens = tokens,
                 .bits = o.input.bits,
                 .table = &o.table,
                 .codes = x.codes + token * x.dim,
                 .code_stride = x.dim,
                 .packed = o.input.packed != nullptr ? o.input.packed + token * kBlock * bytes : nullptr,
                 .steps = o.input.steps + token,
                 .excess = o.input.excess + token,
                 .padded = o.input.padded,
                 .y = y,
                 .y_stride = y_stride,
                 .scratch = scratch});
    return;
  }
  const float* input = w.format == WeightFormat::polar ? x.rotated : x.raw;
  for (int64_t unit = 0; unit < w.units; ++unit) {
    kernels_.float_tile({.matrix = &w,
                         .unit = unit,
                         .row = row,
                         .x = input + token * x.dim + unit * w.unit_cols(),
                         .rows = rows,
                         .tokens = tokens,
                         .x_stride = x.dim},
                        scratch + unit * kTile);
  }
  for (int64_t distance = 1; distance < w.units; distance *= 2) {
    for (int64_t unit = 0; unit < w.units; unit += 2 * distance) {
      float* a = scratch + unit * kTile;
      const float* b = scratch + (unit + distance) * kTile;
      for (int64_t i = 0; i < tokens * kTileRows; ++i) a[i] += b[i];
    }
  }
  for (int64_t t = 0; t < tokens; ++t) std::copy(scratch + t * kTileRows, scratch + t * kTileRows + rows, y + t * y_stride);
}

template <typename Tile>
void CpuBackend::for_tiles(int64_t rows, const Activation& x, const Tile& tile) {
  const int64_t row_tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t token_tiles = (x.tokens + kTileTokens - 1) / kTileTokens;
  // A thread walks all rows of its part for one tile of tokens before the next, or one part of the tokens of a matrix of few rows.
  const bool by_rows = row_tiles >= token_tiles;
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
  if (args.x.tokens == 0 || w.rows == 0) return;
  const Operand o = make_operand(args.x, w, 0);
  for_tiles(w.rows, args.x, [&](int64_t row, int64_t token, int worker) {
    float* scratch = reserve_lines(&partial_[static_cast<size_t>(worker)], o.scratch_floats());
    product_tile(o, row, token, w, row + kTileRows, args.y + token * w.rows + row, w.rows, scratch);
  });
}

void CpuBackend::swiglu(const SwigluArgs& args) {
  check_swiglu(args);
  if (args.x.tokens == 0 || args.gate.rows == 0) return;
  const Operand gate = make_operand(args.x, args.gate, 0);
  const Operand up = make_operand(args.x, args.up, 1);
  const int64_t rows = args.gate.rows;
  for_tiles(rows, args.x, [&](int64_t row, int64_t token, int worker) {
    float* inner =
        reserve_lines(&partial_[static_cast<size_t>(worker)], 2 * kTile + std::max(gate.scratch_floats(), up.scratch_floats()));
    float* factor = inner + kTile;
    float* scratch = factor + kTile;
    product_tile(gate, row, token, args.up, row, inner, kTileRows, scratch);
    product_tile(up, row, token, args.gate, row + kTileRows, factor, kTileRows, scratch);
    const int64_t tokens = std::min(kTileTokens, args.x.tokens - token);
    kernels_.silu_mul(inner, factor, tokens * kTileRows);
    const int64_t width = std::min(kTileRows, rows - row);
    for (int64_t t = 0; t < tokens; ++t)
      std::copy(inner + t * kTileRows, inner + t * kTileRows + width, args.y + (token + t) * rows + row);
  });
  if (args.prepared.wanted()) prepare(prepare_of(args));
}

}  // namespace pq
