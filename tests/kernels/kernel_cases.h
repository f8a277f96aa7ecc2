// Material of the kernel tests: seeded data, buffers with canaries, random matrices of every format, bit comparisons.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "base/tensor.h"
#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/polar.h"

namespace pq {

inline constexpr double kEps = 0x1p-24;  // half a unit in the last place of 1.0f: the error of one fp32 rounding

inline std::vector<float> normals(int64_t count, uint64_t seed, double scale = 1.0) {
  Random random(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(scale * random.normal());
  return values;
}

// An output buffer between two guards. The content starts as a quiet NaN pattern, so that an element never written is seen.
template <typename T>
class Guarded {
 public:
  explicit Guarded(int64_t count)
      : count_(count), bytes_(static_cast<size_t>(count * static_cast<int64_t>(sizeof(T))) + 2 * kGuard, 0xff) {
    std::memset(bytes_.data(), 0xa5, kGuard);
    std::memset(bytes_.data() + bytes_.size() - kGuard, 0xa5, kGuard);
  }
  T* data() { return static_cast<T*>(static_cast<void*>(bytes_.data() + kGuard)); }
  std::vector<T> values() { return std::vector<T>(data(), data() + count_); }
  bool intact() const {
    for (size_t i = 0; i < kGuard; ++i) {
      if (bytes_[i] != 0xa5 || bytes_[bytes_.size() - 1 - i] != 0xa5) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 256;
  int64_t count_;
  std::vector<uint8_t> bytes_;
};

inline ::testing::AssertionResult same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return ::testing::AssertionFailure() << "sizes " << a.size() << " and " << b.size();
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i])) {
      return ::testing::AssertionFailure() << "element " << i << " of " << a.size() << ": " << a[i] << " and " << b[i];
    }
  }
  return ::testing::AssertionSuccess();
}

inline ::testing::AssertionResult within(const std::vector<float>& actual, const std::vector<float>& expected,
                                         const std::vector<double>& bound) {
  if (actual.size() != expected.size() || actual.size() != bound.size()) {
    return ::testing::AssertionFailure() << "sizes " << actual.size() << ", " << expected.size() << " and " << bound.size();
  }
  for (size_t i = 0; i < actual.size(); ++i) {
    const double difference = std::abs(static_cast<double>(actual[i]) - expected[i]);
    if (!(difference <= bound[i])) {
      return ::testing::AssertionFailure() << "element " << i << " of " << actual.size() << ": " << actual[i] << " against "
                                           << expected[i] << ", difference " << difference << " above " << bound[i];
    }
  }
  return ::testing::AssertionSuccess();
}

// A matrix that owns its planes.
struct OwnedMatrix {
  std::vector<uint8_t> data;
  std::vector<uint16_t> scales;
  std::vector<uint16_t> zeros;
  std::unique_ptr<Codebook> codebook;
  Matrix matrix;
};

struct MatrixKind {
  WeightFormat format;
  int bits = 0;             // polar
  bool asymmetric = false;  // int4
};

// Random content: any bytes are valid codes; scales are positive.
inline OwnedMatrix random_matrix(MatrixKind kind, int64_t rows, int64_t cols, int64_t units, uint64_t seed) {
  OwnedMatrix owned;
  Random random(seed);
  owned.matrix = {.format = kind.format, .rows = rows, .cols = cols, .units = units};
  if (kind.format == WeightFormat::polar) {
    owned.codebook = std::make_unique<Codebook>(make_codebook(kind.bits, TableKind::published));
    owned.matrix.codebook = owned.codebook.get();
  }
  owned.data.resize(static_cast<size_t>(owned.matrix.data_bytes()));
  owned.scales.resize(static_cast<size_t>(owned.matrix.scale_bytes() / 2));
  if (kind.format == WeightFormat::f32) {
    const std::vector<float> values = normals(rows * cols, seed);
    if (!values.empty()) std::memcpy(owned.data.data(), values.data(), owned.data.size());
  } else if (kind.format == WeightFormat::bf16) {
    for (size_t i = 0; i < owned.data.size(); i += 2) {
      const uint16_t bits = f32_to_bf16(static_cast<float>(random.normal()));
      std::memcpy(owned.data.data() + i, &bits, 2);
    }
  } else {
    for (uint8_t& byte : owned.data) byte = static_cast<uint8_t>(random.next_u64());
    for (uint16_t& scale : owned.scales) {
      const float value = static_cast<float>(0.05 + random.uniform());
      scale = kind.format == WeightFormat::polar ? f32_to_f16(value) : f32_to_bf16(value);
    }
    if (kind.asymmetric) {
      for (size_t i = 0; i < owned.scales.size(); ++i) owned.zeros.push_back(f32_to_bf16(static_cast<float>(random.normal())));
    }
  }
  owned.matrix.data = owned.data.data();
  owned.matrix.scales = owned.scales.empty() ? nullptr : owned.scales.data();
  owned.matrix.zeros = owned.zeros.empty() ? nullptr : owned.zeros.data();
  return owned;
}

}  // namespace pq
