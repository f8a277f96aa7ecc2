// The generator against a model that records its steps and whose next token is a known function of the sequence.
#include "engine/generator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/error.h"

namespace pq {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr int64_t kVocab = 50;

// After tokens t_0 .. t_p the most likely token is (sum of i-th token * (i + 1)) mod kVocab, so a token that is lost, repeated or
// moved changes everything after it.
class FakeModel {
 public:
  void run(const Step& step, const std::function<void(int64_t, const float*)>& consume) {
    if (fail_at_ >= 0 && static_cast<int64_t>(steps_.size()) == fail_at_) throw Error(ErrorKind::internal, "the model broke");
    steps_.push_back(step);
    ASSERT_EQ(step.spans.size(), 1u);
    const Span span = step.spans[0];
    ASSERT_EQ(span.row, 0);
    ASSERT_EQ(span.slot, 0);
    ASSERT_EQ(span.tokens, static_cast<int64_t>(step.tokens.size()));
    if (span.position == 0) sequence_.clear();
    ASSERT_EQ(span.position, static_cast<int64_t>(sequence_.size()));
    size_t wanted = 0;
    for (int64_t row = 0; row < span.tokens; ++row) {
      sequence_.push_back(step.tokens[static_cast<size_t>(row)]);
      if (wanted == step.logit_rows.size() || step.logit_rows[wanted] != row) continue;
      ++wanted;
      std::vector<float> logits(kVocab, 0);
      logits[static_cast<size_t>(next(sequence_))] = 10;
      consume(row, logits.data());
    }
    ASSERT_EQ(wanted, step.logit_rows.size());
  }

  static int32_t next(const std::vector<int32_t>& sequence) {
    int64_t sum = 0;
    for (size_t i = 0; i < sequence.size(); ++i) sum += sequence[i] * static_cast<int64_t>(i + 1);
    return static_cast<int32_t>(sum % kVocab);
  }

  StepRunner runner() {
    return [this](const Step& step, const std::function<void(int64_t, const float*)>& consume) { run(step, consume); };
  }

  std::vector<Step> steps_;
  std::vector<int32_t> sequence_;
  int64_t fail_at_ = -1;
};

std::vector<int32_t> expected_tokens(std::vector<int32_t> sequence, int count) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; ++i) {
    tokens.push_back(FakeModel::next(sequence));
    sequence.push_back(tokens.back());
  }
  return tokens;
}

class GeneratorTest : public testing::Test {
 protected:
  GenerationResult generate(const GenerationRequest& request) { return generator.generate(request, sampler); }
  std::vector<int64_t> step_positions() const {
    std::vector<int64_t> positions;
    for (const Step& step : model.steps_) positions.push_back(step.spans[0].position);
    return positions;
  }

  FakeModel model;
  Generator generator{model.runner(), {.context = 20, .batch = 4}, kVocab};
  Sampler sampler{{}, kVocab};
};

const std::vector<int32_t> kPrompt = {3, 1, 4, 1, 5, 9, 2, 6, 5};

TEST_F(GeneratorTest, PrefillsInChunksAndDecodesTokenByToken) {
  const auto result = generate({.prompt = kPrompt, .max_tokens = 4});
  EXPECT_EQ(result.tokens, expected_tokens(kPrompt, 4));
  EXPECT_EQ(result.reason, StopReason::max_tokens);
  EXPECT_EQ(result.prefill_tokens, 9);
  // The last token is not run: nothing needs its logits.
  EXPECT_EQ(result.decode_tokens, 3);
  EXPECT_THAT(step_positions(), ElementsAre(0, 4, 8, 9, 10, 11));
  EXPECT_EQ(generator.held().size(), 12u);
}

TEST_F(GeneratorTest, ZeroTokensPrefillsOnly) {
  const auto result = generate({.prompt = kPrompt, .max_tokens = 0});
  EXPECT_TRUE(result.tokens.empty());
  EXPECT_EQ(model.sequence_, kPrompt);
  EXPECT_EQ(result.decode_tokens, 0);
}

TEST_F(GeneratorTest, StopTokensEndAndAreNotHandedOut) {
  const auto free = expected_tokens(kPrompt, 6);
  // The first token of the run that has not occurred before index 2, so that it stops there and not earlier.
  ASSERT_NE(free[0], free[2]);
  ASSERT_NE(free[1], free[2]);
  std::vector<int32_t> seen;
  const auto result = generate({.prompt = kPrompt,
                                .max_tokens = 6,
                                .stop_ids = {kVocab, free[2]},
                                .on_token =
                                    [&](int32_t id) {
                                      seen.push_back(id);
                                      return true;
                                    },
                                .on_logits = {}});
  EXPECT_EQ(result.reason, StopReason::stop_token);
  EXPECT_THAT(result.tokens, ElementsAre(free[0], free[1]));
  EXPECT_EQ(seen, result.tokens);
}

TEST_F(GeneratorTest, TheCallerMayInterrupt) {
  int calls = 0;
  const auto result = generate({.prompt = kPrompt, .max_tokens = 6, .on_token = [&](int32_t) { return ++calls < 2; }});
  EXPECT_EQ(result.reason, StopReason::interrupted);
  EXPECT_EQ(result.tokens.size(), 2u);
}

TEST_F(GeneratorTest, StopsWhenTheContextIsFull) {
  const auto result = generate({.prompt = kPrompt});
  EXPECT_EQ(result.reason, StopReason::context_full);
  // 20 positions can be run and the last one still predicts a token.
  EXPECT_EQ(result.tokens, expected_tokens(kPrompt, 12));
  EXPECT_EQ(generator.held().size(), 20u);
}

TEST_F(GeneratorTest, APromptAsLongAsTheContextYieldsOneToken) {
  const std::vector<int32_t> prompt(20, 7);
  const auto result = generate({.prompt = prompt});
  EXPECT_EQ(result.tokens, expected_tokens(prompt, 1));
  EXPECT_EQ(result.reason, StopReason::context_full);
}

TEST_F(GeneratorTest, ImpossiblePromptsAreRefused) {
  for (const std::vector<int32_t>& prompt : {std::vector<int32_t>(), std::vector<int32_t>(21, 7)}) {
    try {
      generate({.prompt = prompt});
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::usage);
      if (!prompt.empty()) {
        EXPECT_THAT(error.what(), HasSubstr("21 tokens"));
        EXPECT_THAT(error.what(), HasSubstr("holds 20"));
      }
    }
  }
  EXPECT_TRUE(model.steps_.empty());
}

TEST_F(GeneratorTest, ContinuesTheSequenceItHolds) {
  const auto first = generate({.prompt = kPrompt, .max_tokens = 3});
  std::vector<int32_t> prompt = kPrompt;
  prompt.insert(prompt.end(), first.tokens.begin(), first.tokens.end());
  prompt.push_back(11);
  model.steps_.clear();
  const auto second = generate({.prompt = prompt, .max_tokens = 2});
  EXPECT_EQ(second.tokens, expected_tokens(prompt, 2));
  // Two of the three generated tokens had been run.
  EXPECT_EQ(second.reused_tokens, 11);
  EXPECT_EQ(second.prefill_tokens, 2);
  // A chunk ends at position 12, a multiple of the batch.
  EXPECT_THAT(step_positions(), ElementsAre(11, 12, 13));
}

TEST_F(GeneratorTest, ADifferentOrEqualPromptStartsAnew) {
  for (const std::vector<int32_t>& prompt :
       {std::vector<int32_t>{3, 1, 4, 2, 5, 9, 2, 6, 5, 8, 8}, kPrompt, std::vector<int32_t>{3}}) {
    generate({.prompt = kPrompt, .max_tokens = 0});
    model.steps_.clear();
    const auto result = generate({.prompt = prompt, .max_tokens = 2});
    EXPECT_EQ(result.reused_tokens, 0);
    EXPECT_EQ(step_positions().front(), 0);
    EXPECT_EQ(result.tokens, expected_tokens(prompt, 2));
  }
}

TEST_F(GeneratorTest, NothingIsHeldAfterAFailure) {
  generate({.prompt = kPrompt, .max_tokens = 0});
  model.fail_at_ = static_cast<int64_t>(model.steps_.size()) + 1;
  std::vector<int32_t> prompt = kPrompt;
  prompt.insert(prompt.end(), 8, 1);
  EXPECT_THROW(generate({.prompt = prompt}), Error);
  EXPECT_TRUE(generator.held().empty());
}

TEST_F(GeneratorTest, LogitsOfEveryPositionAreSeenWhenAsked) {
  std::vector<int64_t> positions;
  generate({.prompt = kPrompt, .max_tokens = 3, .on_token = {}, .on_logits = [&](int64_t position, const float* logits) {
              positions.push_back(position);
              const std::vector<int32_t> sequence(model.sequence_.begin(), model.sequence_.begin() + position + 1);
              EXPECT_EQ(logits[FakeModel::next(sequence)], 10);
            }});
  ASSERT_EQ(positions.size(), 11u);
  for (size_t i = 0; i < positions.size(); ++i) EXPECT_EQ(positions[i], static_cast<int64_t>(i));
}

// A stop is asked for between steps: in the middle of a prompt what has run stays held and the next call goes on from there.
TEST_F(GeneratorTest, StopsBetweenSteps) {
  int asked = 0;
  GenerationRequest request{.prompt = kPrompt, .max_tokens = 5};
  request.should_stop = [&] { return ++asked == 3; };  // before the prompt and after each chunk
  const auto stopped = generate(request);
  EXPECT_EQ(stopped.reason, StopReason::interrupted);
  EXPECT_TRUE(stopped.tokens.empty());
  EXPECT_EQ(stopped.prefill_tokens, 8);
  EXPECT_EQ(generator.held().size(), 8u);

  request.should_stop = nullptr;
  const auto whole = generate(request);
  EXPECT_EQ(whole.reused_tokens, 8);
  EXPECT_EQ(whole.tokens, expected_tokens(kPrompt, 5));

  asked = 0;
  request.should_stop = [&] { return ++asked == 7; };  // four times in the prompt, then after each token
  const auto cut = generate(request);
  EXPECT_EQ(cut.reason, StopReason::interrupted);
  EXPECT_EQ(cut.tokens, expected_tokens(kPrompt, 3));
}

}  // namespace
}  // namespace pq
