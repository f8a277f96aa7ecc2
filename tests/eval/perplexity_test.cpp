// Likelihoods and statistics against values made by hand, and the walk over windows against a model whose logits are a known
// function of everything it has seen.
#include "eval/perplexity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"

namespace pq {
namespace {

// Logits of token v after a prefix: a hash of the prefix and v, so that a wrong position, a lost state or a mixed-up row shows.
class FakeModel {
 public:
  explicit FakeModel(int64_t vocab) : vocab_(vocab) {}

  void run(const Step& step, const std::function<void(int64_t, const float*)>& consume) {
    ASSERT_EQ(step.spans.size(), 1u);
    const Span& span = step.spans[0];
    ASSERT_EQ(span.tokens, static_cast<int64_t>(step.tokens.size()));
    largest_step_ = std::max(largest_step_, span.tokens);
    if (span.position == 0) state_ = 1;
    ASSERT_EQ(span.position, span.position == 0 ? 0 : next_position_);
    size_t wanted = 0;
    for (int64_t row = 0; row < span.tokens; ++row) {
      state_ = state_ * 31 + static_cast<uint64_t>(step.tokens[static_cast<size_t>(row)]) + 7;
      if (wanted < step.logit_rows.size() && step.logit_rows[wanted] == row) {
        const std::vector<float> logits = row_logits(state_, vocab_);
        consume(static_cast<int64_t>(wanted++), logits.data());
      }
    }
    next_position_ = span.position + span.tokens;
  }

  static std::vector<float> row_logits(uint64_t state, int64_t vocab) {
    std::vector<float> logits;
    for (int64_t v = 0; v < vocab; ++v) {
      const uint64_t mixed = (state + static_cast<uint64_t>(v)) * 0x9e3779b97f4a7c15u;
      logits.push_back(static_cast<float>(mixed >> 40) * 0x1p-22f);
    }
    return logits;
  }

  int64_t largest_step() const { return largest_step_; }

 private:
  int64_t vocab_;
  uint64_t state_ = 1;
  int64_t next_position_ = 0;
  int64_t largest_step_ = 0;
};

std::vector<int32_t> some_tokens(int64_t count, int64_t vocab) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>((i * i + 3 * i + 1) % vocab));
  return tokens;
}

PerplexityResult measure(const std::vector<int32_t>& tokens, const std::vector<Window>& windows, int64_t vocab, int64_t batch,
                         FakeModel* model) {
  PerplexityOptions options;
  options.vocab = vocab;
  options.batch = batch;
  return measure_perplexity(tokens, windows, options,
                            [model](const Step& step, const auto& consume) { model->run(step, consume); });
}

TEST(NegativeLogLikelihood, MatchesASoftmaxByHand) {
  // exp(logits) = 1, 2, 5: probabilities 1/8, 2/8, 5/8. The logarithms are rounded to float, relative 2^-24 of at most 1.61, so the
  // likelihood may move by 2e-7.
  const float logits[] = {0.0f, std::log(2.0f), std::log(5.0f)};
  EXPECT_NEAR(negative_log_likelihood(logits, 3, 0), std::log(8.0), 2e-7);
  EXPECT_NEAR(negative_log_likelihood(logits, 3, 1), std::log(4.0), 2e-7);
  EXPECT_NEAR(negative_log_likelihood(logits, 3, 2), std::log(1.6), 2e-7);
  const float equal[] = {3.0f, 3.0f, 3.0f, 3.0f};
  EXPECT_DOUBLE_EQ(negative_log_likelihood(equal, 4, 2), std::log(4.0));
}

TEST(NegativeLogLikelihood, SurvivesExtremeLogits) {
  const float high[] = {30000.0f, 30001.0f};
  EXPECT_NEAR(negative_log_likelihood(high, 2, 1), std::log1p(std::exp(-1.0)), 1e-11);  // double spacing at 3e4 is 3.6e-12
  const float certain[] = {-1e30f, 0.0f};
  EXPECT_EQ(negative_log_likelihood(certain, 2, 1), 0.0);
  EXPECT_NEAR(negative_log_likelihood(certain, 2, 0), 1e30, 1e24);  // 1e30 in float
}

TEST(Statistics, MeanAndErrorByHand) {
  // Deviations of 1, 2, 3, 6 from 3: 4 + 1 + 0 + 9 = 14; variance 14 / 3; error sqrt(14 / 12).
  const MeanEstimate estimate = estimate_mean({1, 2, 3, 6});
  EXPECT_DOUBLE_EQ(estimate.mean, 3.0);
  EXPECT_DOUBLE_EQ(estimate.standard_error, std::sqrt(14.0 / 12.0));
  EXPECT_DOUBLE_EQ(estimate_mean({5}).mean, 5.0);
  EXPECT_TRUE(std::isnan(estimate_mean({5}).standard_error));
  EXPECT_TRUE(std::isnan(estimate_mean({}).mean));
}

TEST(Statistics, PairingRemovesTheCommonNoise) {
  const std::vector<double> base = {1, 9, 4, 2};
  const std::vector<double> candidate = {1.5, 9.25, 4.25, 2.0};
  const MeanEstimate difference = paired_difference(candidate, base);
  EXPECT_DOUBLE_EQ(difference.mean, 0.25);
  // Deviations 0.25, 0, 0, -0.25: variance 0.125 / 3, error sqrt(0.125 / 12).
  EXPECT_DOUBLE_EQ(difference.standard_error, std::sqrt(0.125 / 12.0));
  EXPECT_LT(difference.standard_error, estimate_mean(base).standard_error / 10);
  EXPECT_THROW(paired_difference({1}, {1, 2}), Error);
}

TEST(Perplexity, UniformModelHasThePerplexityOfItsVocabulary) {
  PerplexityOptions options;
  options.vocab = 50;
  options.batch = 7;
  const std::vector<float> zeros(50, 0.0f);
  const PerplexityResult result =
      measure_perplexity(some_tokens(40, 50), {{0, 20, 1}, {20, 20, 1}}, options, [&](const Step& step, const auto& consume) {
        for (size_t i = 0; i < step.logit_rows.size(); ++i) consume(static_cast<int64_t>(i), zeros.data());
      });
  EXPECT_NEAR(result.perplexity, 50.0, 1e-12);
  EXPECT_EQ(result.nll.size(), 38u);
  EXPECT_EQ(result.windows, 2);
  EXPECT_EQ(result.tokens_evaluated, 38);  // the last token of a window is only a target
  EXPECT_NEAR(result.by_token.standard_error, 0.0, 1e-14);
  EXPECT_NEAR(result.error_by_window, 0.0, 1e-14);
}

TEST(Perplexity, EachTokenIsScoredByItsOwnPrefixWhateverTheBatch) {
  constexpr int64_t kVocab = 11;
  const std::vector<int32_t> tokens = some_tokens(64, kVocab);
  const std::vector<Window> windows = {{0, 24, 1}, {8, 24, 13}, {40, 24, 23}};
  std::vector<double> expected;
  for (const Window& window : windows) {
    uint64_t state = 1;
    for (int64_t i = 0; i + 1 < window.length; ++i) {
      const size_t at = static_cast<size_t>(window.first_token + i);
      state = state * 31 + static_cast<uint64_t>(tokens[at]) + 7;
      if (i + 1 < window.first_scored) continue;
      const std::vector<float> logits = FakeModel::row_logits(state, kVocab);
      double sum = 0;
      for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
      expected.push_back(std::log(sum) - static_cast<double>(logits[static_cast<size_t>(tokens[at + 1])]));
    }
  }
  ASSERT_EQ(expected.size(), 23u + 11u + 1u);
  for (const int64_t batch : {1, 5, 23, 24, 1000}) {
    FakeModel model(kVocab);
    const PerplexityResult result = measure(tokens, windows, kVocab, batch, &model);
    EXPECT_LE(model.largest_step(), batch);
    ASSERT_EQ(result.nll.size(), expected.size());
    // Eleven terms of at most exp(4), a logarithm and a difference of values below 8: a few units of 2^-50.
    for (size_t i = 0; i < expected.size(); ++i)
      EXPECT_NEAR(result.nll[i], expected[i], 1e-14) << "batch " << batch << " token " << i;
  }
}

TEST(Perplexity, ErrorByWindowTakesWindowsAsSamples) {
  // Two tokens a window, each window constant: the window means 1 and 3 have standard error 1; by token it would be sqrt(1/3).
  PerplexityOptions options;
  options.vocab = 2;
  options.batch = 8;
  const auto logit = [](double nll) { return static_cast<float>(-std::log(std::expm1(nll))); };  // log(1 + exp(-x)) = nll
  const PerplexityResult result = measure_perplexity(std::vector<int32_t>(6, 0), {{0, 3, 1}, {3, 3, 1}}, options,
                                                     [&, window = 0](const Step& step, const auto& consume) mutable {
                                                       const float row[] = {window == 0 ? logit(1.0) : logit(3.0), 0.0f};
                                                       ++window;
                                                       for (size_t i = 0; i < step.logit_rows.size(); ++i)
                                                         consume(static_cast<int64_t>(i), row);
                                                     });
  // The float logit carries a relative 2^-24 of at most 3.
  EXPECT_NEAR(result.by_token.mean, 2.0, 1e-6);
  EXPECT_NEAR(result.error_by_window, 1.0, 1e-6);
  EXPECT_NEAR(result.by_token.standard_error, std::sqrt(1.0 / 3.0), 1e-6);
  EXPECT_NEAR(result.perplexity_error, result.perplexity * std::sqrt(1.0 / 3.0), 1e-5);
}

TEST(Perplexity, AllRowsAreHandedOverWhenAsked) {
  constexpr int64_t kVocab = 11;
  const std::vector<int32_t> tokens = some_tokens(20, kVocab);
  FakeModel model(kVocab);
  PerplexityOptions options;
  options.vocab = kVocab;
  options.batch = 4;
  options.all_rows = true;
  int64_t rows = 0;
  int64_t scored = 0;
  int64_t progress = 0;
  options.on_row = [&](const EvaluatedRow& row) {
    EXPECT_EQ(row.position, rows % 10);
    EXPECT_EQ(row.window, rows / 10);
    EXPECT_EQ(row.token, tokens[static_cast<size_t>(rows)]);
    EXPECT_EQ(row.scored, row.position + 1 >= 6 && row.position + 1 < 10);
    EXPECT_EQ(std::isnan(row.nll), !row.scored);
    ++rows;
    scored += row.scored;
  };
  options.progress = [&](int64_t done) { progress = done; };
  const PerplexityResult result = measure_perplexity(tokens, {{0, 10, 6}, {10, 10, 6}}, options,
                                                     [&](const Step& step, const auto& consume) { model.run(step, consume); });
  EXPECT_EQ(rows, 20);
  EXPECT_EQ(scored, 8);
  EXPECT_EQ(progress, 20);
  EXPECT_EQ(result.nll.size(), 8u);
}

TEST(Perplexity, RefusesForeignTokensAndBrokenLogits) {
  FakeModel model(11);
  try {
    measure({1, 2, 11, 3}, {{0, 4, 1}}, 11, 4, &model);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::input);
    EXPECT_NE(std::string(error.what()).find("id 11"), std::string::npos) << error.what();
  }
  PerplexityOptions options;
  options.vocab = 2;
  options.batch = 4;
  const float broken[] = {0.0f, std::numeric_limits<float>::quiet_NaN()};
  try {
    measure_perplexity({0, 0, 0}, {{0, 3, 1}}, options, [&](const Step&, const auto& consume) { consume(0, broken); });
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::internal);
    EXPECT_NE(std::string(error.what()).find("position 0 of window 0"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace pq
