// Tables against the printed values and distortions of the method's description, and against their own definition.
#include "kernels/codebook.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>

#include "base/error.h"

namespace pq {
namespace {

double density(double x) { return std::exp(-0.5 * x * x) / std::sqrt(2.0 * M_PI); }
double tail(double x) { return 0.5 * std::erfc(x / std::sqrt(2.0)); }

// E (z - c(z))^2 for z of N(0,1) with nearest centroids, in closed form over the positive half.
double distortion(const Codebook& book) {
  const std::vector<float>& c = book.magnitudes;
  double error = 0.0;
  for (size_t i = 0; i < c.size(); ++i) {
    const double a = i == 0 ? 0.0 : 0.5 * (static_cast<double>(c[i - 1]) + c[i]);
    const bool last = i + 1 == c.size();
    const double b = last ? INFINITY : 0.5 * (static_cast<double>(c[i]) + c[i + 1]);
    const double mass = tail(a) - tail(b);
    const double first = density(a) - density(b);
    const double second = mass + a * density(a) - (last ? 0.0 : b * density(b));
    error += 2.0 * (second - 2.0 * c[i] * first + c[i] * static_cast<double>(c[i]) * mass);
  }
  return error;
}

struct Printed {
  int bits;
  TableKind kind;
  std::vector<double> magnitudes;
};

// Spec of the method, section 1.4.
const std::vector<Printed>& printed_tables() {
  static const std::vector<Printed> tables = {
      {2, TableKind::published, {0.4527800, 1.5104176}},
      {2, TableKind::bounded, {0.4525298, 1.5093743}},
      {3, TableKind::published, {0.2450946, 0.7560063, 1.3439107, 2.1519471}},
      {3, TableKind::bounded, {0.2447961, 0.7550326, 1.3419243, 2.1475465}},
      {4, TableKind::published, {0.1317578, 0.3978971, 0.6723921, 0.9626410, 1.2797398, 1.6430415, 2.0935627, 2.7543548}},
      {4, TableKind::bounded, {0.1313355, 0.3966070, 0.6701575, 0.9593069, 1.2750098, 1.6363077, 2.0833273, 2.7349579}},
      {5,
       TableKind::published,
       {0.0879921, 0.2640680, 0.4404319, 0.6173216, 0.7950509, 0.9740559, 1.1549615, 1.3386795, 1.5265623, 1.7206518, 1.9241064,
        2.1419920, 2.3829090, 2.6628724, 3.0169189, 3.5516090}},
      {5,
       TableKind::bounded,
       {0.0877776, 0.2634014, 0.4392433, 0.6154888, 0.7923917, 0.9703155, 1.1497952, 1.3316284, 1.5170170, 1.7077951, 1.9068133,
        2.1186349, 2.3509276, 2.6176562, 2.9480917, 3.4231443}},
      {6, TableKind::published, {0.0556643, 0.1669930, 0.2783222, 0.3896522, 0.5009835, 0.6123169, 0.7236535, 0.8349952,
                                 0.9463447, 1.0577068, 1.1690887, 1.2805018, 1.3919639, 1.5035020, 1.6151567, 1.7269888,
                                 1.8390868, 1.9515795, 2.0646509, 2.1785620, 2.2936796, 2.4105166, 2.5297886, 2.6524968,
                                 2.7800544, 2.9144911, 3.0588063, 3.2176335, 3.3986280, 3.6158201, 3.8997329, 4.3433810}},
      {6, TableKind::bounded, {0.0556642, 0.1669926, 0.2783214, 0.3896506, 0.5009805, 0.6123114, 0.7236435, 0.8349774,
                               0.9463134, 1.0576526, 1.1689963, 1.2803468, 1.3917078, 1.5030855, 1.6144893, 1.7259349,
                               1.8374468, 1.9490637, 2.0608454, 2.1728835, 2.2853174, 2.3983562, 2.5123124, 2.6276495,
                               2.7450531, 2.8655367, 2.9906089, 3.1225467, 3.2648773, 3.4233134, 3.6078072, 3.8379607}},
      {5,
       TableKind::converged,
       {0.065890, 0.198052, 0.331378, 0.466700, 0.604934, 0.747136, 0.894565, 1.048783, 1.211804, 1.386340, 1.576228, 1.787233,
        2.028728, 2.317739, 2.691120, 3.260732}},
  };
  return tables;
}

TEST(Codebook, ReproducesThePrintedTables) {
  for (const Printed& printed : printed_tables()) {
    const Codebook book = make_codebook(printed.bits, printed.kind);
    ASSERT_EQ(book.magnitudes.size(), printed.magnitudes.size());
    // The printed digits end at 1e-7 (1e-6 for the converged table), and some are rounded from float32.
    const double digit = printed.kind == TableKind::converged ? 0.6e-6 : 5e-7;
    for (size_t i = 0; i < printed.magnitudes.size(); ++i) {
      EXPECT_NEAR(book.magnitudes[i], printed.magnitudes[i], digit) << printed.bits << " bits, " << table_kind_name(printed.kind);
    }
  }
}

TEST(Codebook, HasTheKnownDistortion) {
  // Spec of the method, section 6.1; six decimals are printed.
  const struct {
    TableKind kind;
    double error[5];
  } known[] = {{TableKind::converged, {0.117482, 0.034548, 0.009501, 0.002505, 0.000644}},
               {TableKind::published, {0.117482, 0.034548, 0.009511, 0.002923, 0.001047}},
               {TableKind::bounded, {0.117482, 0.034548, 0.009508, 0.002902, 0.001051}}};
  for (const auto& row : known) {
    for (int bits = 2; bits <= 6; ++bits) {
      EXPECT_NEAR(distortion(make_codebook(bits, row.kind)), row.error[bits - 2], 0.6e-6) << bits << table_kind_name(row.kind);
    }
  }
}

TEST(Codebook, ConvergedTableIsAFixedPointAndTheBest) {
  double previous = 1.0;
  for (int bits = 2; bits <= 8; ++bits) {
    const Codebook book = make_codebook(bits, TableKind::converged);
    const std::vector<float>& c = book.magnitudes;
    for (size_t i = 0; i < c.size(); ++i) {
      const double a = i == 0 ? 0.0 : 0.5 * (static_cast<double>(c[i - 1]) + c[i]);
      const double b = i + 1 == c.size() ? INFINITY : 0.5 * (static_cast<double>(c[i]) + c[i + 1]);
      // Centroids are rounded to fp32, half a unit of the largest is 2.4e-7 x 2^-1; a boundary moves by as much.
      EXPECT_NEAR(c[i], (density(a) - density(b)) / (tail(a) - tail(b)), 5e-7) << bits << " bits, centroid " << i;
    }
    const double error = distortion(book);
    EXPECT_LE(error, distortion(make_codebook(bits, TableKind::published)) * (1 + 1e-6));
    EXPECT_LE(error, distortion(make_codebook(bits, TableKind::bounded)) * (1 + 1e-6));
    EXPECT_LT(error, previous / 3.0);
    previous = error;
  }
}

TEST(Codebook, IsSymmetricAscendingAndIntegerFormFollows) {
  for (TableKind kind : {TableKind::converged, TableKind::published, TableKind::bounded}) {
    for (int bits = 2; bits <= 8; ++bits) {
      const Codebook book = make_codebook(bits, kind);
      const size_t count = size_t{1} << bits;
      ASSERT_EQ(book.bits, bits);
      ASSERT_EQ(book.kind, kind);
      ASSERT_EQ(book.centroids.size(), count);
      ASSERT_EQ(book.magnitudes.size(), count / 2);
      ASSERT_EQ(book.int_magnitudes.size(), count / 2);
      EXPECT_EQ(book.int_magnitudes.back(), bits <= 5 ? 127 : 32767);
      for (size_t i = 0; i < count; ++i) {
        if (i > 0) {
          EXPECT_GT(book.centroids[i], book.centroids[i - 1]);
        }
        const float mirror = -book.centroids[count - 1 - i];
        if (kind == TableKind::converged) {
          EXPECT_EQ(book.centroids[i], mirror);
        } else {
          // Tails lose digits in erf: 1e-16 over a cell's mass of at least 1e-6, amplified by 100 iterations.
          EXPECT_NEAR(book.centroids[i], mirror, 1e-6);
        }
      }
      for (size_t m = 0; m < count / 2; ++m) {
        EXPECT_NEAR(book.magnitudes[m], book.centroids[count / 2 + m], 1e-6);
        // Half an integer step.
        EXPECT_NEAR(book.int_magnitudes[m] * book.int_step * std::sqrt(128.0), book.magnitudes[m],
                    0.5001 * book.int_step * std::sqrt(128.0));
      }
    }
  }
}

TEST(Codebook, IsMadeQuickly) {
  const auto start = std::chrono::steady_clock::now();
  for (TableKind kind : {TableKind::converged, TableKind::published}) make_codebook(8, kind);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(50));
}

TEST(Codebook, RefusesImpossibleRequests) {
  for (int bits : {-1, 0, 1, 9}) EXPECT_THROW(make_codebook(bits, TableKind::converged), Error);
  EXPECT_THROW(make_codebook(5, TableKind::file), Error);
}

TEST(Codebook, TakesTablesFromFiles) {
  const Codebook made = make_codebook(5, TableKind::published);
  const Codebook taken = codebook_from_table(made.centroids);
  EXPECT_EQ(taken.bits, 5);
  EXPECT_EQ(taken.kind, TableKind::file);
  EXPECT_EQ(taken.centroids, made.centroids);
  EXPECT_EQ(taken.magnitudes, made.magnitudes);
  EXPECT_EQ(taken.int_magnitudes, made.int_magnitudes);
}

TEST(Codebook, RefusesWrongTables) {
  const auto kind_of = [](const std::vector<float>& table) {
    try {
      codebook_from_table(table);
    } catch (const Error& error) {
      return error.kind();
    }
    return ErrorKind::internal;
  };
  const std::vector<float> good = {-2.0f, -0.5f, 0.5f, 2.0f};
  EXPECT_NO_THROW(codebook_from_table(good));
  EXPECT_EQ(kind_of({}), ErrorKind::input);
  EXPECT_EQ(kind_of({-1.0f, 1.0f}), ErrorKind::input);
  EXPECT_EQ(kind_of({-2.0f, -0.5f, 0.5f}), ErrorKind::input);
  EXPECT_EQ(kind_of(std::vector<float>(512, 1.0f)), ErrorKind::input);
  EXPECT_EQ(kind_of({-2.0f, 0.5f, -0.5f, 2.0f}), ErrorKind::input);
  EXPECT_EQ(kind_of({-2.0f, -0.5f, 0.5f, 2.01f}), ErrorKind::input);
  EXPECT_EQ(kind_of({-2.0f, -0.5f, 0.5f, NAN}), ErrorKind::input);
  EXPECT_EQ(kind_of({-2.0f, -0.5f, 0.5f, INFINITY}), ErrorKind::input);
  EXPECT_EQ(kind_of({-2.0f, -1e-9f, 0.0f, 2.0f}), ErrorKind::input);
}

}  // namespace
}  // namespace pq
