// Codes of the encoders: by an independent search, the same bytes from every backend, type of weights and number of threads.
#include <algorithm>
#include <array>
#include <bit>
#include <memory>
#include <string>

#include "base/error.h"
#include "kernels/hadamard.h"
#include "tests/kernels/encoder_cases.h"
#include "tests/kernels/every_backend.h"

namespace pq {
namespace {

// Blocks of every kind that the encoder treats in its own way: Gaussian, heavy-tailed, constant, alternating, one spike, zero,
// tiny.
std::vector<float> assorted(int64_t blocks) {
  std::vector<float> w = normals(blocks * kBlock, 23, 0.3);
  for (int64_t b = 0; b < blocks; ++b) {
    float* block = w.data() + b * kBlock;
    for (int64_t i = 0; i < kBlock; ++i) {
      switch (b % 10) {
        case 3:
          block[i] *= block[i] * block[i];
          break;
        case 4:
          block[i] = 0.25f;
          break;
        case 5:
          block[i] = i % 2 ? 1.0f : -1.0f;
          break;
        case 6:
          block[i] = i == 100 ? 3.0f : 0.0f;
          break;
        case 7:
          block[i] *= b % 20 < 10 ? 0.0f : 1e-9f;
          break;
        case 8:
          block[i] *= 1e-30f;
          break;
        case 9:
          block[i] = bf16_to_f32(f32_to_bf16(block[i]));
          break;
        default:
          break;
      }
    }
  }
  return w;
}

// Tables that the fast lookups cannot take as they take the usual ones: not symmetric, two centroids close together, tiny, huge.
std::vector<Codebook> odd_tables(int bits) {
  const std::vector<float> usual = make_codebook(bits, TableKind::converged).centroids;
  const size_t half = usual.size() / 2;
  std::vector<Codebook> books;
  std::vector<float> table = usual;
  for (size_t i = 0; i < table.size(); ++i) table[i] += 5e-4f * static_cast<float>(i % 3);
  books.push_back(codebook_from_table(table));
  table = usual;
  table[half + 1] = table[half] * 1.0001f;
  table[half - 2] = table[half - 1] * 1.0001f;
  books.push_back(codebook_from_table(table));
  for (float scale : {1e-18f, 1e18f}) {
    table = usual;
    for (float& c : table) c *= scale;
    books.push_back(codebook_from_table(table));
  }
  return books;
}

using EncoderOfEveryBackend = EveryBackendTest;
INSTANTIATE_TEST_SUITE_P(Backends, EncoderOfEveryBackend, ::testing::ValuesIn(every_backend()), backend_test_name);

TEST_P(EncoderOfEveryBackend, WritesTheBytesOfTheReference) {
  const std::vector<float> w = assorted(60);
  for (int bits = 2; bits <= 8; ++bits) {
    std::vector<Codebook> books = odd_tables(bits);
    for (TableKind kind : {TableKind::converged, TableKind::published}) books.push_back(make_codebook(bits, kind));
    for (size_t i = 0; i < books.size(); ++i) {
      for (bool search : {false, true}) {
        const Encoded a = encode(*backend_, w, 5, books[i], search);
        const Encoded b = encode(*reference_, w, 5, books[i], search);
        EXPECT_EQ(a.codes, b.codes) << bits << " bits, table " << i << (search ? ", search" : "");
        EXPECT_EQ(a.norms, b.norms) << bits << " bits, table " << i << (search ? ", search" : "");
        EXPECT_EQ(a.error.squared_error, b.error.squared_error);
        EXPECT_EQ(a.error.squared_norm, b.error.squared_norm);
      }
    }
  }
}

// z of a block in the encoder's own fp32 steps, so that codes can be compared for equality.
std::array<float, kBlock> rotated(const float* w, float* norm) {
  double squares = 0.0;
  for (int64_t i = 0; i < kBlock; ++i) squares += static_cast<double>(w[i]) * w[i];
  *norm = std::max(static_cast<float>(std::sqrt(squares)), 1e-10f);
  std::array<float, kBlock> z;
  for (int64_t i = 0; i < kBlock; ++i) z[i] = w[i] / *norm;
  hadamard_butterflies(z.data());
  for (float& value : z) value = value * 0.08838834764831845f * 11.3137085f;
  return z;
}

TEST(EncoderCodes, PlainCodesAreTheFirstNearestCentroidsInFp32) {
  const std::unique_ptr<Backend> backend = make_backend("cpu");
  const int64_t blocks = 60;
  const std::vector<float> w = assorted(blocks);
  for (int bits = 2; bits <= 8; ++bits) {
    // Without the tiny and the huge table, whose fp32 distances are mostly equal.
    std::vector<Codebook> books = odd_tables(bits);
    books.resize(2);
    for (TableKind kind : {TableKind::converged, TableKind::published}) books.push_back(make_codebook(bits, kind));
    for (size_t i = 0; i < books.size(); ++i) {
      const std::vector<float>& centroids = books[i].centroids;
      const Encoded encoded = encode(*backend, w, blocks, books[i], false);
      for (int64_t b = 0; b < blocks; ++b) {
        float norm;
        const std::array<float, kBlock> z = rotated(w.data() + b * kBlock, &norm);
        EXPECT_EQ(encoded.norms[b], f32_to_f16(norm));
        std::array<uint8_t, kBlock> codes;
        unpack_block(encoded.codes.data() + b * coded_block_bytes(bits), bits, codes.data());
        for (int64_t j = 0; j < kBlock; ++j) {
          size_t best = 0;
          for (size_t k = 1; k < centroids.size(); ++k)
            if (std::abs(z[j] - centroids[k]) < std::abs(z[j] - centroids[best])) best = k;
          ASSERT_EQ(codes[j], best) << bits << " bits, table " << i << ", block " << b << ", z " << z[j];
        }
      }
    }
  }
}

TEST(EncoderCodes, SearchedCodesAreTheNearestMagnitudesAtTheScaleTheyWereFoundAt) {
  // Whatever scale won, codes follow from it: a larger |z| never has the smaller magnitude, and the norm is the refitted gain of
  // the codes, rounded to fp16 (sums of 128 fp32 products of one sign are good to 12 roundings, far below the half's).
  const std::unique_ptr<Backend> backend = make_backend("cpu");
  const int64_t blocks = 60;
  const std::vector<float> w = normals(blocks * kBlock, 53, 0.02);
  for (int bits = 2; bits <= 8; ++bits) {
    const Codebook book = make_codebook(bits, TableKind::converged);
    const Encoded encoded = encode(*backend, w, blocks, book, true);
    for (int64_t b = 0; b < blocks; ++b) {
      float norm;
      const std::array<float, kBlock> z = rotated(w.data() + b * kBlock, &norm);
      std::array<uint8_t, kBlock> codes;
      unpack_block(encoded.codes.data() + b * coded_block_bytes(bits), bits, codes.data());
      std::vector<std::pair<float, float>> pairs;
      double zc = 0.0, cc = 0.0;
      for (int64_t j = 0; j < kBlock; ++j) {
        const float c = book.centroids[codes[j]];
        EXPECT_EQ(c > 0.0f, z[j] > 0.0f);
        pairs.emplace_back(std::abs(z[j]), std::abs(c));
        zc += static_cast<double>(z[j]) * c;
        cc += static_cast<double>(c) * c;
      }
      std::sort(pairs.begin(), pairs.end());
      EXPECT_TRUE(std::is_sorted(pairs.begin(), pairs.end(), [](const auto& x, const auto& y) { return x.second < y.second; }));
      const double gain = norm * zc / cc;
      EXPECT_NEAR(f16_to_f32(encoded.norms[b]), gain, gain * (0x1p-11 + 0x1p-20)) << bits << " bits, block " << b;
    }
  }
}

TEST(EncoderCodes, ANormWhoseRefitOverflowsKeepsItsPlainCodes) {
  // norm 65500 is a finite half; the constant block's one coordinate, 11.3, is far above the table and holds nearly all of
  // sum c^2, so every refitted gain is about 11.3 / 3.3 times it.
  const std::unique_ptr<Backend> backend = make_backend("cpu");
  const std::vector<float> w(kBlock, 5789.4f);
  for (int bits : {5, 8}) {
    const Codebook book = make_codebook(bits, TableKind::converged);
    const Encoded plain = encode(*backend, w, 1, book, false);
    const Encoded searched = encode(*backend, w, 1, book, true);
    EXPECT_EQ(searched.norms, plain.norms);
    EXPECT_EQ(searched.error.squared_error, plain.error.squared_error);
  }
}

TEST(EncoderCodes, PlainCodesAreTheNearestCentroids) {
  const std::unique_ptr<Backend> backend = make_backend("cpu");
  const int64_t blocks = 60;
  const std::vector<float> w = normals(blocks * kBlock, 17);
  for (TableKind kind : {TableKind::published, TableKind::converged}) {
    for (int bits = 2; bits <= 8; ++bits) {
      const Codebook book = make_codebook(bits, kind);
      const Encoded encoded = encode(*backend, w, blocks, book, false);
      for (int64_t b = 0; b < blocks; ++b) {
        const float* block = w.data() + b * kBlock;
        double squares = 0.0;
        for (int64_t i = 0; i < kBlock; ++i) squares += static_cast<double>(block[i]) * block[i];
        EXPECT_EQ(encoded.norms[b], f32_to_f16(static_cast<float>(std::sqrt(squares))));
        std::array<uint8_t, kBlock> codes;
        unpack_block(encoded.codes.data() + b * coded_block_bytes(bits), bits, codes.data());
        for (int64_t j = 0; j < kBlock; ++j) {
          double z = 0.0;
          for (int64_t i = 0; i < kBlock; ++i) z += std::popcount(static_cast<uint64_t>(i & j)) % 2 ? -block[i] : block[i];
          z /= std::sqrt(squares);
          double best = INFINITY;
          for (float c : book.centroids) best = std::min(best, std::abs(z - c));
          // fp32 rotation moves z by at most 10 roundings of sum |u| <= sqrt(128).
          ASSERT_LE(std::abs(z - book.centroids[codes[j]]), best + 2 * 10 * kEps * std::sqrt(128.0)) << "block " << b << ", " << j;
        }
      }
    }
  }
}

TEST(EncoderCodes, ABlockDoesNotDependOnItsNeighbours) {
  const std::unique_ptr<Backend> backend = make_backend("cpu");
  const std::vector<float> w = normals(4 * 256, 29);
  const Codebook book = make_codebook(5, TableKind::converged);
  const Encoded whole = encode(*backend, w, 4, book, true);
  for (int64_t b = 0; b < 8; ++b) {
    const Encoded alone = encode(*backend, {w.begin() + b * kBlock, w.begin() + (b + 1) * kBlock}, 1, book, true);
    EXPECT_TRUE(std::equal(alone.codes.begin(), alone.codes.end(), whole.codes.begin() + b * 80));
    EXPECT_EQ(alone.norms[0], whole.norms[b]);
  }
}

// The bytes and errors of both encoders.
struct Outcome {
  std::vector<uint8_t> codes = std::vector<uint8_t>(1 << 16), int4_codes = codes;
  std::vector<uint16_t> norms = std::vector<uint16_t>(1 << 10), scales = norms, zeros = norms;
  EncodeError error, int4_error;
};

Outcome encode_both(Backend& backend, const void* w, DType dtype, int64_t rows, int64_t cols) {
  static const Codebook book = make_codebook(5, TableKind::converged);
  Outcome o;
  backend.polar_encode({.codes = o.codes.data(),
                        .norms = o.norms.data(),
                        .w = w,
                        .rows = rows,
                        .cols = cols,
                        .codebook = &book,
                        .scale_search = true,
                        .error = &o.error,
                        .dtype = dtype});
  backend.int4_encode({.codes = o.int4_codes.data(),
                       .scales = o.scales.data(),
                       .zeros = o.zeros.data(),
                       .w = w,
                       .rows = rows,
                       .cols = cols,
                       .error = &o.int4_error,
                       .dtype = dtype});
  return o;
}

void expect_same(const Outcome& a, const Outcome& b) {
  EXPECT_EQ(a.codes, b.codes);
  EXPECT_EQ(a.norms, b.norms);
  EXPECT_EQ(a.int4_codes, b.int4_codes);
  EXPECT_EQ(a.scales, b.scales);
  EXPECT_EQ(a.zeros, b.zeros);
  EXPECT_EQ(a.error.squared_error, b.error.squared_error);
  EXPECT_EQ(a.error.squared_norm, b.error.squared_norm);
  EXPECT_EQ(a.int4_error.squared_error, b.int4_error.squared_error);
  EXPECT_EQ(a.int4_error.squared_norm, b.int4_error.squared_norm);
}

TEST_P(EncoderOfEveryBackend, HalvesAreCodedAsTheFloatsTheyStandFor) {
  const std::vector<float> w = assorted(60);
  std::vector<uint16_t> bf16, f16;
  std::vector<float> from_bf16, from_f16;
  for (float value : w) {
    bf16.push_back(f32_to_bf16(value));
    f16.push_back(f32_to_f16(value));
    from_bf16.push_back(bf16_to_f32(bf16.back()));
    from_f16.push_back(f16_to_f32(f16.back()));
  }
  expect_same(encode_both(*backend_, bf16.data(), DType::bf16, 5, 1536),
              encode_both(*reference_, from_bf16.data(), DType::f32, 5, 1536));
  expect_same(encode_both(*backend_, f16.data(), DType::f16, 5, 1536),
              encode_both(*reference_, from_f16.data(), DType::f32, 5, 1536));
  EXPECT_THROW(encode_both(*backend_, w.data(), DType::i32, 5, 1536), Error);
}

// Symmetric INT4, and calls of other sizes after each other: what one leaves on a device must not show in the next.
TEST_P(EncoderOfEveryBackend, CodesSymmetricGroupsAndCallsOfAnySize) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{0, 256}, {1, 128}, {7, 1152}, {3, 128}}) {
    const std::vector<float> w = assorted(rows * cols / kBlock);
    Guarded<uint8_t> codes(rows * cols / 2), expected_codes(rows * cols / 2);
    Guarded<uint16_t> scales(rows * cols / kBlock), expected_scales(rows * cols / kBlock);
    EncodeError error{1, 1}, expected_error{2, 2};
    const auto run = [&, rows = rows, cols = cols](Backend& backend, Guarded<uint8_t>& c, Guarded<uint16_t>& s, EncodeError* e) {
      backend.int4_encode(
          {.codes = c.data(), .scales = s.data(), .zeros = nullptr, .w = w.data(), .rows = rows, .cols = cols, .error = e});
      EXPECT_TRUE(c.intact() && s.intact());
    };
    run(*backend_, codes, scales, &error);
    run(*reference_, expected_codes, expected_scales, &expected_error);
    EXPECT_EQ(codes.values(), expected_codes.values()) << rows << " rows of " << cols;
    EXPECT_EQ(scales.values(), expected_scales.values());
    EXPECT_EQ(error.squared_error, expected_error.squared_error);
    EXPECT_EQ(error.squared_norm, expected_error.squared_norm);
    // No one asks for the error.
    run(*backend_, codes, scales, nullptr);
    EXPECT_EQ(codes.values(), expected_codes.values());
  }
}

TEST(EncoderCodes, SameFromAnyNumberOfThreads) {
  const int64_t rows = 61, cols = 512;
  std::vector<float> w = assorted(rows * cols / kBlock);
  const Outcome expected = encode_both(*make_backend("cpu"), w.data(), DType::f32, rows, cols);
  // Two rows that cannot be coded: the first one is named.
  std::vector<float> bad = w;
  bad[50 * cols + 7] = INFINITY;
  bad[23 * cols + 300] = NAN;
  for (const int threads : {1, 2, 3, 8}) {
    const std::unique_ptr<Backend> backend = make_backend("cpu", {.threads = threads});
    expect_same(encode_both(*backend, w.data(), DType::f32, rows, cols), expected);
    try {
      encode_both(*backend, bad.data(), DType::f32, rows, cols);
      ADD_FAILURE() << "nothing was thrown";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("row 23, column 300"), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace pq
