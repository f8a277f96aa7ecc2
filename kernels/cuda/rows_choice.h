// Which kernel multiplies a coded matrix with int8 activations: by layout and number of tokens, and for few rows by the size of the
// device, alone, so that the choice can be tested without one. The reasons are arithmetic (kernels/README.md); results do not
// depend on it.
#pragma once

#include <cstdint>

#include "kernels/backend.h"

namespace pq::cuda {

enum class RowsKernel : int {
  any,     // every width, store order: one row a warp
  tiles,   // up to eight tokens a pass over the weights
  panels,  // integer tensor cores, 64 tokens at a time
};

struct RowsChoice {
  RowsKernel kernel = RowsKernel::any;
  int split = 1;  // tiles: warps that share eight rows
};

inline constexpr int kRowsSplit = 4;

// Warps of a multiprocessor whose loads cover the latency of memory: each has four tiles of 656 bytes in flight, and the largest
// device asks for 4.8 TB/s * 700 ns / 132 = 25 KB.
inline constexpr int64_t kEnoughWarps = 16;

inline RowsChoice choose_rows_kernel(const Matrix& w, int64_t tokens, int multiprocessors) {
  if (w.layout != WeightLayout::tiles) return {};
  if (tokens > 8) return {.kernel = RowsKernel::panels};
  const int64_t warps = w.units * ((w.rows + 7) / 8);
  return {.kernel = RowsKernel::tiles, .split = warps >= kEnoughWarps * multiprocessors ? 1 : kRowsSplit};
}

}  // namespace pq::cuda
