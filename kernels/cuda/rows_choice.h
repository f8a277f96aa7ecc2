// Which kernel multiplies a matrix with the activations of a step: by layout and number of tokens, and for few rows by the size of
// the device, alone, so that the choice can be tested without one. The reasons are arithmetic (kernels/README.md); results do not
// depend on it.
#pragma once

#include <cstdint>

#include "kernels/backend.h"

namespace pq::cuda {

enum class RowsKernel : int {
  any,     // every width, order and number of units: one row a warp
  tiles,   // up to kRowTokens tokens a pass over the weights, several matrices in a launch
  panels,  // choose_panel_tokens at a time
};

inline constexpr int kRowTokens = 8;
inline constexpr int kRowWarps = 8;
inline constexpr int kRowsSplit = 4;
inline constexpr int kPanelBits = 5;  // the widest codes of which there are panels

// Of coded matrices with int8 activations.
inline RowsKernel choose_rows_kernel(const Matrix& w, int64_t tokens) {
  if (w.layout != WeightLayout::tiles) return RowsKernel::any;
  const bool panels = w.codebook->bits <= kPanelBits;
  if (w.units <= kRowWarps && (tokens <= kRowTokens || !panels)) return RowsKernel::tiles;
  return panels ? RowsKernel::panels : RowsKernel::any;
}

// The smallest of 16, 32, 64 and 128 that takes all tokens, or 128: half a panel costs more than half of it, since each panel
// decodes the weights.
inline int choose_panel_tokens(int64_t tokens) {
  int panel = 16;
  while (panel < tokens && panel < 128) panel *= 2;
  return panel;
}

// Whether a launch of several products can have this one among them: matrices in tiles, whose units lie in the warps of one block,
// and plain matrices of one unit beside them.
inline bool row_products_take(const LinearArgs& args) {
  const Matrix& w = args.w;
  if (w.format != WeightFormat::polar) return args.x.tokens <= kRowTokens && w.units == 1;
  return args.x.mode == ActivationMode::int8 && choose_rows_kernel(w, args.x.tokens) == RowsKernel::tiles;
}

// Warps of a multiprocessor whose loads cover the latency of memory: each has 1.6 KB in flight at least, 2.6 at 5 bits, and the
// largest device asks for 4.8 TB/s * 700 ns / 132 = 25 KB.
inline constexpr int64_t kEnoughWarps = 16;

// Warps that share eight rows of a unit, in a launch of coded matrices with so many units times rows altogether and at most `units`
// of them. Four of them times more than two units would not fit a block.
inline int choose_rows_split(int64_t unit_rows, int64_t units, int multiprocessors) {
  return units > kRowWarps / kRowsSplit || (unit_rows + 7) / 8 >= kEnoughWarps * multiprocessors ? 1 : kRowsSplit;
}

}  // namespace pq::cuda
