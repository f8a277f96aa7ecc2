// The PolarQuant encoder and the INT4 encoder. Blocks are independent; a block's codes depend on its 128 weights only.
#include "kernels/encode.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "base/tensor.h"
#include "kernels/check.h"
#include "kernels/cpu/kernels.h"
#include "kernels/hadamard.h"
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

// Finds the magnitude index of |z|: the number of midpoints below it. A bucket holds the count at its lower end; `steps`
// comparisons settle the rest.
struct MagnitudeFinder {
  static constexpr int kBuckets = 1024;
  float per_unit = 0;
  int steps = 0;
  std::array<int32_t, kBuckets> first{};
  std::array<float, 129> midpoint{};  // ends with infinity

  explicit MagnitudeFinder(const Codebook& book) {
    const int64_t count = static_cast<int64_t>(book.magnitudes.size());
    midpoint.fill(INFINITY);
    for (int64_t i = 0; i + 1 < count; ++i) midpoint[i] = 0.5f * (book.magnitudes[i] + book.magnitudes[i + 1]);
    per_unit = static_cast<float>(kBuckets - 1) / book.magnitudes.back();
    for (int b = 0; b < kBuckets; ++b) {
      int inside = 0;
      for (int64_t i = 0; i + 1 < count; ++i) {
        first[b] += bucket(midpoint[i]) < b;
        inside += bucket(midpoint[i]) == b;
      }
      steps = std::max(steps, inside);
    }
  }
  int bucket(float magnitude) const { return static_cast<int>(std::min(magnitude * per_unit, static_cast<float>(kBuckets - 1))); }
  int find(float magnitude) const {
    int m = first[bucket(magnitude)];
    for (int i = 0; i < steps; ++i) m += magnitude > midpoint[m];
    return m;
  }
};

void rotate(float* v) {
  hadamard_butterflies(v);
  const float factor = static_cast<float>(1.0 / std::sqrt(128.0));
  for (int i = 0; i < 128; ++i) v[i] *= factor;
}

// Index of the nearest centroid by the fp32 distance, the first of equals, starting from a guess that is off by one at most.
uint8_t nearest(const std::vector<float>& centroids, float z, int guess) {
  const int count = static_cast<int>(centroids.size());
  int best = std::max(guess - 1, 0);
  for (int k = best + 1; k <= std::min(guess + 1, count - 1); ++k) {
    if (std::abs(z - centroids[k]) < std::abs(z - centroids[best])) best = k;
  }
  return static_cast<uint8_t>(best);
}

struct Block {
  std::array<uint8_t, kBlock> codes;
  uint16_t norm;
};

class PolarEncoder {
 public:
  PolarEncoder(const Codebook& book, bool scale_search, Isa isa)
      : book_(book), finder_(book), kernels_(kernels_of(isa)), scale_search_(scale_search) {}

  // w must be finite. The norm may come out infinite, which the caller refuses.
  Block encode(const float* w, EncodeError* error) const {
    double squares = 0.0;
    for (int64_t i = 0; i < kBlock; ++i) squares += static_cast<double>(w[i]) * w[i];
    const float norm = std::max(static_cast<float>(std::sqrt(squares)), 1e-10f);
    std::array<float, kBlock> z;
    for (int64_t i = 0; i < kBlock; ++i) z[i] = w[i] / norm;
    rotate(z.data());
    for (float& value : z) value *= 11.3137085f;
    Block block;
    if (scale_search_) {
      search(z.data(), norm, &block);
    } else {
      plain(z.data(), &block);
      block.norm = f32_to_f16(norm);
    }
    if (error != nullptr) {
      const double gain = f16_to_f32(block.norm) / static_cast<double>(norm);
      double sum = 0.0;
      for (int64_t i = 0; i < kBlock; ++i) {
        const double difference = z[i] - gain * book_.centroids[block.codes[i]];
        sum += difference * difference;
      }
      error->squared_error += sum * static_cast<double>(norm) * norm / 128.0;
      error->squared_norm += squares;
    }
    return block;
  }

 private:
  void plain(const float* z, Block* block) const {
    const int half = static_cast<int>(book_.magnitudes.size());
    for (int64_t i = 0; i < kBlock; ++i) {
      const int m = finder_.find(std::abs(z[i]));
      block->codes[i] = nearest(book_.centroids, z[i], z[i] > 0.0f ? half + m : half - 1 - m);
    }
  }

  // Squared error of a candidate with its gain refitted and rounded to what fp16 can hold, against sum z^2 = `energy`.
  void search(const float* z, float norm, Block* block) const {
    const int half = static_cast<int>(book_.magnitudes.size());
    std::array<float, kBlock> absolute;
    double energy = 0.0;
    float largest = 0.0f;
    for (int64_t i = 0; i < kBlock; ++i) {
      absolute[i] = std::abs(z[i]);
      largest = std::max(largest, absolute[i]);
      energy += static_cast<double>(z[i]) * z[i];
    }
    std::array<int32_t, kBlock> index;
    std::array<int32_t, kBlock> best_index{};
    double best = INFINITY;
    uint16_t best_norm = f32_to_f16(norm);
    const float ratio = largest / book_.magnitudes.back();
    const SearchRange range = kSearchRange[book_.bits];
    const ScaleTry scale_try{.absolute = absolute.data(),
                             .first = finder_.first.data(),
                             .midpoint = finder_.midpoint.data(),
                             .magnitude = book_.magnitudes.data(),
                             .per_unit = finder_.per_unit,
                             .steps = finder_.steps};
    for (int k = 0; k <= kSteps; ++k) {
      const float multiplier =
          k == 0 ? 1.0f : ratio * (range.low + (range.high - range.low) * static_cast<float>(k - 1) / (kSteps - 1));
      if (!(multiplier > 0.0f)) break;
      float zc;
      float cc;
      kernels_.scale_try(scale_try, 1.0f / multiplier, index.data(), &zc, &cc);
      const uint16_t stored = f32_to_f16(static_cast<float>(norm * (static_cast<double>(zc) / cc)));
      const double gain = f16_to_f32(stored) / static_cast<double>(norm);
      const double error = energy - 2.0 * gain * zc + gain * gain * cc;
      if (error < best) {
        best = error;
        best_norm = stored;
        best_index = index;
      }
    }
    block->norm = best_norm;
    for (int64_t i = 0; i < kBlock; ++i) {
      block->codes[i] = static_cast<uint8_t>(z[i] > 0.0f ? half + best_index[i] : half - 1 - best_index[i]);
    }
  }

  const Codebook& book_;
  MagnitudeFinder finder_;
  const Kernels& kernels_;
  bool scale_search_;
};

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

bool finite_f16(uint16_t bits) { return (bits & 0x7c00u) != 0x7c00u; }

}  // namespace

void encode_polar(const PolarEncodeArgs& args, Isa isa) {
  check_coded_shape("polar_encode", args.rows, args.cols);
  const int bits = args.codebook->bits;
  const int64_t blocks = args.cols / kBlock;
  const PolarEncoder encoder(*args.codebook, args.scale_search, isa);
  EncodeError total;
  for (int64_t row = 0; row < args.rows; ++row) {
    for (int64_t b = 0; b < blocks; ++b) {
      const float* w = args.w + row * args.cols + b * kBlock;
      if (!finite_block(w)) refuse_weight("polar_encode", args.w, row, args.cols, b * kBlock);
      const Block block = encoder.encode(w, &total);
      if (!finite_f16(block.norm)) refuse_weight("polar_encode", args.w, row, args.cols, b * kBlock);
      const int64_t index = row * blocks + b;
      args.norms[index] = block.norm;
      pack_block(block.codes.data(), bits, args.codes + index * coded_block_bytes(bits));
    }
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
