// Coded weights through the whole model: the same bits at every rank count and cut, an error that falls with the bits, int8
// activations near fp32 ones, and the perplexity of the demo model against transformers. Encoders by themselves are tested in
// tests/kernels and tests/store.
#include <numeric>
#include <ostream>

#include "golden/golden_model.h"

namespace pq {
namespace {

double root_mean_square(const std::vector<double>& values) {
  return std::sqrt(std::inner_product(values.begin(), values.end(), values.begin(), 0.0) / static_cast<double>(values.size()));
}

// rms(b - a) over the standard deviation of a.
double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  const double mean = std::accumulate(a.begin(), a.end(), 0.0) / static_cast<double>(a.size());
  std::vector<double> deviation;
  std::vector<double> difference;
  for (size_t i = 0; i < a.size(); ++i) {
    deviation.push_back(a[i] - mean);
    difference.push_back(static_cast<double>(b[i]) - a[i]);
  }
  return root_mean_square(difference) / root_mean_square(deviation);
}

class CodedFormats : public testing::TestWithParam<std::tuple<std::string, ActivationMode>> {
 protected:
  RunSetup setup(const std::string& model, int ranks) const {
    RunSetup setup{.model = model, .format = std::get<0>(GetParam()), .ranks = ranks};
    setup.options.activations = std::get<1>(GetParam());
    return setup;
  }
};

TEST_P(CodedFormats, SameBitsAtEveryRankCountAndCut) {
  const Golden golden = tiny_golden("ratio2_multimodal");
  const std::vector<float> whole = run_steps(setup(golden.model, 1), cut_steps(golden.tokens, {128}));
  EXPECT_EQ(first_difference(whole, run_steps(setup(golden.model, 1), cut_steps(golden.tokens, {1}))), -1);
  EXPECT_EQ(first_difference(whole, run_steps(setup(golden.model, 1), cut_steps(golden.tokens, {7, 64, 1}))), -1);
  EXPECT_EQ(first_difference(whole, run_steps(setup(golden.model, 2), oracle_steps(golden))), -1);
}

TEST_P(CodedFormats, SameBitsAtFourRanks) {
  const Golden golden = demo_golden();
  const std::vector<Step> steps = cut_steps({golden.tokens.begin(), golden.tokens.begin() + 40}, {35, 1});
  const std::vector<float> one_rank = run_steps(setup(golden.model, 1), steps);
  for (const int ranks : {2, 4}) EXPECT_EQ(first_difference(one_rank, run_steps(setup(golden.model, ranks), steps)), -1) << ranks;
}

std::string coded_name(const testing::TestParamInfo<CodedFormats::ParamType>& info) {
  return std::get<0>(info.param) + (std::get<1>(info.param) == ActivationMode::int8 ? "_int8" : "_f32");
}

INSTANTIATE_TEST_SUITE_P(Golden, CodedFormats,
                         testing::Values(std::tuple{"pq5", ActivationMode::int8}, std::tuple{"pq5", ActivationMode::f32},
                                         std::tuple{"pq3", ActivationMode::int8}, std::tuple{"pq8", ActivationMode::int8},
                                         std::tuple{"int4", ActivationMode::int8}, std::tuple{"int4a", ActivationMode::f32}),
                         coded_name);

// One more bit halves the error of a Lloyd-Max weight (6 dB) and, to first order, that of the logits; 0.75 leaves room for the
// second order. The error of pq8 weights is 0.6 % (spec: 3.5e-5 in energy); the eight matrices in
// the longest chain of the tiny model, with errors independent of each other, make sqrt(8) of it, and 3 covers their gain.
TEST(CodedWeights, EachBitLessensTheError) {
  const Golden golden = tiny_golden("ratio2_multimodal");
  double previous = INFINITY;
  for (int bits = 3; bits <= 8; ++bits) {
    const RunSetup setup{.model = golden.model, .format = "pq" + std::to_string(bits)};
    const double error = relative_difference(golden.logits, run_steps(setup, oracle_steps(golden)));
    RecordProperty(setup.format, std::to_string(error));
    EXPECT_LT(error, 0.75 * previous) << setup.format;
    previous = error;
  }
  EXPECT_LT(previous, 3 * std::sqrt(8.0) * 0.006);
}

// Against fp32 activations and centroids, int8 ones add two roundings to every product of pq5 weights:
//  activations: uniform in +-scale / 2 with scale = max / 127; the largest of 128 rotated values is near 2.8 of their rms, so the
//    relative error is 2.8 / 127 / sqrt(12) = 0.0064;
//  centroids: the same with the largest of the 32 levels, 3.2, for 2.8: 0.0074.
// Together 0.0098 a product. A branch of the residual stream chains two products and multiplies two of them at most, hence 2 *
// 0.0098; 16 branches whose errors are independent add up to sqrt(16) of that in the worst case of every branch being as large as
// the sum.
TEST(CodedWeights, Int8ActivationsStayNearFp32OnTheDemoModel) {
  const Golden golden = demo_golden();
  RunSetup setup{.model = golden.model, .format = "pq5", .scale_search = true};
  const std::vector<float> fine = run_steps(setup, oracle_steps(golden));
  setup.options.activations = ActivationMode::int8;
  const double difference = relative_difference(fine, run_steps(setup, oracle_steps(golden)));
  RecordProperty("relative", std::to_string(difference));
  EXPECT_LT(difference, 4 * 2 * 0.0098);
  EXPECT_GT(difference, 0.0098 / 4);
}

// Mean negative log-likelihood of the first `count` windows of the golden file, each from position 0, all shifted tokens scored.
double windows_nll(Golden golden, const RunSetup& setup, int64_t count) {
  golden.windows.resize(static_cast<size_t>(count * golden.window));
  std::vector<Step> steps;
  for (auto window = golden.windows.begin(); window != golden.windows.end(); window += golden.window)
    for (Step& step : cut_steps({window, window + golden.window}, {setup.options.batch})) steps.push_back(std::move(step));
  const std::vector<float> logits = run_steps(setup, steps);
  const size_t vocab = logits.size() / golden.windows.size();
  double sum = 0;
  int64_t scored = 0;
  for (size_t i = 0; i + 1 < golden.windows.size(); ++i) {
    if ((i + 1) % static_cast<size_t>(golden.window) == 0) continue;
    const float* row = logits.data() + i * vocab;
    double exponentials = 1;
    for (size_t v = 1; v < vocab; ++v) exponentials += std::exp(static_cast<double>(row[v]) - row[0]);
    sum += std::log(exponentials) + row[0] - row[golden.windows[i + 1]];
    ++scored;
  }
  EXPECT_EQ(scored, count * (golden.window - 1));
  return sum / static_cast<double>(scored);
}

// A log-likelihood moves by at most twice what the logits move by.
TEST(Perplexity, MatchesTheOracleOnTheDemoModel) {
  const Golden golden = demo_golden();
  const double nll = windows_nll(golden, {.model = golden.model, .ranks = 2}, 8);
  EXPECT_EQ(8 * (golden.window - 1), std::stoll(golden.metadata.at("windows_scored")));
  RecordProperty("difference", std::to_string((nll - std::stod(golden.metadata.at("windows_nll"))) * 1e6) + "e-6");
  EXPECT_NEAR(nll, std::stod(golden.metadata.at("windows_nll")), 2 * 2e-4);
}

// Logits of standard deviation 2.3 that are off by 1.3 % are off by 0.03 each; over 4088 tokens that average out as independent
// ones do, the mean likelihood is off by 0.03 / sqrt(4088) = 5e-4. Twice that is allowed.
TEST(Perplexity, Int8ActivationsMoveItByLessThanAThousandth) {
  const Golden golden = demo_golden();
  RunSetup setup{.model = golden.model, .format = "pq5", .ranks = 2, .scale_search = true};
  const double fine = windows_nll(golden, setup, 8);
  setup.options.activations = ActivationMode::int8;
  const double coarse = windows_nll(golden, setup, 8);
  RecordProperty("relative", std::to_string(std::expm1(coarse - fine)));
  EXPECT_LT(std::abs(std::expm1(coarse - fine)), 1e-3);
}

}  // namespace
}  // namespace pq
