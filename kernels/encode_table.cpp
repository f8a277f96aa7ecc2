// Bounds, buckets and multipliers of the encoder's tables; what a block is refused for.
#include "kernels/encode_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "base/error.h"
#include "kernels/check.h"

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

}  // namespace

EncodeTable make_encode_table(const Codebook& book, int small_magnitudes, int small_buckets) {
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
  if (half <= small_magnitudes) {
    fill_buckets(&table, half, small_buckets, table.small_first);
    table.small = table.steps == 1;
  }
  if (!table.small) fill_buckets(&table, half, 1024, table.large_first);
  return table;
}

void check_encode(const char* op, DType dtype, int64_t rows, int64_t cols) {
  if (dtype != DType::f32 && dtype != DType::bf16 && dtype != DType::f16)
    throw Error(ErrorKind::internal, fmt::format("{}: {} is no weight type", op, dtype_name(dtype)));
  check_coded_shape(op, rows, cols);
}

void refuse_block(const char* op, const void* block, DType dtype, int64_t row, int64_t first) {
  for (int64_t i = 0; i < kBlock; ++i) {
    float value;
    if (dtype == DType::f32) {
      value = static_cast<const float*>(block)[i];
    } else {
      const uint16_t half = static_cast<const uint16_t*>(block)[i];
      value = dtype == DType::bf16 ? bf16_to_f32(half) : f16_to_f32(half);
    }
    if (!std::isfinite(value)) {
      throw Error(ErrorKind::input, fmt::format("{}: the weight at row {}, column {} is {}; only finite weights can be coded", op,
                                                row, first + i, value));
    }
  }
  throw Error(ErrorKind::input, fmt::format("{}: the scale of the block at row {}, columns {} to {} is beyond the stored range", op,
                                            row, first, first + kBlock - 1));
}

}  // namespace pq
