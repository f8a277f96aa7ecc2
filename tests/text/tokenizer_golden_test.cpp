// Ids must equal those of Hugging Face tokenizers on the committed strings (scripts/make_tokenizer_goldens.py), and the demo
// model's tokenizer must give back its evaluation text.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/utf8.h"
#include "text/tokenizer.h"
#include "text/utf8_stream.h"

namespace pq {
namespace {

using Ids = std::vector<int32_t>;

std::string bytes_of_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

TEST(TokenizerGolden, EqualsHuggingFace) {
  const Tokenizer tokenizer = load_tokenizer(PQ_TEST_DATA "/tokenizer");
  std::ifstream vectors(PQ_TEST_DATA "/tokenizer/vectors.jsonl");
  int count = 0;
  int with_added_tokens = 0;
  int invalid = 0;
  for (std::string line; std::getline(vectors, line); ++count) {
    const auto entry = nlohmann::json::parse(line);
    const std::string text = entry.contains("hex") ? bytes_of_hex(entry["hex"]) : entry["text"].get<std::string>();
    const auto ids = entry["ids"].get<Ids>();
    ASSERT_EQ(tokenizer.encode(text, {.allow_special = true}), ids) << line;
    ASSERT_EQ(tokenizer.encode(text), entry.contains("plain") ? entry["plain"].get<Ids>() : ids) << line;
    ASSERT_EQ(tokenizer.encode(std::vector<Segment>{{text, true}}), ids) << line;
    with_added_tokens += entry.contains("plain");
    invalid += replace_invalid_utf8(text) != text;

    // The stream of single tokens shows the same text as decoding at once.
    Utf8Stream stream;
    std::string shown;
    for (const int32_t id : ids) shown += stream.push(tokenizer.token_bytes(id));
    shown += stream.finish();
    ASSERT_EQ(shown, tokenizer.decode(ids)) << line;
  }
  EXPECT_GE(count, 1000);
  EXPECT_GE(with_added_tokens, 100);
  EXPECT_GE(invalid, 100);
}

TEST(TokenizerGolden, DemoTokenizerRoundTrip) {
  const Tokenizer tokenizer = load_tokenizer(PQ_TEST_DATA "/demo");
  const std::string text = read_text_file(PQ_TEST_DATA "/demo/eval.txt", 16 << 20);
  const Ids ids = tokenizer.encode(text);
  EXPECT_EQ(tokenizer.decode(ids), text);
  EXPECT_LT(ids.size(), text.size() / 2);
  for (const char* token : {"<|im_start|>", "<|im_end|>", "<|endoftext|>"}) {
    ASSERT_TRUE(tokenizer.id_of(token).has_value()) << token;
    EXPECT_TRUE(tokenizer.is_special(*tokenizer.id_of(token))) << token;
    EXPECT_EQ(tokenizer.encode(token, {.allow_special = true}), Ids{*tokenizer.id_of(token)});
  }
}

}  // namespace
}  // namespace pq
