// Puts coded matrices into tiles (tiles.h), and Backend::arrange of the plugin.
#include "kernels/check.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/tiles.h"
#include "kernels/polar.h"

namespace pq::cuda {
namespace {

// A quarter of a block a thread.
__global__ void arrange_kernel(uint8_t* data, uint16_t* norms, const uint8_t* from_data, const uint16_t* from_norms, int bits,
                               int64_t rows, int64_t blocks) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= rows * blocks * 4) return;
  const int q = static_cast<int>(i % 4);
  const int64_t index = i / 4, row = index / blocks, b = index % blocks;
  const int64_t first = row / kTileRows * kTileRows, within = row - first;
  const int64_t n = min(kTileRows, rows - first);
  const int64_t tile = first * blocks + b * n;
  const uint8_t* from = from_data + index * 16 * bits;
  for (int low = 0; low < bits; low += plane_width(bits, low)) {
    const int width = plane_width(bits, low);
    uint8_t* quarter = plane_quarter(data + tile * 16 * bits, static_cast<int>(n), static_cast<int>(within), bits, low, q);
    const int each = 32 / width;  // weights a word
    for (int w = 0; w < width; ++w) {
      uint32_t word = 0;
      for (int j = w * each; j < (w + 1) * each; ++j) {
        const int field = (tile_code(bits, code_at(from, bits, 32 * q + j)) >> low) & ((1 << width) - 1);
        word |= static_cast<uint32_t>(field) << plane_bit(bits, width, j).shift;
      }
      reinterpret_cast<uint32_t*>(quarter)[w] = word;
    }
  }
  if (q == 0) norms[tile + within] = from_norms[index];
}

}  // namespace

void launch_arrange(uint8_t* data, uint16_t* norms, const uint8_t* from_data, const uint16_t* from_norms, int bits, int64_t rows,
                    int64_t blocks, cudaStream_t stream) {
  launch("arrange", arrange_kernel, blocks_for(rows * blocks * 4, 128), 128, 0, stream, data, norms, from_data, from_norms, bits,
         rows, blocks);
}

void CudaBackend::arrange(Matrix* matrix) {
  Matrix& m = *matrix;
  if (m.rows == 0) return;
  check_matrix("arrange", m);
  if (m.layout != WeightLayout::store || m.format != WeightFormat::polar) return;
  const int bits = m.codebook->bits;
  const int64_t blocks = m.unit_cols() / kBlock, row_data = blocks * coded_block_bytes(bits), row_norms = blocks * 2;
  const int64_t fitting = kDeviceBounceBytes / (row_data + row_norms) / kTileRows * kTileRows;
  const int64_t step = std::min(std::max(fitting, kTileRows), (m.rows + kTileRows - 1) / kTileRows * kTileRows);
  const Buffer bounce = allocate(step * (row_data + row_norms));
  auto* from_data = bounce.as<uint8_t>();
  auto* from_norms = reinterpret_cast<uint16_t*>(from_data + step * row_data);
  auto* data = static_cast<uint8_t*>(const_cast<void*>(m.data));
  auto* norms = const_cast<uint16_t*>(m.scales);
  for (int64_t unit = 0; unit < m.units; ++unit) {
    for (int64_t row = 0; row < m.rows; row += step) {
      const int64_t rows = std::min(step, m.rows - row), line = unit * m.rows + row;
      uint8_t* to_data = data + line * row_data;
      uint16_t* to_norms = norms + line * blocks;
      check(cudaMemcpyAsync(from_data, to_data, static_cast<size_t>(rows * row_data), cudaMemcpyDeviceToDevice, stream_),
            "cudaMemcpy");
      check(cudaMemcpyAsync(from_norms, to_norms, static_cast<size_t>(rows * row_norms), cudaMemcpyDeviceToDevice, stream_),
            "cudaMemcpy");
      launch_arrange(to_data, to_norms, from_data, from_norms, bits, rows, blocks, stream_);
    }
  }
  // The bounce buffer goes.
  synchronize();
  m.layout = WeightLayout::tiles;
}

}  // namespace pq::cuda
