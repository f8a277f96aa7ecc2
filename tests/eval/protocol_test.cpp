// Windows of the named protocols against counts made by hand, at the edges where one token more or less decides.
#include "eval/protocol.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/error.h"

namespace pq {
namespace {

std::vector<Window> windows_of(const std::string& name, int64_t tokens, int64_t window = 0, int64_t max_windows = 0) {
  return make_windows(make_protocol(name, window, max_windows), tokens);
}

int64_t scored(const std::vector<Window>& windows) {
  int64_t total = 0;
  for (const Window& window : windows) total += window.scored();
  return total;
}

void expect_refused(const std::string& name, int64_t tokens, const std::string& needed) {
  try {
    windows_of(name, tokens);
    FAIL() << name << " accepted " << tokens << " tokens";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::input);
    const std::string message = error.what();
    EXPECT_NE(message.find(std::to_string(tokens) + " tokens"), std::string::npos) << message;
    EXPECT_NE(message.find("at least " + needed), std::string::npos) << message;
  }
}

TEST(Protocol, GptqDropsTheRemainder) {
  const std::vector<Window> windows = windows_of("gptq-2048", 2048 * 3 - 1);
  ASSERT_EQ(windows.size(), 2u);
  EXPECT_EQ(windows[1].first_token, 2048);
  EXPECT_EQ(windows[1].length, 2048);
  EXPECT_EQ(windows[1].first_scored, 1);
  EXPECT_EQ(windows[1].scored(), 2047);
  EXPECT_EQ(windows_of("gptq-2048", 2048 * 3).size(), 3u);
  EXPECT_EQ(windows_of("gptq-2048", 2048).size(), 1u);
  expect_refused("gptq-2048", 2047, "2048");
  expect_refused("gptq-2048", 0, "2048");
}

// llama-perplexity takes predictors n_ctx / 2 up to n_ctx - 2: 256..510, whose targets are 257..511.
TEST(Protocol, LlamacppScoresTheSecondHalf) {
  const std::vector<Window> windows = windows_of("llamacpp-512", 1025);
  ASSERT_EQ(windows.size(), 2u);
  EXPECT_EQ(windows[1].first_token, 512);
  EXPECT_EQ(windows[1].first_scored, 257);
  EXPECT_EQ(windows[1].scored(), 255);
  EXPECT_EQ(windows_of("llamacpp-4096", 4096)[0].first_scored, 2049);
  EXPECT_EQ(windows_of("llamacpp-4096", 4096)[0].scored(), 2047);
  expect_refused("llamacpp-512", 511, "512");
}

// The guide's loop over 4000 tokens with max_length 2048, stride 512 runs begin = 0, 512, ..., 2048 with
// trg_len = 2048, 512, 512, 512, 416; the first label of the first window has no predictor.
TEST(Protocol, HfStrideScoresEveryTokenButTheFirstOnce) {
  const std::vector<Window> windows = windows_of("hf-stride-512", 4000);
  ASSERT_EQ(windows.size(), 5u);
  EXPECT_EQ(windows[0].scored(), 2047);
  EXPECT_EQ(windows[1].first_scored, 1536);
  EXPECT_EQ(windows[4].first_token, 2048);
  EXPECT_EQ(windows[4].length, 1952);
  EXPECT_EQ(windows[4].scored(), 416);
  EXPECT_EQ(scored(windows), 3999);
  for (const int64_t tokens : {2, 511, 512, 513, 2047, 2048, 2049, 2560, 2561, 5000}) {
    int64_t next = 1;
    for (const Window& window : windows_of("hf-stride-512", tokens)) {
      EXPECT_EQ(window.first_token + window.first_scored, next);
      EXPECT_LE(window.length, 2048);
      next = window.first_token + window.length;
    }
    EXPECT_EQ(next, tokens);
  }
  EXPECT_EQ(windows_of("hf-stride-512", 700, 513).size(), 2u);
  EXPECT_EQ(scored(windows_of("hf-stride-512", 700, 513)), 699);
  expect_refused("hf-stride-512", 1, "2");
}

// The authors' loop: for i in range(0, min(n - 2048, 15000), 512), labels below 1536 masked.
TEST(Protocol, PolarQuantFollowsTheAuthorsLoop) {
  const auto count = [](int64_t tokens) {
    int64_t windows = 0;
    for (int64_t i = 0; i < std::min<int64_t>(tokens - 2048, 15000); i += 512) ++windows;
    return windows;
  };
  for (const int64_t tokens : {2049, 2560, 2561, 3000, 16896, 16897, 17048, 17049, 40000})
    EXPECT_EQ(static_cast<int64_t>(windows_of("polarquant", tokens).size()), count(tokens)) << tokens;
  const std::vector<Window> windows = windows_of("polarquant", 40000);
  EXPECT_EQ(windows.size(), 30u);
  EXPECT_EQ(scored(windows), 15360);
  EXPECT_EQ(windows[29].first_token, 14848);
  EXPECT_EQ(windows[29].first_scored, 1536);
  expect_refused("polarquant", 2048, "2049");
}

TEST(Protocol, PolarQuantCutsTheTextByCharacters) {
  const Protocol protocol = make_protocol("polarquant", 0, 0);
  std::string text;
  for (int i = 0; i < 150001; ++i) text += "é";
  EXPECT_EQ(protocol_text(protocol, text).size(), 300000u);
  text.resize(300000);
  EXPECT_EQ(protocol_text(protocol, text).size(), 300000u);
  EXPECT_EQ(protocol_text(protocol, "abc"), "abc");
  EXPECT_EQ(protocol_text(make_protocol("gptq-2048", 0, 0), text).size(), text.size());
}

TEST(Protocol, TheNameCarriesEveryOverride) {
  EXPECT_EQ(make_protocol("gptq-2048", 0, 0).name, "gptq-2048");
  EXPECT_EQ(make_protocol("gptq-2048", 2048, 0).name, "gptq-2048");
  EXPECT_EQ(make_protocol("gptq-2048", 512, 0).name, "gptq-2048 (window 512)");
  EXPECT_EQ(make_protocol("gptq-2048", 0, 8).name, "gptq-2048 (at most 8 windows)");
  EXPECT_EQ(make_protocol("gptq-2048", 512, 8).name, "gptq-2048 (window 512, at most 8 windows)");
  EXPECT_EQ(make_protocol("polarquant", 0, 30).name, "polarquant");
  EXPECT_EQ(make_protocol("polarquant", 0, 31).name, "polarquant (at most 31 windows)");
  EXPECT_EQ(make_protocol("llamacpp-512", 4096, 0).name, "llamacpp-512 (window 4096)");
}

TEST(Protocol, OverridesKeepTheProportions) {
  EXPECT_EQ(windows_of("llamacpp-512", 200, 64)[0].first_scored, 33);
  EXPECT_EQ(windows_of("gptq-2048", 5000, 512, 8).size(), 8u);
  const std::vector<Window> windows = windows_of("polarquant", 1000, 256);
  EXPECT_EQ(windows[1].first_token, 64);
  EXPECT_EQ(windows[1].first_scored, 192);
}

TEST(Protocol, RefusesWhatCannotBe) {
  const auto refused = [](const std::string& name, int64_t window, int64_t max_windows, const std::string& word) {
    try {
      make_protocol(name, window, max_windows);
      ADD_FAILURE() << name << " accepted window " << window;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::usage);
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  };
  refused("gptq", 0, 0, "gptq-2048");
  refused("gptq-2048", 1, 0, "at least 2");
  refused("llamacpp-512", 3, 0, "at least 4");
  refused("hf-stride-512", 512, 0, "above its stride of 512");
  refused("polarquant", 510, 0, "multiple of 4");
  refused("gptq-2048", -1, 0, "-1");
  refused("gptq-2048", 0, -1, "-1");
  for (const std::string& name : protocol_names()) EXPECT_EQ(make_protocol(name, 0, 0).name, name);
}

}  // namespace
}  // namespace pq
