// Makes the Lloyd-Max tables of the standard normal: the published recipe step by step, and its fixed point by Newton's method.
#include "kernels/codebook.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace pq {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kSqrtHalf = 0.70710678118654752440;
constexpr double kInvSqrtTwoPi = 0.39894228040143267794;

double density(double x) { return kInvSqrtTwoPi * std::exp(-0.5 * x * x); }
double upper_tail(double x) { return 0.5 * std::erfc(x * kSqrtHalf); }

// The published recipe: 100 Lloyd iterations from evenly spaced boundaries.
std::vector<float> published_table(int bits, bool unbounded) {
  const int64_t count = int64_t{1} << bits;
  std::vector<double> boundary(count + 1);
  std::vector<double> centroid(count);
  const double step = 8.0 / static_cast<double>(count);
  for (int64_t i = 0; i <= count; ++i) boundary[i] = -4.0 + static_cast<double>(i) * step;
  if (unbounded) {
    boundary.front() = -kInfinity;
    boundary.back() = kInfinity;
  }
  const auto cdf = [](double x) { return 0.5 * (1.0 + std::erf(x * kSqrtHalf)); };
  for (int iteration = 0; iteration < 100; ++iteration) {
    for (int64_t i = 0; i < count; ++i) {
      centroid[i] = (density(boundary[i]) - density(boundary[i + 1])) / (cdf(boundary[i + 1]) - cdf(boundary[i]));
    }
    for (int64_t i = 1; i < count; ++i) boundary[i] = 0.5 * (centroid[i - 1] + centroid[i]);
  }
  return std::vector<float>(centroid.begin(), centroid.end());
}

// x with P(X > x) = tail, 0 < tail <= 1/2, by bisection.
double inverse_upper_tail(double tail) {
  double low = 0.0;
  double high = 40.0;
  for (int i = 0; i < 60; ++i) {
    const double middle = 0.5 * (low + high);
    (upper_tail(middle) > tail ? low : high) = middle;
  }
  return 0.5 * (low + high);
}

// Positive half of the Lloyd-Max fixed point. With t_i the midpoints, t_0 = 0 and t_n = inf, each centroid must equal the mean of
// its cell: F_i(c) = c_i - m(t_i, t_{i+1}) = 0. The Jacobian is tridiagonal because a cell depends on its neighbours only. The
// start is the high-resolution optimum (Panter and Dite 1951), centroids at the quantiles of the density to the power 1/3.
std::vector<double> converged_half(int bits) {
  const int64_t count = int64_t{1} << (bits - 1);
  std::vector<double> c(count);
  for (int64_t i = 0; i < count; ++i) {
    c[i] = std::sqrt(3.0) * inverse_upper_tail(0.5 * (1.0 - (static_cast<double>(i) + 0.5) / static_cast<double>(count)));
  }
  std::vector<double> boundary(count + 1), upper(count), right(count);
  boundary.front() = 0.0;
  boundary.back() = kInfinity;
  for (int iteration = 0; iteration < 100; ++iteration) {
    for (int64_t i = 1; i < count; ++i) boundary[i] = 0.5 * (c[i - 1] + c[i]);
    // Forward elimination of the tridiagonal system J step = F (Thomas), then back substitution.
    for (int64_t i = 0; i < count; ++i) {
      const double a = boundary[i];
      const double b = boundary[i + 1];
      const double mass = upper_tail(a) - upper_tail(b);
      const double mean = (density(a) - density(b)) / mass;
      const double from_a = i > 0 ? 0.5 * density(a) * (mean - a) / mass : 0.0;
      const double from_b = i + 1 < count ? 0.5 * density(b) * (b - mean) / mass : 0.0;
      const double diagonal = 1.0 - from_a - from_b;
      const double value = c[i] - mean;
      const double pivot = i > 0 ? diagonal + from_a * upper[i - 1] : diagonal;
      upper[i] = -from_b / pivot;
      right[i] = i > 0 ? (value + from_a * right[i - 1]) / pivot : value / pivot;
    }
    double largest = 0.0;
    double step = 0.0;
    for (int64_t i = count - 1; i >= 0; --i) {
      step = right[i] - (i + 1 < count ? upper[i] * step : 0.0);
      c[i] -= step;
      largest = std::max(largest, std::abs(step));
    }
    if (largest < 1e-12) return c;
  }
  throw Error(ErrorKind::internal, fmt::format("the {}-bit Lloyd-Max table did not converge in 100 Newton steps", bits));
}

Codebook finish(int bits, TableKind kind, std::vector<float> centroids) {
  Codebook book;
  book.bits = bits;
  book.kind = kind;
  const int64_t half = int64_t{1} << (bits - 1);
  book.centroids = std::move(centroids);
  for (int64_t i = 0; i < half; ++i) {
    book.magnitudes.push_back(0.5f * (book.centroids[half + i] - book.centroids[half - 1 - i]));
  }
  const double largest = book.magnitudes.back();
  const double int_max = bits <= 5 ? 127.0 : 32767.0;
  for (float magnitude : book.magnitudes) {
    book.int_magnitudes.push_back(static_cast<int16_t>(std::lround(magnitude / largest * int_max)));
  }
  book.int_step = static_cast<float>(largest / (int_max * std::sqrt(128.0)));
  return book;
}

}  // namespace

Codebook make_codebook(int bits, TableKind kind) {
  if (bits < 2 || bits > 8) throw Error(ErrorKind::usage, fmt::format("a codebook has 2 to 8 bits, not {}", bits));
  switch (kind) {
    case TableKind::published:
      return finish(bits, kind, published_table(bits, true));
    case TableKind::bounded:
      return finish(bits, kind, published_table(bits, false));
    case TableKind::converged: {
      const std::vector<double> half = converged_half(bits);
      std::vector<float> centroids;
      for (auto it = half.rbegin(); it != half.rend(); ++it) centroids.push_back(-static_cast<float>(*it));
      for (double value : half) centroids.push_back(static_cast<float>(value));
      return finish(bits, kind, std::move(centroids));
    }
    case TableKind::file:
      break;
  }
  throw Error(ErrorKind::usage, "a codebook of kind file is read by codebook_from_table, it cannot be made");
}

Codebook codebook_from_table(const std::vector<float>& centroids) {
  const int64_t count = static_cast<int64_t>(centroids.size());
  int bits = 2;
  while (bits <= 8 && (int64_t{1} << bits) != count) ++bits;
  if (bits > 8) throw Error(ErrorKind::input, fmt::format("a table of centroids has 4, 8, ... 256 entries, this one {}", count));
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(centroids[i])) throw Error(ErrorKind::input, fmt::format("centroid {} of the table is not finite", i));
    if (i > 0 && !(centroids[i] > centroids[i - 1])) {
      throw Error(ErrorKind::input,
                  fmt::format("centroids {} and {} do not ascend: {} then {}", i - 1, i, centroids[i - 1], centroids[i]));
    }
  }
  const float largest = std::max(std::abs(centroids.front()), std::abs(centroids.back()));
  for (int64_t i = 0; i < count / 2; ++i) {
    const float low = centroids[i];
    const float high = centroids[count - 1 - i];
    if (!(high > 0.0f) || std::abs(low + high) > 1e-3f * largest) {
      throw Error(ErrorKind::input,
                  fmt::format("the table of centroids is not symmetric: {} at {} against {} at {}", low, i, high, count - 1 - i));
    }
  }
  return finish(bits, TableKind::file, centroids);
}

const char* table_kind_name(TableKind kind) {
  switch (kind) {
    case TableKind::converged:
      return "converged";
    case TableKind::published:
      return "published";
    case TableKind::bounded:
      return "bounded";
    case TableKind::file:
      return "file";
  }
  return "unknown";
}

}  // namespace pq
