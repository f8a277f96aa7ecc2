// Decodes rows of every weight format to fp32.
#include <array>
#include <cstring>

#include "base/tensor.h"
#include "kernels/check.h"
#include "kernels/encode.h"
#include "kernels/hadamard.h"
#include "kernels/polar.h"

namespace pq {
namespace {

void decode_int4_group(const uint8_t* packed, float scale, float zero, float* out) {
  for (int i = 0; i < 64; ++i) {
    out[i] = static_cast<float>((packed[i] & 15) - 8) * scale + zero;
    out[64 + i] = static_cast<float>((packed[i] >> 4) - 8) * scale + zero;
  }
}

}  // namespace

void decode_row(const Matrix& matrix, int64_t unit, int64_t row, float* out) {
  const int64_t cols = matrix.unit_cols();
  const int64_t line = unit * matrix.rows + row;
  switch (matrix.format) {
    case WeightFormat::f32:
      std::memcpy(out, static_cast<const float*>(matrix.data) + line * cols, static_cast<size_t>(cols) * sizeof(float));
      return;
    case WeightFormat::bf16: {
      const uint16_t* data = static_cast<const uint16_t*>(matrix.data) + line * cols;
      for (int64_t c = 0; c < cols; ++c) out[c] = bf16_to_f32(data[c]);
      return;
    }
    case WeightFormat::polar: {
      const int64_t bytes = coded_block_bytes(matrix.codebook->bits);
      for (int64_t b = 0; b < cols / kBlock; ++b) {
        const int64_t index = line * (cols / kBlock) + b;
        std::array<uint8_t, kBlock> codes;
        unpack_block(static_cast<const uint8_t*>(matrix.data) + index * bytes, matrix.codebook->bits, codes.data());
        float* w = out + b * kBlock;
        for (int64_t i = 0; i < kBlock; ++i) w[i] = matrix.codebook->centroids[codes[i]];
        hadamard_butterflies(w);
        const float factor = f16_to_f32(matrix.scales[index]) * (1.0f / 128.0f);
        for (int64_t i = 0; i < kBlock; ++i) w[i] *= factor;
      }
      return;
    }
    case WeightFormat::int4:
      for (int64_t b = 0; b < cols / kBlock; ++b) {
        const int64_t index = line * (cols / kBlock) + b;
        const float zero = matrix.zeros ? bf16_to_f32(matrix.zeros[index]) : 0.0f;
        decode_int4_group(static_cast<const uint8_t*>(matrix.data) + index * 64, bf16_to_f32(matrix.scales[index]), zero,
                          out + b * kBlock);
      }
      return;
  }
}

void decode_matrix(const DecodeArgs& args) {
  check_matrix("decode", args.matrix);
  const int64_t unit_cols = args.matrix.unit_cols();
  for (int64_t unit = 0; unit < args.matrix.units; ++unit) {
    for (int64_t row = 0; row < args.matrix.rows; ++row) {
      decode_row(args.matrix, unit, row, args.w + row * args.matrix.cols + unit * unit_cols);
    }
  }
}

}  // namespace pq
