// The sampler against distributions worked out by hand, and its draws against their expected counts.
#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "base/error.h"

namespace pq {
namespace {

// Probabilities 0.4, 0.3, 0.2, 0.1 of tokens 2, 0, 3, 1; the logits carry an arbitrary constant.
std::vector<float> four_logits() {
  std::vector<float> logits;
  for (const double p : {0.3, 0.1, 0.4, 0.2}) logits.push_back(static_cast<float>(std::log(p) + 5));
  return logits;
}

std::map<int32_t, double> probabilities(const SamplingOptions& options, const std::vector<float>& logits,
                                        const std::vector<int32_t>& sequence = {}) {
  Sampler sampler(options, static_cast<int64_t>(logits.size()));
  std::map<int32_t, double> result;
  double sum = 0;
  for (const Candidate& candidate : sampler.distribution(logits.data(), sequence)) {
    result[candidate.id] = candidate.probability;
    sum += candidate.probability;
  }
  EXPECT_NEAR(sum, 1, 1e-12);
  return result;
}

// The logits are rounded to fp32: relative error 2^-24 * 6 in the exponent.
constexpr double kRounding = 1e-6;

void expect_distribution(const std::map<int32_t, double>& actual, const std::map<int32_t, double>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (const auto& [id, probability] : expected) {
    ASSERT_TRUE(actual.count(id)) << "token " << id;
    EXPECT_NEAR(actual.at(id), probability, kRounding) << "token " << id;
  }
}

TEST(Sampler, PlainTemperatureOne) {
  expect_distribution(probabilities({.temperature = 1}, four_logits()), {{0, 0.3}, {1, 0.1}, {2, 0.4}, {3, 0.2}});
}

TEST(Sampler, TemperatureOneHalfSquaresProbabilities) {
  // 9, 1, 16, 4 over 30.
  expect_distribution(probabilities({.temperature = 0.5}, four_logits()),
                      {{0, 9 / 30.}, {1, 1 / 30.}, {2, 16 / 30.}, {3, 4 / 30.}});
}

TEST(Sampler, TopK) {
  expect_distribution(probabilities({.temperature = 1, .top_k = 2}, four_logits()), {{0, 3 / 7.}, {2, 4 / 7.}});
  EXPECT_EQ(probabilities({.temperature = 1, .top_k = 9}, four_logits()).size(), 4u);
}

TEST(Sampler, TopPKeepsTheTokenThatReachesIt) {
  // 0.4 + 0.3 reaches 0.6; 0.4 alone reaches 0.39.
  expect_distribution(probabilities({.temperature = 1, .top_p = 0.6}, four_logits()), {{0, 3 / 7.}, {2, 4 / 7.}});
  expect_distribution(probabilities({.temperature = 1, .top_p = 0.39}, four_logits()), {{2, 1}});
  expect_distribution(probabilities({.temperature = 1, .top_p = 0.71}, four_logits()), {{0, 3 / 9.}, {2, 4 / 9.}, {3, 2 / 9.}});
}

TEST(Sampler, MinP) {
  // The limit is 0.6 * 0.4 = 0.24.
  expect_distribution(probabilities({.temperature = 1, .min_p = 0.6}, four_logits()), {{0, 3 / 7.}, {2, 4 / 7.}});
}

TEST(Sampler, TopPCountsAfterTopK) {
  // After top-k 3: 4/9, 3/9, 2/9; 4/9 + 3/9 = 0.78 reaches 0.75, which 0.4 + 0.3 of the whole would not.
  expect_distribution(probabilities({.temperature = 1, .top_k = 3, .top_p = 0.75}, four_logits()), {{0, 3 / 7.}, {2, 4 / 7.}});
}

TEST(Sampler, TemperatureComesBeforeTopP) {
  // At temperature 1/2 token 2 alone has 16/30 = 0.533, so top-p 0.5 leaves it alone; at 1 it would need token 0 as well.
  expect_distribution(probabilities({.temperature = 0.5, .top_p = 0.5}, four_logits()), {{2, 1}});
  EXPECT_EQ(probabilities({.temperature = 1, .top_p = 0.5}, four_logits()).size(), 2u);
}

TEST(Sampler, TemperatureComesBeforeMinP) {
  // Ratios to the greatest at temperature 1/2: 0.5625, 0.0625, 1, 0.25; at temperature 1: 0.75, 0.25, 1, 0.5.
  EXPECT_EQ(probabilities({.temperature = 0.5, .min_p = 0.3}, four_logits()).size(), 2u);
  EXPECT_EQ(probabilities({.temperature = 1, .min_p = 0.3}, four_logits()).size(), 3u);
}

TEST(Sampler, RepeatPenaltyDividesPositiveAndMultipliesNegativeLogits) {
  // Logits 2, -1, 0, 1 with penalty 2 on tokens 0 and 1: 1, -2, 0, 1.
  const double sum = std::exp(1) + std::exp(-2) + 1 + std::exp(1);
  expect_distribution(probabilities({.temperature = 1, .repeat_penalty = 2}, {2, -1, 0, 1}, {0, 1, 0}),
                      {{0, std::exp(1) / sum}, {1, std::exp(-2) / sum}, {2, 1 / sum}, {3, std::exp(1) / sum}});
}

TEST(Sampler, PresenceAndFrequency) {
  // Token 0 occurs twice, token 1 once: logits 0 - 0.5 - 2 * 0.25, 0 - 0.5 - 0.25, 0, 0.
  const double sum = std::exp(-1) + std::exp(-0.75) + 2;
  expect_distribution(
      probabilities({.temperature = 1, .presence_penalty = 0.5, .frequency_penalty = 0.25}, {0, 0, 0, 0}, {0, 1, 0}),
      {{0, std::exp(-1) / sum}, {1, std::exp(-0.75) / sum}, {2, 1 / sum}, {3, 1 / sum}});
}

TEST(Sampler, PenaltiesSeeTheWindowOnly) {
  const std::vector<float> logits = {0, 0};
  const SamplingOptions last_one{.temperature = 1, .presence_penalty = 50, .penalty_last_n = 1};
  EXPECT_NEAR(probabilities(last_one, logits, {0, 1}).at(0), 1, kRounding);
  const SamplingOptions none{.temperature = 1, .presence_penalty = 50, .penalty_last_n = 0};
  EXPECT_NEAR(probabilities(none, logits, {0, 1}).at(0), 0.5, kRounding);
  const SamplingOptions all{.temperature = 1, .presence_penalty = 50, .penalty_last_n = -1};
  EXPECT_NEAR(probabilities(all, logits, std::vector<int32_t>(1000, 0)).at(0), std::exp(-50), 1e-25);
}

TEST(Sampler, GreedyTakesTheLowestOfEqualIds) {
  Sampler sampler({}, 4);
  const std::vector<float> logits = {1, 3, 3, 2};
  EXPECT_EQ(sampler.sample(logits.data(), {}), 1);
}

TEST(Sampler, GreedyAppliesPenalties) {
  Sampler sampler({.repeat_penalty = 2}, 3);
  const std::vector<float> logits = {3, 2, 1};
  EXPECT_EQ(sampler.sample(logits.data(), {}), 0);
  EXPECT_EQ(sampler.sample(logits.data(), {0}), 1);
}

TEST(Sampler, TopKTiesGoToTheLowestId) {
  const auto kept = probabilities({.temperature = 1, .top_k = 2}, {1, 2, 1, 1});
  expect_distribution(kept, {{0, 1 / (1 + std::exp(1))}, {1, std::exp(1) / (1 + std::exp(1))}});
}

TEST(Sampler, PaddingRowsAreNeverChosen) {
  std::vector<float> logits(8, 0);
  logits[6] = 100;
  logits[7] = std::numeric_limits<float>::quiet_NaN();
  Sampler greedy({}, 6);
  EXPECT_EQ(greedy.sample(logits.data(), {}), 0);
  Sampler hot({.temperature = 5}, 6);
  for (int i = 0; i < 200; ++i) EXPECT_LT(hot.sample(logits.data(), {7, 6}), 6);
}

TEST(Sampler, BrokenLogitsAreReported) {
  Sampler sampler({.temperature = 1}, 3);
  const float infinity = std::numeric_limits<float>::infinity();
  for (const std::vector<float>& logits : {std::vector<float>{0, NAN, 0}, {0, infinity, 0}, {-infinity, -infinity, -infinity}}) {
    try {
      sampler.sample(logits.data(), {});
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::internal);
    }
  }
  const std::vector<float> masked = {-infinity, 1, -infinity};
  EXPECT_EQ(sampler.sample(masked.data(), {}), 1);
}

TEST(Sampler, DrawsFollowTheDistribution) {
  constexpr int kDraws = 100000;
  const std::vector<double> expected = {0.3, 0.1, 0.4, 0.2};
  const std::vector<float> logits = four_logits();
  Sampler sampler({.temperature = 1, .seed = 11}, 4);
  std::vector<int> counts(4);
  for (int i = 0; i < kDraws; ++i) ++counts[static_cast<size_t>(sampler.sample(logits.data(), {}))];
  double chi_squared = 0;
  for (size_t id = 0; id < 4; ++id) {
    const double mean = kDraws * expected[id];
    chi_squared += (counts[id] - mean) * (counts[id] - mean) / mean;
  }
  // 3 degrees of freedom: 21.1 is exceeded with probability 1e-4; the seed is fixed, so the outcome is too.
  EXPECT_LT(chi_squared, 21.1);
}

TEST(Sampler, SameSeedSameTokens) {
  const std::vector<float> logits = four_logits();
  const SamplingOptions options{.temperature = 1, .top_k = 4, .seed = 3};
  Sampler a(options, 4), b(options, 4), c({.temperature = 1, .top_k = 4, .seed = 4}, 4);
  int differences = 0;
  for (int i = 0; i < 200; ++i) {
    const int32_t token = a.sample(logits.data(), {});
    EXPECT_EQ(token, b.sample(logits.data(), {}));
    differences += token != c.sample(logits.data(), {});
  }
  EXPECT_GT(differences, 50);
}

// A vocabulary larger than what is sorted at first, with a flat distribution: half of it reaches top-p 1/2.
TEST(Sampler, TopPOverManyTokens) {
  std::vector<float> logits(10000, 0);
  const auto kept = probabilities({.temperature = 1, .top_p = 0.5}, logits);
  EXPECT_EQ(kept.size(), 5000u);
  EXPECT_EQ(kept.begin()->first, 0);
  EXPECT_EQ(kept.rbegin()->first, 4999);
}

TEST(Sampler, OptionsOutOfRangeAreRefused) {
  for (const SamplingOptions& options :
       {SamplingOptions{.temperature = -1}, SamplingOptions{.temperature = NAN}, SamplingOptions{.top_k = -1},
        SamplingOptions{.top_p = 0}, SamplingOptions{.top_p = 1.01}, SamplingOptions{.min_p = 1}, SamplingOptions{.min_p = -0.1},
        SamplingOptions{.repeat_penalty = 0}, SamplingOptions{.presence_penalty = NAN}, SamplingOptions{.penalty_last_n = -2}}) {
    try {
      check(options);
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::usage);
      EXPECT_EQ(std::string(error.what()).rfind("--", 0), 0u) << error.what();
    }
  }
}

}  // namespace
}  // namespace pq
