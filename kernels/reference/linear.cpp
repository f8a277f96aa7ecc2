// Matrix products of the reference backend, every weight decoded by the formula of its format.
#include <array>
#include <cmath>
#include <vector>

#include "base/tensor.h"
#include "kernels/check.h"
#include "kernels/encode.h"
#include "kernels/polar.h"
#include "kernels/reference/reference_backend.h"

namespace pq {
namespace {

// Sums over one unit of row r, added to sums [tokens].
void add_float_unit(const LinearArgs& args, int64_t unit, int64_t r, std::vector<double>* sums) {
  const int64_t unit_cols = args.w.unit_cols();
  std::vector<float> weights(static_cast<size_t>(unit_cols));
  decode_row(args.w, unit, r, weights.data());
  for (int64_t t = 0; t < args.x.tokens; ++t) {
    const float* x = args.x.raw + t * args.x.dim + unit * unit_cols;
    for (int64_t c = 0; c < unit_cols; ++c) (*sums)[t] += static_cast<double>(weights[c]) * x[c];
  }
}

// The same for coded rows, which stay in the rotated basis.
void add_polar_unit(const LinearArgs& args, int64_t unit, int64_t r, std::vector<double>* sums) {
  const Matrix& w = args.w;
  const int64_t blocks = w.unit_cols() / kBlock;
  const int bits = w.codebook->bits;
  const int half = 1 << (bits - 1);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t index = (unit * w.rows + r) * blocks + b;
    std::array<uint8_t, kBlock> codes;
    unpack_block(static_cast<const uint8_t*>(w.data) + index * coded_block_bytes(bits), bits, codes.data());
    const double norm = f16_to_f32(w.scales[index]);
    const int64_t column = unit * w.unit_cols() + b * kBlock;
    for (int64_t t = 0; t < args.x.tokens; ++t) {
      if (args.x.mode == ActivationMode::f32) {
        const float* x = args.x.rotated + t * args.x.dim + column;
        double dot = 0.0;
        for (int64_t i = 0; i < kBlock; ++i) dot += static_cast<double>(w.codebook->centroids[codes[i]]) * x[i];
        (*sums)[t] += dot * norm / std::sqrt(128.0);
      } else {
        const int8_t* x = args.x.codes + t * args.x.dim + column;
        int64_t dot = 0;
        for (int64_t i = 0; i < kBlock; ++i) {
          const int code = codes[i];
          const int value = code < half ? -w.codebook->int_magnitudes[half - 1 - code] : w.codebook->int_magnitudes[code - half];
          dot += value * x[i];
        }
        const double scale = args.x.scales[t * (args.x.dim / kBlock) + column / kBlock];
        (*sums)[t] += static_cast<double>(dot) * norm * scale * w.codebook->int_step;
      }
    }
  }
}

}  // namespace

// A unit is rounded to fp32 before the tree, because ranks exchange fp32: the same bits at every rank count.
void ReferenceBackend::linear(const LinearArgs& args) {
  check_linear(args);
  const int64_t tokens = args.x.tokens;
  std::vector<double> sums;
  std::vector<float> units(static_cast<size_t>(args.w.units * tokens));
  for (int64_t r = 0; r < args.w.rows; ++r) {
    for (int64_t unit = 0; unit < args.w.units; ++unit) {
      sums.assign(static_cast<size_t>(tokens), 0.0);
      if (args.w.format == WeightFormat::polar) {
        add_polar_unit(args, unit, r, &sums);
      } else {
        add_float_unit(args, unit, r, &sums);
      }
      for (int64_t t = 0; t < tokens; ++t) units[unit * tokens + t] = static_cast<float>(sums[t]);
    }
    for (int64_t distance = 1; distance < args.w.units; distance *= 2) {
      for (int64_t unit = 0; unit < args.w.units; unit += 2 * distance) {
        for (int64_t t = 0; t < tokens; ++t) units[unit * tokens + t] += units[(unit + distance) * tokens + t];
      }
    }
    for (int64_t t = 0; t < tokens; ++t) args.y[t * args.w.rows + r] = units[t];
  }
}

}  // namespace pq
