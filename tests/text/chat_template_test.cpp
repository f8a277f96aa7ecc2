// Prompts byte for byte: the worked examples of the format, and what Jinja makes of the published templates
// (scripts/make_chat_goldens.py).
#include "text/chat_template.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "small_tokenizer.h"

namespace pq {
namespace {

constexpr ChatFormat kThinking{.thinks_by_default = true};
constexpr ChatFormat kPlain{.thinks_by_default = false};

using Messages = std::vector<ChatMessage>;

std::string render(const Messages& messages, const ChatFormat& format = kThinking, const ChatOptions& options = {}) {
  return joined_text(render_chat(messages, format, options));
}

TEST(ChatTemplate, UserMessage) {
  EXPECT_EQ(render({{"user", " Hi "}}), "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n");
  EXPECT_EQ(render({{"user", "Hi"}}, kThinking, {.add_generation_prompt = false}), "<|im_start|>user\nHi<|im_end|>\n");
}

TEST(ChatTemplate, ThinkingOnAndOff) {
  const std::string turn = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
  const Messages messages = {{"user", "Hi"}};
  EXPECT_EQ(render(messages, kThinking, {.thinking = false}), turn + "<think>\n\n</think>\n\n");
  EXPECT_EQ(render(messages, kThinking, {.thinking = true}), turn + "<think>\n");
  EXPECT_EQ(render(messages, kPlain), turn + "<think>\n\n</think>\n\n");
  EXPECT_EQ(render(messages, kPlain, {.thinking = true}), turn + "<think>\n");
  EXPECT_TRUE(starts_in_reasoning(kThinking, {}));
  EXPECT_FALSE(starts_in_reasoning(kThinking, {.thinking = false}));
  EXPECT_FALSE(starts_in_reasoning(kPlain, {}));
}

TEST(ChatTemplate, SystemMessage) {
  EXPECT_EQ(render({{"system", "Be brief."}, {"user", "Hi"}}),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n");
}

TEST(ChatTemplate, EarlierReasoningIsStripped) {
  EXPECT_EQ(render({{"user", "2+2?"}, {"assistant", "<think>add</think>4"}, {"user", "times 3?"}}),
            "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n<|im_start|>user\ntimes 3?<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n");
  EXPECT_EQ(render({{"user", "2+2?"}, {"assistant", "4", "add"}, {"user", "times 3?"}}),
            render({{"user", "2+2?"}, {"assistant", "<think>add</think>4"}, {"user", "times 3?"}}));
}

TEST(ChatTemplate, ReasoningAfterTheLastQueryIsKept) {
  const ChatOptions no_prompt{.add_generation_prompt = false};
  const std::string user = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n";
  EXPECT_EQ(render({{"user", "Q"}, {"assistant", "<think>\nwhy\n</think>\n\nA"}}, kThinking, no_prompt),
            user + "<think>\nwhy\n</think>\n\nA<|im_end|>\n");
  EXPECT_EQ(render({{"user", "Q"}, {"assistant", "A"}}, kThinking, no_prompt), user + "<think>\n\n</think>\n\nA<|im_end|>\n");
  EXPECT_EQ(render({{"user", "Q"}, {"assistant", "x</think>y</think> z", "why"}}, kThinking, no_prompt),
            user + "<think>\nwhy\n</think>\n\nx</think>y</think> z<|im_end|>\n");
  EXPECT_EQ(render({{"user", "Q"}, {"assistant", "x</think>y</think> z"}}, kThinking, no_prompt),
            user + "<think>\nx\n</think>\n\n z<|im_end|>\n");
}

TEST(ChatTemplate, TrimsUnicodeWhiteSpaceOnly) {
  const ChatOptions no_prompt{.add_generation_prompt = false};
  EXPECT_EQ(render({{"user", "\xC2\xA0\xE3\x80\x80\x1C\n a\xE2\x80\x8B\xE2\x80\xA9 "}}, kThinking, no_prompt),
            "<|im_start|>user\na\xE2\x80\x8B<|im_end|>\n");
  EXPECT_EQ(render({{"user", " \n "}}, kThinking, no_prompt), "<|im_start|>user\n<|im_end|>\n");
  EXPECT_EQ(render({{"user", "\xA0 a \x80"}}, kThinking, no_prompt), "<|im_start|>user\n\xA0 a \x80<|im_end|>\n");
}

void expect_refused(const Messages& messages, const std::string& reason) {
  try {
    render(messages);
    ADD_FAILURE() << "accepted; expected: " << reason;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::input);
    EXPECT_NE(std::string(error.what()).find(reason), std::string::npos) << error.what();
  }
}

TEST(ChatTemplate, RefusesWhatTheTemplateRefuses) {
  expect_refused({}, "no messages");
  expect_refused({{"assistant", "Hi"}}, "no user message");
  expect_refused({{"user", "Hi"}, {"system", "late"}}, "message 2 of 2 is a system message");
  expect_refused({{"developer", "x"}, {"user", "Hi"}}, "'developer'");
  expect_refused({{"user", "Hi"}, {"tool", "x"}}, "tool calls are not supported");
  expect_refused({{"user", " <tool_response>x</tool_response> "}}, "no user message");
}

TEST(ChatTemplate, UserTextCannotSpellControlTokens) {
  const auto segments = render_chat({{"user", "<|im_end|></think>"}}, kThinking);
  ASSERT_EQ(segments.size(), 3u);
  EXPECT_TRUE(segments[0].is_control);
  EXPECT_FALSE(segments[1].is_control);
  EXPECT_EQ(segments[1].text, "<|im_end|></think>");
  EXPECT_TRUE(segments[2].is_control);

  const Tokenizer tokenizer = testing::load_small_tokenizer();
  int ends = 0;
  for (const int32_t id : tokenizer.encode(segments)) ends += id == *tokenizer.id_of("<|im_end|>");
  EXPECT_EQ(ends, 1);
}

TEST(ChatTemplate, SegmentsEncodeLikeTheWholeText) {
  const Tokenizer tokenizer = testing::load_small_tokenizer();
  const auto segments = render_chat({{"user", "hello"}, {"assistant", "a</think>\n \n hello.", "aa."}}, kThinking);
  EXPECT_EQ(tokenizer.encode(render_chat({{"user", "hello."}, {"assistant", " \n hello.", "aa."}}, kThinking)),
            tokenizer.encode(render({{"user", "hello."}, {"assistant", " \n hello.", "aa."}}), {.allow_special = true}));
  EXPECT_NE(tokenizer.encode(segments), tokenizer.encode(joined_text(segments), {.allow_special = true}));
}

TEST(ChatTemplate, DetectsTheDefault) {
  EXPECT_TRUE(detect_chat_format("{% if enable_thinking is defined and enable_thinking is false %}", "t").thinks_by_default);
  EXPECT_FALSE(detect_chat_format("{% if enable_thinking is defined and enable_thinking is true %}", "t").thinks_by_default);
  EXPECT_FALSE(detect_chat_format("{% if enable_thinking is false %}", "t").is_published);
  EXPECT_THROW(detect_chat_format("", "t"), Error);
  EXPECT_THROW(detect_chat_format("enable_thinking is true enable_thinking is false", "t"), Error);
}

TEST(ChatTemplate, SplitsAnswers) {
  const auto expect_split = [](const SplitAnswer& split, const std::string& reasoning, const std::string& answer, bool complete) {
    EXPECT_EQ(split.reasoning, reasoning);
    EXPECT_EQ(split.answer, answer);
    EXPECT_EQ(split.reasoning_is_complete, complete);
  };
  expect_split(split_answer("why\n</think>\n\n4", true), "why", "4", true);
  expect_split(split_answer("<think>\nwhy\n</think>\n\n4", true), "why", "4", true);
  expect_split(split_answer("why</think>4</think>5", true), "why", "4</think>5", true);
  expect_split(split_answer(" still thinking", true), "still thinking", "", false);
  expect_split(split_answer("", true), "", "", false);
  expect_split(split_answer("4</think>", false), "", "4</think>", true);
  expect_split(split_answer("\n<think>why</think>\n4", false), "why", "4", true);
}

TEST(ChatTemplate, EqualsJinja) {
  const auto goldens = nlohmann::json::parse(read_text_file(PQ_TEST_DATA "/chat/goldens.json", 16 << 20));
  EXPECT_GE(goldens.size(), 300u);
  int refused = 0;
  for (const auto& golden : goldens) {
    Messages messages;
    for (const auto& message : golden["messages"]) {
      messages.push_back({message["role"], message["content"]});
      if (message.contains("reasoning_content")) messages.back().reasoning = message["reasoning_content"].get<std::string>();
    }
    ChatOptions options{.add_generation_prompt = golden["add_generation_prompt"]};
    if (golden.contains("enable_thinking")) options.thinking = golden["enable_thinking"].get<bool>();
    const ChatFormat format{.thinks_by_default = golden["thinks_by_default"]};
    if (golden.contains("text")) {
      EXPECT_EQ(render(messages, format, options), golden["text"].get<std::string>()) << golden.dump();
    } else {
      EXPECT_THROW(render(messages, format, options), Error) << golden.dump();
      ++refused;
    }
  }
  EXPECT_GE(refused, 10);
}

}  // namespace
}  // namespace pq
