// Norms, activations, convolution and elementary functions on every instruction set: against the reference within the rounding
// bound, against the generic path bit for bit, in place where the contract allows it, any cutting of sequences.
#include "kernels/cpu/kernels.h"
#include "tests/kernels/every_backend.h"

namespace pq {
namespace {

// Relative error of exp in the cpu kernels: 2 units in the last place, that is 4 roundings. ExpIsAccurate measures it.
constexpr double kExpEps = 4 * kEps;

using OpsTest = EveryBackendTest;

TEST_P(OpsTest, ExpIsAccurate) {
  if (!host()) GTEST_SKIP() << "a device has no exp that a host could call";
  const Kernels& kernels = kernels_of(*isa_);
  const Kernels& generic = kernels_of(Isa::generic);
  EXPECT_EQ(kernels.exp(0.0f), 1.0f);
  for (int i = -86000; i <= 88000; i += 7) {
    const float x = static_cast<float>(i) * 1e-3f;
    const double expected = std::exp(static_cast<double>(x));
    ASSERT_NEAR(kernels.exp(x), expected, kExpEps * expected) << x;
    ASSERT_EQ(kernels.exp(x), generic.exp(x)) << x;
  }
  EXPECT_TRUE(std::isnan(kernels.exp(NAN)));
  EXPECT_LT(kernels.exp(-1e30f), 1e-36f);
  EXPECT_GT(kernels.exp(1e30f), 1e38f);
  EXPECT_TRUE(std::isfinite(kernels.exp(INFINITY)));
}

TEST_P(OpsTest, NormsAgree) {
  for (int64_t dim : {1, 15, 16, 17, 128, 256, 5120}) {
    for (int64_t rows : {0, 1, 3}) {
      const std::vector<float> x = normals(rows * dim, dim, 3.0);
      const std::vector<float> gate = normals(rows * dim, dim + 1, 4.0);
      const std::vector<float> weight = normals(dim, dim + 2);
      for (float offset : {0.0f, 1.0f}) {
        const auto norm = [&](Backend& backend) {
          Guarded<float> y(rows * dim);
          backend.rms_norm({.y = y.data(),
                            .x = x.data(),
                            .weight = weight.data(),
                            .rows = rows,
                            .dim = dim,
                            .eps = 1e-6f,
                            .weight_offset = offset});
          EXPECT_TRUE(y.intact());
          return y.values();
        };
        const std::vector<float> expected = norm(*reference_);
        const std::vector<float> y = norm(*backend_);
        EXPECT_TRUE(same_bits(y, norm(*generic_)));
        // Lane additions and folding act on half the exponent of the sum; division, offset, product, root and eps round once each.
        std::vector<double> bound;
        for (size_t i = 0; i < y.size(); ++i) {
          const double w = std::abs(offset) + std::abs(weight[i % dim]);
          const double scaled = std::abs(offset + weight[i % dim]) > 0 ? std::abs(expected[i] / (offset + weight[i % dim])) : 0.0;
          bound.push_back((0.5 * (static_cast<double>(dim) / 16 + 6) + 6) * kEps * scaled * w);
        }
        EXPECT_TRUE(within(y, expected, bound)) << dim;
        std::vector<float> in_place = x;
        backend_->rms_norm({.y = in_place.data(),
                            .x = in_place.data(),
                            .weight = weight.data(),
                            .rows = rows,
                            .dim = dim,
                            .eps = 1e-6f,
                            .weight_offset = offset});
        EXPECT_TRUE(same_bits(in_place, y));
      }
      const auto gated = [&](Backend& backend) {
        Guarded<float> y(rows * dim);
        backend.gated_rms_norm(
            {.y = y.data(), .x = x.data(), .gate = gate.data(), .weight = weight.data(), .rows = rows, .dim = dim, .eps = 1e-6f});
        EXPECT_TRUE(y.intact());
        return y.values();
      };
      const std::vector<float> expected = gated(*reference_);
      const std::vector<float> y = gated(*backend_);
      EXPECT_TRUE(same_bits(y, gated(*generic_)));
      std::vector<double> bound;
      for (float value : expected) {
        bound.push_back(((0.5 * (static_cast<double>(dim) / 16 + 6) + 10) * kEps + kExpEps) * std::abs(value));
      }
      EXPECT_TRUE(within(y, expected, bound)) << dim;
      std::vector<float> in_place = x;
      backend_->gated_rms_norm({.y = in_place.data(),
                                .x = in_place.data(),
                                .gate = gate.data(),
                                .weight = weight.data(),
                                .rows = rows,
                                .dim = dim,
                                .eps = 1e-6f});
      EXPECT_TRUE(same_bits(in_place, y));
    }
  }
}

// Matrices of one column: the products of an input of 1 are the weights.
TEST_P(OpsTest, SwigluAndAddAgree) {
  const float one = 1.0f;
  for (int64_t count : {0, 1, 15, 16, 17, 128, 1000}) {
    std::vector<float> gate = normals(count, 1, 6.0);
    const std::vector<float> up = normals(count, 2, 3.0);
    for (int64_t i = 0; i < std::min<int64_t>(count, 4); ++i) gate[i] = (i % 2 ? 1.0f : -1.0f) * (i < 2 ? 200.0f : 0.0f);
    const auto multiply = [&](Backend& backend) {
      Guarded<float> y(count);
      backend.swiglu({.y = y.data(),
                      .x = {.tokens = 1, .dim = 1, .raw = &one},
                      .gate = {.rows = count, .cols = 1, .data = gate.data()},
                      .up = {.rows = count, .cols = 1, .data = up.data()}});
      EXPECT_TRUE(y.intact());
      return y.values();
    };
    const std::vector<float> y = multiply(*backend_);
    const std::vector<float> expected = multiply(*reference_);
    EXPECT_TRUE(same_bits(y, multiply(*generic_)));
    std::vector<double> bound;
    // Where exp is clamped the result is below 200 * 3e-38 * |up|.
    for (size_t i = 0; i < y.size(); ++i) bound.push_back((kExpEps + 3 * kEps) * std::abs(expected[i]) + 1e-34);
    EXPECT_TRUE(within(y, expected, bound));
  }
}

// Runs one sequence of `x` in the given pieces, in slot 1 of 3, from a state full of NaN.
struct ConvRun {
  std::vector<float> y;
  std::vector<float> state;
};

ConvRun run_conv(Backend& backend, const std::vector<float>& x, const std::vector<float>& weight, int64_t channels,
                 const std::vector<int64_t>& pieces) {
  const int64_t tokens = static_cast<int64_t>(x.size()) / channels;
  ConvRun run;
  run.state.assign(static_cast<size_t>(3 * kConvRows * channels), NAN);
  int64_t position = 0;
  for (int64_t piece : pieces) {
    const Span span{.row = 0, .tokens = piece, .position = position, .slot = 1};
    Guarded<float> y(piece * channels);
    backend.causal_conv({.y = y.data(),
                         .x = x.data() + position * channels,
                         .weight = weight.data(),
                         .state = run.state.data(),
                         .channels = channels,
                         .spans = {&span, 1}});
    EXPECT_TRUE(y.intact());
    const std::vector<float> values = y.values();
    run.y.insert(run.y.end(), values.begin(), values.end());
    position += piece;
  }
  EXPECT_EQ(position, tokens);
  for (size_t i = 0; i < run.state.size(); ++i) {
    // Rows of the slot whose positions there have been.
    const int64_t row = static_cast<int64_t>(i) / channels - kConvRows;
    EXPECT_EQ(std::isnan(run.state[i]), row < 0 || row >= std::min(tokens, kConvRows)) << "state element " << i;
  }
  run.state = std::vector<float>(run.state.begin() + kConvRows * channels, run.state.begin() + 2 * kConvRows * channels);
  return run;
}

TEST_P(OpsTest, ConvolutionAgreesAndAnyCuttingIsTheSame) {
  for (int64_t channels : {5, 16, 48, 100, 256}) {
    const int64_t tokens = 23;
    const std::vector<float> x = normals(tokens * channels, channels);
    const std::vector<float> weight = normals(4 * channels, channels + 1);
    const ConvRun whole = run_conv(*backend_, x, weight, channels, {tokens});
    const ConvRun expected = run_conv(*reference_, x, weight, channels, {tokens});
    EXPECT_TRUE(same_bits(whole.y, run_conv(*generic_, x, weight, channels, {tokens}).y));
    std::vector<double> bound;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t c = 0; c < channels; ++c) {
        double terms = 0.0;
        for (int64_t j = 0; j < 4; ++j) terms += t - 3 + j >= 0 ? std::abs(weight[4 * c + j] * x[(t - 3 + j) * channels + c]) : 0.0;
        // Four fmas; the slope of silu is at most 1.1.
        bound.push_back(1.1 * 4 * kEps * terms + (kExpEps + 3 * kEps) * std::abs(expected.y[t * channels + c]));
      }
    }
    EXPECT_TRUE(within(whole.y, expected.y, bound));
    for (const std::vector<int64_t>& pieces :
         {std::vector<int64_t>(tokens, 1), {1, 2, 3, 4, 5, 6, 2}, {3, 20}, {22, 1}, {0, 2, 0, 21}}) {
      const ConvRun cut = run_conv(*backend_, x, weight, channels, pieces);
      EXPECT_TRUE(same_bits(cut.y, whole.y));
      EXPECT_TRUE(same_bits(cut.state, whole.state));
      const ConvRun reference_cut = run_conv(*reference_, x, weight, channels, pieces);
      EXPECT_TRUE(same_bits(reference_cut.y, expected.y));
      EXPECT_TRUE(same_bits(reference_cut.state, whole.state));
    }
  }
}

TEST_P(OpsTest, ConvolutionKeepsSequencesApart) {
  const int64_t channels = 32;
  const std::vector<float> weight = normals(4 * channels, 1);
  const std::vector<float> x = normals(9 * channels, 2);
  // Slot 2 runs 4 tokens, then slot 0 runs 2, then slot 2 runs 3 more, in one batch whose rows are not in that order.
  const std::vector<Span> spans = {{.row = 0, .tokens = 4, .position = 0, .slot = 2},
                                   {.row = 7, .tokens = 2, .position = 0, .slot = 0},
                                   {.row = 4, .tokens = 3, .position = 4, .slot = 2}};
  std::vector<float> state(3 * kConvRows * channels, NAN);
  std::vector<float> y(9 * channels);
  backend_->causal_conv({.y = y.data(),
                         .x = x.data(),
                         .weight = weight.data(),
                         .state = state.data(),
                         .channels = channels,
                         .spans = {spans.data(), 3}});
  const std::vector<float> first(x.begin(), x.begin() + 7 * channels);
  const std::vector<float> second(x.begin() + 7 * channels, x.end());
  std::vector<float> expected = run_conv(*backend_, first, weight, channels, {7}).y;
  const std::vector<float> tail = run_conv(*backend_, second, weight, channels, {2}).y;
  expected.insert(expected.end(), tail.begin(), tail.end());
  EXPECT_TRUE(same_bits(y, expected));
}

INSTANTIATE_TEST_SUITE_P(Backends, OpsTest, ::testing::ValuesIn(every_backend()), backend_test_name);

}  // namespace
}  // namespace pq
