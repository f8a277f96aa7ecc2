// Products of many tokens by cuBLAS: what is promised of them, against the operands rounded here and against the reference, over
// formats, layouts, units and tiles; when they are taken; what becomes of errors. Under emulation everywhere, with a stand-in for
// the library, and on a device where there is one.
#include "kernels/cuda/wide_products.h"

#include <gmock/gmock.h>

#include <array>

#include "kernels/device_memory.h"
#include "kernels/plugin.h"
#include "tests/kernels/on_device.h"
#include "tests/kernels/staging_backend.h"
#include "tests/support/simt/cublas_v2.h"
#include "tests/support/simt/emulated_backend.h"

namespace pq {
namespace {

using testing::HasSubstr;

// Small, so that matrices take several tiles.
constexpr int64_t kTile = 40 << 10;

class WideProducts : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (GetParam() == "cuda") {
      if (!gpu_or_required()) GTEST_SKIP() << "this machine has no GPU";
      device_ = make_backend("cuda", {.cublas = true});
      contract_ = make_backend("cuda");
    } else {
      device_ = make_emulated_cuda_backend(0, 0, kTile);
      contract_ = make_emulated_cuda_backend();
    }
  }
  std::unique_ptr<Backend> device_;    // with cuBLAS
  std::unique_ptr<Backend> contract_;  // without
};

// An input in every form, its coded one included: random codes and scales, not those of `raw`.
struct Input {
  Input(int64_t tokens_, int64_t dim_, uint64_t seed) : tokens(tokens_), dim(dim_), raw(normals(tokens_ * dim_, seed)) {
    Random random(seed + 1);
    codes.resize(raw.size());
    for (int8_t& code : codes) code = static_cast<int8_t>(random.below(255) - 127);
    for (int64_t i = 0; i < tokens * (dim / kBlock); ++i) scales.push_back(static_cast<float>(0.001 + random.uniform()));
    for (size_t i = 0; i < codes.size() && !scales.empty(); ++i) decoded.push_back(codes[i] * scales[i / kBlock]);
  }
  // What a matrix of that format reads, as values.
  const std::vector<float>& values(WeightFormat format, ActivationMode mode) const {
    return format == WeightFormat::polar && mode == ActivationMode::int8 ? decoded : raw;
  }
  int64_t tokens, dim;
  std::vector<float> raw, scales, decoded;
  std::vector<int8_t> codes;
};

std::vector<float> product(Backend& device, const Input& input, ActivationMode mode, const Matrix& w) {
  const Buffer raw = uploaded(device, input.raw), codes = uploaded(device, input.codes), scales = uploaded(device, input.scales);
  const Buffer y = device.allocate(4 * input.tokens * w.rows);
  device.linear({.y = y.as<float>(),
                 .x = {.mode = mode,
                       .tokens = input.tokens,
                       .dim = input.dim,
                       .raw = raw.as<float>(),
                       .rotated = raw.as<float>(),
                       .codes = codes.as<int8_t>(),
                       .scales = scales.as<float>()},
                 .w = w});
  return downloaded<float>(device, y);
}

// The contract's definition, of the same values: a polar matrix against fp32.
std::vector<float> reference_product(const Input& input, ActivationMode mode, const Matrix& w) {
  const std::vector<float>& x = input.values(w.format, mode);
  std::vector<float> y(static_cast<size_t>(input.tokens * w.rows));
  make_backend("reference")
      ->linear({.y = y.data(),
                .x = {.mode = ActivationMode::f32, .tokens = input.tokens, .dim = input.dim, .raw = x.data(), .rotated = x.data()},
                .w = w});
  return y;
}

// Weights in the basis of the product, [units][rows][unit_cols], as fp32.
std::vector<float> weights_of(const OwnedMatrix& owned) {
  const Matrix& w = owned.matrix;
  std::vector<float> out;
  for (int64_t block = 0; block < w.rows * w.cols / kBlock && w.format != WeightFormat::bf16; ++block) {
    if (w.format == WeightFormat::polar) {
      std::array<uint8_t, kBlock> codes;
      unpack_block(owned.data.data() + block * coded_block_bytes(w.codebook->bits), w.codebook->bits, codes.data());
      const float scale = f16_to_f32(w.scales[block]) * 0.08838834764831845f;
      for (const uint8_t code : codes) out.push_back(w.codebook->centroids[code] * scale);
    } else {
      for (int64_t i = 0; i < kBlock; ++i) {
        const int q = (owned.data[static_cast<size_t>(block * 64 + i % 64)] >> (i < 64 ? 0 : 4)) & 15;
        out.push_back(static_cast<float>(q - 8) * bf16_to_f32(w.scales[block]) +
                      (w.zeros != nullptr ? bf16_to_f32(w.zeros[block]) : 0.0f));
      }
    }
  }
  for (int64_t i = 0; w.format == WeightFormat::bf16 && i < w.rows * w.cols; ++i)
    out.push_back(bf16_to_f32(reinterpret_cast<const uint16_t*>(owned.data.data())[i]));
  return out;
}

float rounded(float x) { return bf16_to_f32(f32_to_bf16(x)); }

// Two tests of each product.
// The promise: operands rounded to bfloat16, each once; their products are exact in fp32 (8 bits of mantissa each). At most K - 1
// additions inside a unit, in any order, each losing at most the last bit of fp32 (tensor cores cut off instead of rounding): 2^-23
// of the sum of magnitudes; so do the levels of the tree. The error against the reference, which rounds nothing: (1 + 2^-8)^2 - 1 =
// 2^-7 + 2^-16 of the magnitudes for the operands, beside the roundings of fp32 above and two of the weight's own and one of the
// reference.
void expect_promise(const std::vector<float>& y, const Input& input, ActivationMode mode, const OwnedMatrix& owned) {
  const Matrix& w = owned.matrix;
  const std::vector<float> weights = weights_of(owned);
  const std::vector<float>& x = input.values(w.format, mode);
  const int64_t cols = w.unit_cols();
  std::vector<float> expected;
  std::vector<double> promise, error;
  for (int64_t t = 0; t < input.tokens; ++t) {
    for (int64_t r = 0; r < w.rows; ++r) {
      double sum = 0, magnitudes = 0;
      for (int64_t unit = 0; unit < w.units; ++unit) {
        for (int64_t c = 0; c < cols; ++c) {
          const double term = static_cast<double>(rounded(weights[static_cast<size_t>((unit * w.rows + r) * cols + c)])) *
                              rounded(x[static_cast<size_t>(t * w.cols + unit * cols + c)]);
          sum += term;
          magnitudes += std::abs(term);
        }
      }
      expected.push_back(static_cast<float>(sum));
      promise.push_back((static_cast<double>(cols) + 8) * 0x1p-23 * magnitudes);
      error.push_back((0x1p-7 + 0x1p-16 + (static_cast<double>(cols) + 12) * 0x1p-23) * magnitudes * (1 + 0x1p-6));
    }
  }
  ASSERT_TRUE(within(y, expected, promise));
  ASSERT_TRUE(within(y, reference_product(input, mode, w), error));
}

TEST_P(WideProducts, KeepTheirPromiseOverFormatsUnitsAndTiles) {
  std::vector<MatrixKind> kinds = {{WeightFormat::int4}, {WeightFormat::int4, 0, true}, {WeightFormat::bf16}};
  for (int bits = 2; bits <= 8; ++bits) kinds.push_back({WeightFormat::polar, bits});
  // Tiles of 40 KiB are 160 rows of one block, 48 of three, 24 of five, 16 of nine. Rows that are no multiple of eight; one row.
  const std::array<std::array<int64_t, 3>, 5> shapes = {{{1, 1, 1}, {171, 1, 1}, {37, 3, 2}, {59, 5, 1}, {16, 9, 4}}};
  uint64_t seed = 0;
  for (const MatrixKind& kind : kinds) {
    for (const auto& [rows, blocks, units] : shapes) {
      const int64_t tokens = kWideTokens + static_cast<int64_t>(seed % 3);
      SCOPED_TRACE(::testing::Message() << "format " << static_cast<int>(kind.format) << ", " << kind.bits << " bits, " << rows
                                        << " rows, " << blocks << " blocks, " << units << " units, " << tokens << " tokens");
      const OwnedMatrix owned = random_matrix(kind, rows, units * blocks * kBlock, units, ++seed);
      const Input input(tokens, owned.matrix.cols, ++seed);
      for (const bool arranged : {false, true}) {
        if (arranged && kind.format != WeightFormat::polar) continue;
        const OnDevice w(*device_, owned, arranged);
        for (const ActivationMode mode : {ActivationMode::int8, ActivationMode::f32}) {
          if (mode == ActivationMode::f32 && rows > 60) continue;
          expect_promise(product(*device_, input, mode, w.matrix), input, mode, owned);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// bf16 matrices need not be made of blocks; columns that are no multiple of four take another path.
TEST_P(WideProducts, OfUnevenWidths) {
  for (const auto& [rows, cols, units] : {std::array<int64_t, 3>{5, 48, 1}, {7, 50, 2}, {3, 37, 1}, {16, 100, 4}}) {
    const OwnedMatrix owned = random_matrix({WeightFormat::bf16}, rows, cols, units, static_cast<uint64_t>(cols));
    const Input input(67, cols, 5);
    const OnDevice w(*device_, owned, true);
    expect_promise(product(*device_, input, ActivationMode::int8, w.matrix), input, ActivationMode::int8, owned);
  }
}

// A rank owns whole units and adds by the upper part of the tree: with one shape a unit whatever the number of ranks, its sums are
// the same.
TEST_P(WideProducts, OfRowParallelMatricesAreTheSameBitsAtEveryRankCount) {
  const OwnedMatrix owned = random_matrix({WeightFormat::polar, 5}, 24, 4 * 2 * kBlock, 4, 3);
  const Input input(kWideTokens, owned.matrix.cols, 4);
  const std::vector<float> whole = product(*device_, input, ActivationMode::f32, OnDevice(*device_, owned, true).matrix);
  std::vector<std::vector<float>> parts;
  for (int64_t rank = 0; rank < 2; ++rank) {
    OwnedMatrix part = random_matrix({WeightFormat::polar, 5}, 24, 2 * 2 * kBlock, 2, 3);
    std::copy_n(owned.data.begin() + rank * static_cast<int64_t>(part.data.size()), part.data.size(), part.data.begin());
    std::copy_n(owned.scales.begin() + rank * static_cast<int64_t>(part.scales.size()), part.scales.size(), part.scales.begin());
    Input half(kWideTokens, part.matrix.cols, 4);
    for (int64_t t = 0; t < half.tokens; ++t)
      std::copy_n(input.raw.begin() + t * input.dim + rank * half.dim, half.dim, half.raw.begin() + t * half.dim);
    parts.push_back(product(*device_, half, ActivationMode::f32, OnDevice(*device_, part, true).matrix));
  }
  for (size_t i = 0; i < parts[0].size(); ++i) parts[0][i] += parts[1][i];
  EXPECT_TRUE(same_bits(parts[0], whole));
}

TEST_P(WideProducts, AreTakenForManyTokensOfWhatIsNoF32) {
  const OwnedMatrix polar = random_matrix({WeightFormat::polar, 5}, 24, 384, 1, 3),
                    f32 = random_matrix({WeightFormat::f32}, 24, 384, 1, 3);
  const auto same_as_contract = [&](const OwnedMatrix& owned, int64_t tokens) {
    const Input input(tokens, 384, 4);
    const std::vector<float> contract = product(*contract_, input, ActivationMode::int8, OnDevice(*contract_, owned, true).matrix);
    return static_cast<bool>(
        same_bits(product(*device_, input, ActivationMode::int8, OnDevice(*device_, owned, true).matrix), contract));
  };
  EXPECT_TRUE(same_as_contract(polar, kWideTokens - 1));
  EXPECT_FALSE(same_as_contract(polar, kWideTokens));
  EXPECT_TRUE(same_as_contract(f32, kWideTokens));
}

// Many sequences that decode in one step keep the bits of the contract, and may be recorded.
TEST_P(WideProducts, AreNotTakenInStepsOfSingleTokens) {
  const OwnedMatrix owned = random_matrix({WeightFormat::polar, 5}, 24, 384, 1, 3);
  const Input input(kWideTokens, 384, 4);
  const std::vector<float> contract = product(*contract_, input, ActivationMode::int8, OnDevice(*contract_, owned, true).matrix);
  const OnDevice w(*device_, owned, true);
  const std::vector<int32_t> ids(static_cast<size_t>(kWideTokens));
  std::vector<Span> spans;
  for (int64_t slot = 0; slot < kWideTokens; ++slot) spans.push_back({.row = slot, .tokens = 1, .position = 7, .slot = slot});
  const Span together{.row = 0, .tokens = kWideTokens, .position = 0, .slot = 0};
  for (const bool single : {true, false}) {
    std::vector<float> y;
    const Spans cut = single ? Spans{spans.data(), kWideTokens} : Spans{&together, 1};
    device_->run_step({.ids = ids.data(), .tokens = kWideTokens, .spans = cut, .key = {}},
                      [&] { y = product(*device_, input, ActivationMode::int8, w.matrix); });
    EXPECT_EQ(static_cast<bool>(same_bits(y, contract)), single);
  }
}

TEST_P(WideProducts, StandInSwiglu) {
  const OwnedMatrix gate = random_matrix({WeightFormat::polar, 5}, 40, 512, 1, 1),
                    up = random_matrix({WeightFormat::polar, 6}, 40, 512, 2, 2);
  const OnDevice gate_there(*device_, gate, true), up_there(*device_, up, true);
  const Input input(kWideTokens + 3, 512, 3);
  const Buffer codes = uploaded(*device_, input.codes), scales = uploaded(*device_, input.scales);
  const Buffer y = device_->allocate(4 * input.tokens * 40);
  device_->swiglu({.y = y.as<float>(),
                   .x = {.tokens = input.tokens, .dim = 512, .codes = codes.as<int8_t>(), .scales = scales.as<float>()},
                   .gate = gate_there.matrix,
                   .up = up_there.matrix});
  const std::vector<float> g = product(*device_, input, ActivationMode::int8, gate_there.matrix);
  const std::vector<float> u = product(*device_, input, ActivationMode::int8, up_there.matrix);
  // Matrices of one column: the products of an input of 1 are the weights.
  const float one = 1.0f;
  std::vector<float> expected(g.size());
  const int64_t count = static_cast<int64_t>(g.size());
  make_cpu_backend(Isa::generic)
      ->swiglu({.y = expected.data(),
                .x = {.tokens = 1, .dim = 1, .raw = &one},
                .gate = {.rows = count, .cols = 1, .data = g.data()},
                .up = {.rows = count, .cols = 1, .data = u.data()}});
  EXPECT_TRUE(same_bits(downloaded<float>(*device_, y), expected));
}

INSTANTIATE_TEST_SUITE_P(Devices, WideProducts, ::testing::Values("cuda", "cuda-emulated"), [](const auto& info) {
  return info.param == "cuda" ? std::string("cuda") : std::string("cuda_emulated");
});

TEST(WideTiles, ShareOutTheRowsInWholeTilesOfTheLibrary) {
  // 5120 columns: 32 MiB hold 3276 rows, 25 times 128. 17408 rows are six tiles of at most 2944.
  EXPECT_EQ(cuda::wide_tile_rows(17408, 5120, kWideTileBytes), 2944);
  EXPECT_EQ(cuda::wide_tile_rows(5120, 2176, kWideTileBytes), 5120);
  EXPECT_EQ(cuda::wide_tile_rows(1, 5120, kWideTileBytes), 128);
  // Fewer than 128 fit: multiples of eight, one tile of eight rows at least.
  EXPECT_EQ(cuda::wide_tile_rows(100, 128, 40 << 8), 40);
  EXPECT_EQ(cuda::wide_tile_rows(100, 1 << 20, 40 << 8), 8);
  for (const int64_t rows : {1, 7, 127, 128, 129, 4096, 10000}) {
    for (const int64_t cols : {128, 768, 5120, 17408}) {
      const int64_t step = cuda::wide_tile_rows(rows, cols, kWideTileBytes);
      EXPECT_LE(2 * step * cols, kWideTileBytes);
      EXPECT_EQ(step % 128, 0);
    }
  }
}

template <typename Body>
std::string environment_error(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::environment);
    return error.what();
  }
  return "no error";
}

TEST(WideErrors, NameTheLibraryAndTheCall) {
  const int64_t before = simt::memory_used();
  simt::miss_cublas(true);
  const std::string missing = environment_error([] { make_emulated_cuda_backend(0, 0, kTile); });
  // Who does not ask for it does not miss it.
  EXPECT_NO_THROW(make_emulated_cuda_backend());
  simt::miss_cublas(false);
  EXPECT_EQ(missing, "no cuBLAS: libcublas.so.13: no such file; install it, or run with --prefill codes");
  EXPECT_EQ(simt::memory_used(), before);
  const std::unique_ptr<Backend> device = make_emulated_cuda_backend(0, 0, kTile);
  EXPECT_THAT(device->name(), HasSubstr("prefill by cuBLAS 13.1.0"));
  const OwnedMatrix owned = random_matrix({WeightFormat::polar, 5}, 24, 384, 1, 3);
  const OnDevice w(*device, owned, true);
  simt::fail_gemms(CUBLAS_STATUS_EXECUTION_FAILED);
  const std::string failed =
      environment_error([&] { product(*device, Input(kWideTokens, 384, 4), ActivationMode::int8, w.matrix); });
  simt::fail_gemms(CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(failed, "cublasGemmEx: the function failed to launch on the GPU");
}

}  // namespace
}  // namespace pq
