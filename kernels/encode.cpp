// Tables and rows of the PolarQuant encoder (its blocks are cpu/encode_body.h), and the INT4 encoder. A block's codes depend on its
// 128 weights only.
#include "kernels/encode.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "base/error.h"
#include "base/tensor.h"
#include "kernels/check.h"
#include "kernels/cpu/kernels.h"
#include "kernels/polar.h"

namespace pq {
namespace {

// Multipliers of the norm tried by the scale search: 1, and kSteps evenly spaced in low .. high times the ratio of the block's
// largest coordinate to the largest centroid. The ranges hold the best multiplier of 99 in 100 Gaussian blocks.
constexpr int kSteps = 40;
struct SearchRange {
  float low;
  float high;
};
constexpr SearchRange kSearchRange[9] = {
    {}, {}, {0.36f, 0.70f}, {0.58f, 0.96f}, {0.80f, 1.06f}, {0.91f, 1.34f}, {0.96f, 1.40f}, {0.98f, 1.40f}, {0.98f, 1.40f}};

// The largest a >= 0 of those below `end` for which keeps(a), or -1 when there is none. keeps holds up to a point and not at `end`.
template <typename Keeps>
float last_kept(float end, Keeps keeps) {
  if (end <= 0.0f || !keeps(0.0f)) return -1.0f;
  uint32_t kept = 0;
  uint32_t lost = std::bit_cast<uint32_t>(end);
  while (lost - kept > 1) {
    const uint32_t middle = kept + (lost - kept) / 2;
    (keeps(std::bit_cast<float>(middle)) ? kept : lost) = middle;
  }
  return std::bit_cast<float>(kept);
}

// first[b] and steps for `buckets` buckets; 2 to 128 magnitudes.
template <typename T>
void fill_buckets(EncodeTable* table, int magnitudes, int buckets, T* first) {
  const int bounds = magnitudes - 1;
  std::array<int64_t, 128> low, high;
  const int last = bounds - 1;
  const float end = std::max({table->bound[last], table->signed_bound[0][last], table->signed_bound[1][last]});
  const float per_unit = static_cast<float>(buckets - 2) / end;
  // One bucket holds everything of a table whose scale is beyond what fp32 products of it can bear.
  table->per_unit = per_unit > 1e-15f && per_unit < 1e15f ? per_unit : 0.0f;
  table->last_bucket = kBucketZero + static_cast<float>(buckets - 1);
  for (int m = 0; m < bounds; ++m) {
    const auto [least, most] = std::minmax({table->bound[m], table->signed_bound[0][m], table->signed_bound[1][m]});
    // The roundings of a bucket move it by 4 * 2^-24 of its number at most.
    low[m] = std::llround(std::max(least, 0.0f) * (1.0 - 1e-6) * table->per_unit);
    high[m] = std::llround(most * (1.0 + 1e-6) * table->per_unit);
  }
  int below = 0;
  int reached = 0;
  table->steps = 1;
  for (int b = 0; b < buckets; ++b) {
    while (below < bounds && high[below] < b) ++below;
    while (reached < bounds && low[reached] <= b) ++reached;
    first[b] = static_cast<T>(below);
    table->steps = std::max(table->steps, reached - below);
  }
}

EncodeTable make_table(const Codebook& book, const Kernels& kernels) {
  EncodeTable table;
  const int half = static_cast<int>(book.magnitudes.size());
  table.bits = book.bits;
  table.tries = kSteps + 1;
  table.largest = book.magnitudes.back();
  const SearchRange range = kSearchRange[book.bits];
  std::fill_n(table.multiplier, kEncodeTries, 1.0f);
  for (int k = 0; k < kSteps; ++k) {
    table.multiplier[k + 1] = range.low + (range.high - range.low) * static_cast<float>(k) / (kSteps - 1);
  }
  for (float* bounds : {table.bound, table.signed_bound[0], table.signed_bound[1]}) std::fill_n(bounds, 128, INFINITY);
  for (int m = 0; m < half; ++m) {
    table.magnitude[m] = book.magnitudes[m];
    table.centroid[0][m] = book.centroids[half + m];
    table.centroid[1][m] = book.centroids[half - 1 - m];
  }
  for (int m = 0; m + 1 < half; ++m) {
    table.bound[m] = 0.5f * (book.magnitudes[m] + book.magnitudes[m + 1]);
    const float* up = table.centroid[0] + m;
    const float* down = table.centroid[1] + m;
    table.signed_bound[0][m] = last_kept(up[1], [&](float a) { return std::abs(a - up[0]) <= std::abs(a - up[1]); });
    table.signed_bound[1][m] = last_kept(-down[1], [&](float a) { return std::abs(-a - down[0]) < std::abs(-a - down[1]); });
  }
  const float up = table.centroid[0][0];
  const float down = table.centroid[1][0];
  const auto is_down = [&](float z) { return std::abs(z - down) <= std::abs(z - up); };
  table.centre =
      is_down(0.0f) ? last_kept(up, is_down) : -std::nextafter(last_kept(-down, [&](float a) { return !is_down(-a); }), INFINITY);
  if (half <= kernels.encode_small_magnitudes) {
    fill_buckets(&table, half, kernels.encode_small_buckets, table.small_first);
    table.small = table.steps == 1;
  }
  if (!table.small) fill_buckets(&table, half, 1024, table.large_first);
  return table;
}

[[noreturn]] void refuse_weight(const char* op, const float* w, int64_t row, int64_t cols, int64_t column) {
  for (int64_t c = column; c < column + kBlock; ++c) {
    const float value = w[row * cols + c];
    if (!std::isfinite(value)) {
      throw Error(ErrorKind::input,
                  fmt::format("{}: the weight at row {}, column {} is {}; only finite weights can be coded", op, row, c, value));
    }
  }
  throw Error(ErrorKind::input, fmt::format("{}: the scale of the block at row {}, columns {} to {} is beyond the stored range", op,
                                            row, column, column + kBlock - 1));
}

bool finite_block(const float* w) {
  for (int64_t i = 0; i < kBlock; ++i) {
    if (!std::isfinite(w[i])) return false;
  }
  return true;
}

}  // namespace

void encode_polar(const PolarEncodeArgs& args, Isa isa) {
  check_coded_shape("polar_encode", args.rows, args.cols);
  const int bits = args.codebook->bits;
  const int64_t blocks = args.cols / kBlock;
  const Kernels& kernels = kernels_of(isa);
  const EncodeTable table = make_table(*args.codebook, kernels);
  EncodeError total;
  for (int64_t row = 0; row < args.rows; ++row) {
    EncodeError error;
    const EncodeTile tile{.table = &table,
                          .w = args.w + row * args.cols,
                          .blocks = blocks,
                          .scale_search = args.scale_search,
                          .codes = args.codes + row * blocks * coded_block_bytes(bits),
                          .norms = args.norms + row * blocks,
                          .error = args.error != nullptr ? &error : nullptr};
    const int64_t coded = kernels.encode_blocks(tile);
    if (coded < blocks) refuse_weight("polar_encode", args.w, row, args.cols, coded * kBlock);
    total.squared_error += error.squared_error;
    total.squared_norm += error.squared_norm;
  }
  if (args.error != nullptr) *args.error = total;
}

void encode_int4(const Int4EncodeArgs& args) {
  check_coded_shape("int4_encode", args.rows, args.cols);
  const bool symmetric = args.zeros == nullptr;
  EncodeError total;
  for (int64_t index = 0; index < args.rows * (args.cols / kBlock); ++index) {
    const float* w = args.w + index * kBlock;
    const int64_t row = index * kBlock / args.cols;
    const int64_t column = index * kBlock % args.cols;
    if (!finite_block(w)) refuse_weight("int4_encode", args.w, row, args.cols, column);
    const auto [low, high] = std::minmax_element(w, w + kBlock);
    const float span = symmetric ? std::max(std::abs(*low), std::abs(*high)) / 7.0f : (*high - *low) / 15.0f;
    args.scales[index] = f32_to_bf16(span);
    const float scale = bf16_to_f32(args.scales[index]);
    float zero = 0.0f;
    if (!symmetric) {
      args.zeros[index] = f32_to_bf16(*low + 8.0f * scale);
      zero = bf16_to_f32(args.zeros[index]);
    }
    if (!std::isfinite(scale) || !std::isfinite(zero)) refuse_weight("int4_encode", args.w, row, args.cols, column);
    std::array<int, kBlock> q;
    for (int64_t i = 0; i < kBlock; ++i) {
      // A group of equal weights has scale 0 and is carried by the zero point alone.
      const float steps = scale > 0.0f ? (w[i] - zero) / scale : 0.0f;
      q[i] = static_cast<int>(symmetric ? std::clamp(std::nearbyint(steps), -8.0f, 7.0f) + 8.0f
                                        : std::clamp(std::nearbyint(steps + 8.0f), 0.0f, 15.0f));
      const double difference = static_cast<double>(w[i]) - (static_cast<float>(q[i] - 8) * scale + zero);
      total.squared_error += difference * difference;
      total.squared_norm += static_cast<double>(w[i]) * w[i];
    }
    for (int64_t i = 0; i < 64; ++i) args.codes[index * 64 + i] = static_cast<uint8_t>(q[i] | (q[64 + i] << 4));
  }
  if (args.error != nullptr) *args.error = total;
}

}  // namespace pq
