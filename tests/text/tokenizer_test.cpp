// The whole encoder on a vocabulary that can be checked by hand (see small_tokenizer.h for the ids).
#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>

#include "small_tokenizer.h"

namespace pq {
namespace {

using testing::load_small_tokenizer;
using Ids = std::vector<int32_t>;

class TokenizerTest : public ::testing::Test {
 protected:
  Tokenizer tokenizer_ = load_small_tokenizer();
};

TEST_F(TokenizerTest, EncodesByHand) {
  EXPECT_EQ(tokenizer_.encode(""), Ids{});
  EXPECT_EQ(tokenizer_.encode("hello"), (Ids{259}));
  EXPECT_EQ(tokenizer_.encode("hello hello"), (Ids{259, 260}));
  EXPECT_EQ(tokenizer_.encode("help"), (Ids{256, 'l', 'p'}));
  EXPECT_EQ(tokenizer_.encode("aaaaaaa"), (Ids{263, 262, 'a'}));
  EXPECT_EQ(tokenizer_.encode("a\n\nb"), (Ids{'a', 264, 'b'}));
  EXPECT_EQ(tokenizer_.encode("a a a"), (Ids{'a', ' ', 'a', ' ', 'a'}));
}

TEST_F(TokenizerTest, NormalisesBeforeMerging) {
  EXPECT_EQ(tokenizer_.encode("\xC3\xA9"), (Ids{261}));
  EXPECT_EQ(tokenizer_.encode("e\xCC\x81"), (Ids{261}));
}

TEST_F(TokenizerTest, WithoutNormalizerTextStaysAsItIs) {
  auto file = testing::small_tokenizer();
  file["normalizer"] = nullptr;
  EXPECT_EQ(load_small_tokenizer(file).encode("e\xCC\x81"), (Ids{'e', 0xCC, 0x81}));
}

TEST_F(TokenizerTest, MergesWrittenAsStringsMeanTheSame) {
  auto file = testing::small_tokenizer();
  for (auto& merge : file["model"]["merges"]) merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  EXPECT_EQ(load_small_tokenizer(file).encode("hello hello"), (Ids{259, 260}));
}

TEST_F(TokenizerTest, AddedTokensOnlyWhereAllowed) {
  const EncodeOptions allow{.allow_special = true};
  EXPECT_EQ(tokenizer_.encode("a<|im_end|>b", allow), (Ids{'a', 301, 'b'}));
  EXPECT_EQ(tokenizer_.encode("<think></think>", allow), (Ids{302, 303}));
  EXPECT_EQ(tokenizer_.encode("<think>"), (Ids{'<', 't', 'h', 'i', 'n', 'k', '>'}));
  EXPECT_EQ(tokenizer_.encode("<|im_end|>"), (Ids{'<', '|', 'i', 'm', '_', 'e', 'n', 'd', '|', '>'}));
}

TEST_F(TokenizerTest, AddedTokensLeftmostThenLongest) {
  const EncodeOptions allow{.allow_special = true};
  EXPECT_EQ(tokenizer_.encode("<|im_end|>!", allow), (Ids{304}));
  EXPECT_EQ(tokenizer_.encode("<|im_end|>?", allow), (Ids{301, '?'}));
  EXPECT_EQ(tokenizer_.encode("<<think>", allow), (Ids{'<', 302}));
  EXPECT_EQ(tokenizer_.encode("<thin<think>", allow), (Ids{'<', 't', 'h', 'i', 'n', 302}));
  // Words end at an added token: the two spaces are a word of their own, and a combining mark does not reach back.
  EXPECT_EQ(tokenizer_.encode("  <think>\xCC\x81", allow), (Ids{' ', ' ', 302, 0xCC, 0x81}));
}

TEST_F(TokenizerTest, SegmentsJoinTextButNotAddedTokens) {
  EXPECT_EQ(tokenizer_.encode(std::vector<Segment>{{"hel", true}, {"lo", false}}), (Ids{259}));
  EXPECT_EQ(tokenizer_.encode(std::vector<Segment>{{"a.", false}, {"\n</think>", true}}), (Ids{'a', 265, 303}));
  EXPECT_EQ(tokenizer_.encode(std::vector<Segment>{{"<think>", true}, {"<think>", false}}),
            (Ids{302, '<', 't', 'h', 'i', 'n', 'k', '>'}));
  EXPECT_EQ(tokenizer_.encode(std::vector<Segment>{{"<thi", false}, {"nk>", true}}), (Ids{'<', 't', 'h', 'i', 'n', 'k', '>'}));
  EXPECT_EQ(tokenizer_.encode(std::vector<Segment>{{"\xC3", false}, {"\xA9", false}}),
            tokenizer_.encode("\xEF\xBF\xBD\xEF\xBF\xBD"));
}

TEST_F(TokenizerTest, InvalidUtf8BecomesReplacementCharacters) {
  const Ids replacement = {0xEF, 0xBF, 0xBD};
  EXPECT_EQ(tokenizer_.encode("\xFF"), replacement);
  EXPECT_EQ(tokenizer_.encode("\xE2\x82"), replacement);
  EXPECT_EQ(tokenizer_.encode("\xF0\x9F\x98<think>", {.allow_special = true}), (Ids{0xEF, 0xBF, 0xBD, 302}));
  const std::string nul("a\0b", 3);
  EXPECT_EQ(tokenizer_.encode(nul), (Ids{'a', 0, 'b'}));
}

TEST_F(TokenizerTest, DecodesToValidText) {
  EXPECT_EQ(tokenizer_.decode({259, 260, 261}), "hello hello\xC3\xA9");
  EXPECT_EQ(tokenizer_.decode({0xC3, 0xA9}), "\xC3\xA9");
  EXPECT_EQ(tokenizer_.decode({0xC3, 'x'}), "\xEF\xBF\xBDx");
  EXPECT_EQ(tokenizer_.decode({301, 'a', 302}), "<|im_end|>a<think>");
  EXPECT_EQ(tokenizer_.decode({301, 'a', 302}, {.skip_special = true}), "a<think>");
}

TEST_F(TokenizerTest, IdsWithoutATokenAreEmpty) {
  EXPECT_EQ(tokenizer_.vocab_size(), 305);
  for (const int32_t id : {-1, 290, 305, 2'000'000'000}) {
    EXPECT_EQ(tokenizer_.token_bytes(id), "");
    EXPECT_FALSE(tokenizer_.is_special(id));
  }
  EXPECT_EQ(tokenizer_.decode({-1, 'a', 290, 305}), "a");
}

TEST_F(TokenizerTest, LooksUpTokens) {
  EXPECT_EQ(tokenizer_.id_of("<|im_end|>"), 301);
  EXPECT_EQ(tokenizer_.id_of(" hello"), 260);
  EXPECT_EQ(tokenizer_.id_of("\xC3"), 0xC3);
  EXPECT_EQ(tokenizer_.id_of("nothing"), std::nullopt);
  EXPECT_EQ(tokenizer_.id_of(""), std::nullopt);
  EXPECT_TRUE(tokenizer_.is_special(301));
  EXPECT_FALSE(tokenizer_.is_special(302));
  EXPECT_FALSE(tokenizer_.is_special('a'));
  EXPECT_EQ(tokenizer_.token_bytes(260), " hello");
}

TEST_F(TokenizerTest, TokenizerConfigAddsTokensAndDecidesWhichAreSpecial) {
  const testing::TemporaryFolder folder;
  folder.write("tokenizer.json", testing::small_tokenizer());
  auto think = testing::added_token(302, "<think>", true);
  auto audio = testing::added_token(310, "<|audio_start|>", true);
  folder.write("tokenizer_config.json", nlohmann::json{{"added_tokens_decoder", {{"302", think}, {"310", audio}}}});
  for (const std::string& path : {folder.path(), folder.path() + "/tokenizer.json"}) {
    const Tokenizer tokenizer = load_tokenizer(path);
    EXPECT_EQ(tokenizer.encode("<|audio_start|>", {.allow_special = true}), (Ids{310}));
    EXPECT_EQ(tokenizer.vocab_size(), 311);
    EXPECT_TRUE(tokenizer.is_special(302));
    EXPECT_TRUE(tokenizer.is_special(310));
    EXPECT_FALSE(tokenizer.is_special(303));
  }
}

TEST_F(TokenizerTest, LongWordsAreFast) {
  // 1.2 MB without a word boundary, and 1.2 MB of distinct words.
  EXPECT_EQ(tokenizer_.encode(std::string(1'200'000, 'a')), Ids(300'000, 263));
  std::string words;
  for (int i = 0; words.size() < 1'200'000; ++i) {
    words += ' ';
    for (int n = i + 1; n > 0; n /= 26) words += static_cast<char>('a' + n % 26);
  }
  EXPECT_EQ(tokenizer_.decode(tokenizer_.encode(words)), words);
}

TEST_F(TokenizerTest, ServesSeveralThreads) {
  const std::string text = "hello aaaa caf\xC3\xA9 it's 42\r\n";
  const Ids expected = tokenizer_.encode(text);
  std::vector<std::thread> threads;
  std::vector<int> failures(4, 0);
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      for (int round = 0; round < 200; ++round) failures[i] += tokenizer_.encode(text) != expected;
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, std::vector<int>(4, 0));
}

}  // namespace
}  // namespace pq
