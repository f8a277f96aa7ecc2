// The loop over units and tiles of wide_products.h.
#include <algorithm>

#include "kernels/cuda/tiles.h"
#include "kernels/cuda/wide_products.h"
#include "kernels/cuda/widen.h"

namespace pq::cuda {

int64_t wide_tile_rows(int64_t rows, int64_t unit_cols, int64_t tile_bytes) {
  // Tiles of the library's own: rows beyond a multiple of 128 leave part of one empty.
  constexpr int64_t kWhole = 128;
  const int64_t most = tile_bytes / (2 * unit_cols);
  const int64_t grain = most >= kWhole ? kWhole : kTileRows;
  const int64_t fitting = std::max(grain, most / grain * grain);
  const int64_t parts = (rows + fitting - 1) / fitting;
  const int64_t each = (rows + parts - 1) / parts;
  return std::min(fitting, (each + grain - 1) / grain * grain);
}

WideProducts::WideProducts(Backend& backend, cudaStream_t stream, int64_t tile_bytes)
    : backend_(backend),
      stream_(stream),
      workspace_(backend.allocate(kCublasWorkspaceBytes)),
      tile_(backend.allocate(tile_bytes)),
      gemm_(make_gemm(stream, workspace_)) {}

void WideProducts::linear(const LinearArgs& args, float* unit_sums, const DeviceCodebook& book) {
  const Matrix& w = args.w;
  const int64_t tokens = args.x.tokens, cols = w.unit_cols();
  if (const int64_t bytes = wide_input_bytes(tokens, w.cols); inputs_.bytes() < bytes) {
    backend_.synchronize();
    inputs_ = Buffer();
    inputs_ = backend_.allocate(bytes);
  }
  launch_widen_inputs(inputs_.as<uint16_t>(), args.x, w.format, w.units, stream_);
  const bool widened = w.format != WeightFormat::bf16;
  const int64_t step = widened ? wide_tile_rows(w.rows, cols, tile_.bytes()) : w.rows;
  require(!widened || 2 * step * cols <= tile_.bytes(), "eight rows of a matrix that exceed the memory for widened weights");
  for (int64_t unit = 0; unit < w.units; ++unit) {
    const uint16_t* x = inputs_.as<uint16_t>() + unit * tokens * cols;
    for (int64_t row = 0; row < w.rows; row += step) {
      const int64_t rows = std::min(step, w.rows - row);
      const auto* weights = static_cast<const uint16_t*>(w.data) + unit * w.rows * cols;
      if (widened) {
        launch_widen_weights(tile_.as<uint16_t>(), w, unit, row, rows, book, stream_);
        weights = tile_.as<uint16_t>();
      }
      gemm_->multiply(unit_sums + unit * tokens * w.rows + row, w.rows, weights, x, rows, tokens, cols);
    }
  }
}

}  // namespace pq::cuda
