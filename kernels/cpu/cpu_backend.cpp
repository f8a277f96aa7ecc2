// Chooses the kernels of an instruction set once and walks batches, spans, tiles and units.
#include "kernels/cpu/cpu_backend.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/tensor.h"
#include "kernels/check.h"
#include "kernels/cpu/cpu_backend_impl.h"
#include "kernels/polar.h"

namespace pq {
namespace {

constexpr int64_t kMaxUnits = 64;

IntTable make_int_table(const Codebook& book) {
  IntTable table;
  const int64_t half = static_cast<int64_t>(book.int_magnitudes.size());
  for (int64_t m = 0; m < half; ++m) {
    const int value = book.int_magnitudes[m];
    table.low[m] = static_cast<uint8_t>(value & 255);
    table.high[m] = static_cast<uint8_t>(value >> 8);
    table.value[half + m] = static_cast<int16_t>(value);
    table.value[half - 1 - m] = static_cast<int16_t>(-value);
  }
  return table;
}

}  // namespace

void CpuBackend::rms_norm(const RmsNormArgs& args) {
  for (int64_t r = 0; r < args.rows; ++r) {
    kernels_.rms({.y = args.y + r * args.dim,
                  .x = args.x + r * args.dim,
                  .weight = args.weight,
                  .gate = nullptr,
                  .dim = args.dim,
                  .eps = args.eps,
                  .weight_offset = args.weight_offset});
  }
}

void CpuBackend::gated_rms_norm(const GatedRmsNormArgs& args) {
  for (int64_t r = 0; r < args.rows; ++r) {
    kernels_.rms({.y = args.y + r * args.dim,
                  .x = args.x + r * args.dim,
                  .weight = args.weight,
                  .gate = args.gate + r * args.dim,
                  .dim = args.dim,
                  .eps = args.eps,
                  .weight_offset = 0.0f});
  }
}

void CpuBackend::prepare(const PrepareArgs& args) {
  check_prepare(args);
  for (int64_t t = 0; t < args.tokens; ++t) kernels_.prepare(args, t);
}

void CpuBackend::sum_codes(const Activation& x) {
  const int64_t blocks = x.tokens * (x.dim / kBlock);
  code_sums_.resize(static_cast<size_t>(blocks));
  for (int64_t b = 0; b < blocks; ++b) {
    int32_t sum = 0;
    for (int64_t i = 0; i < kBlock; ++i) sum += x.codes[b * kBlock + i];
    code_sums_[b] = sum;
  }
}

void CpuBackend::linear_tile(const LinearArgs& args, const IntTable& table, int64_t row, int64_t token, int64_t unit,
                             float* out) const {
  const Matrix& w = args.w;
  const int64_t rows = std::min(kTileRows, w.rows - row);
  const int64_t tokens = std::min(kTileTokens, args.x.tokens - token);
  const int64_t column = unit * w.unit_cols();
  const int64_t dim = args.x.dim;
  if (w.format == WeightFormat::polar && args.x.mode == ActivationMode::int8) {
    const int64_t blocks = w.unit_cols() / kBlock;
    const int64_t index = (unit * w.rows + row) * blocks;
    const int64_t scale = token * (dim / kBlock) + column / kBlock;
    kernels_.polar_tile({.data = static_cast<const uint8_t*>(w.data) + index * coded_block_bytes(w.codebook->bits),
                         .norms = w.scales + index,
                         .codes = args.x.codes + token * dim + column,
                         .scales = args.x.scales + scale,
                         .code_sums = code_sums_.data() + scale,
                         .rows = rows,
                         .tokens = tokens,
                         .blocks = blocks,
                         .code_stride = dim,
                         .scale_stride = dim / kBlock,
                         .bits = w.codebook->bits,
                         .int_step = w.codebook->int_step,
                         .table = &table},
                        out);
    return;
  }
  const float* x = w.format == WeightFormat::polar ? args.x.rotated : args.x.raw;
  kernels_.float_tile(
      {.matrix = &w, .unit = unit, .row = row, .x = x + token * dim + column, .rows = rows, .tokens = tokens, .x_stride = dim},
      out);
}

void CpuBackend::linear(const LinearArgs& args) {
  check_linear(args);
  const Matrix& w = args.w;
  if (args.x.tokens == 0) return;
  IntTable table;
  if (w.format == WeightFormat::polar && args.x.mode == ActivationMode::int8) {
    table = make_int_table(*w.codebook);
    sum_codes(args.x);
  }
  constexpr int64_t kTile = kTileTokens * kTileRows;
  float* partial = reserve(&partial_, kMaxUnits * kTile);
  for (int64_t token = 0; token < args.x.tokens; token += kTileTokens) {
    const int64_t tokens = std::min(kTileTokens, args.x.tokens - token);
    for (int64_t row = 0; row < w.rows; row += kTileRows) {
      const int64_t rows = std::min(kTileRows, w.rows - row);
      for (int64_t unit = 0; unit < w.units; ++unit) linear_tile(args, table, row, token, unit, partial + unit * kTile);
      for (int64_t distance = 1; distance < w.units; distance *= 2) {
        for (int64_t unit = 0; unit < w.units; unit += 2 * distance) {
          float* a = partial + unit * kTile;
          const float* b = partial + (unit + distance) * kTile;
          for (int64_t i = 0; i < tokens * kTileRows; ++i) a[i] += b[i];
        }
      }
      for (int64_t t = 0; t < tokens; ++t) {
        std::copy(partial + t * kTileRows, partial + t * kTileRows + rows, args.y + (token + t) * w.rows + row);
      }
    }
  }
}

const Kernels& kernels_of(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return kAvx512Kernels;
  if (isa == Isa::avx2) return kAvx2Kernels;
#endif
  return kGenericKernels;
}

std::unique_ptr<Backend> make_cpu_backend(Isa isa) {
  if (!isa_supported(isa)) {
    throw Error(ErrorKind::environment, fmt::format("this machine has no {}; its best is {}", isa_name(isa), isa_name(best_isa())));
  }
  return std::make_unique<CpuBackend>(isa);
}

}  // namespace pq
