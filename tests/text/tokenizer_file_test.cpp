// Tokenizer files that are damaged or ask for something else: each ends in one line that names the file and the thing.
#include "text/tokenizer_file.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "small_tokenizer.h"

namespace pq {
namespace {

using nlohmann::json;
using testing::added_token;
using testing::small_tokenizer;
using testing::TemporaryFolder;

void expect_input_error(const TemporaryFolder& folder, const std::string& file, const std::string& reason) {
  try {
    load_tokenizer(folder.path());
    ADD_FAILURE() << "accepted; expected: " << reason;
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(error.kind(), ErrorKind::input) << message;
    EXPECT_NE(message.find(folder.path() + "/" + file), std::string::npos) << message;
    EXPECT_NE(message.find(reason), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_LT(message.size(), 400u) << message;
  }
}

void expect_text_refused(const std::string& text, const std::string& reason) {
  const TemporaryFolder folder;
  folder.write("tokenizer.json", text);
  expect_input_error(folder, "tokenizer.json", reason);
}

void expect_refused(const std::function<void(json&)>& damage, const std::string& reason) {
  json file = small_tokenizer();
  damage(file);
  expect_text_refused(file.dump(), reason);
}

void expect_config_refused(const json& config, const std::string& reason) {
  const TemporaryFolder folder;
  folder.write("tokenizer.json", small_tokenizer());
  folder.write("tokenizer_config.json", config);
  expect_input_error(folder, "tokenizer_config.json", reason);
}

TEST(TokenizerFile, MissingFileIsAnIoError) {
  const TemporaryFolder folder;
  try {
    load_tokenizer(folder.path());
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::io);
  }
}

TEST(TokenizerFile, EveryTruncationIsRefused) {
  const std::string whole = small_tokenizer().dump();
  for (size_t bytes = 0; bytes < whole.size(); bytes += 97) expect_text_refused(whole.substr(0, bytes), "not JSON at byte");
}

TEST(TokenizerFile, FlippedBytesNeverCrash) {
  const std::string whole = small_tokenizer().dump();
  const TemporaryFolder folder;
  int refused = 0;
  for (size_t at = 0; at < whole.size(); at += 13) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x15);
    folder.write("tokenizer.json", damaged);
    try {
      load_tokenizer(folder.path()).encode("hello <|im_end|>", {.allow_special = true});
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::input) << error.what();
      ++refused;
    }
  }
  EXPECT_GT(refused, 100);
}

TEST(TokenizerFile, NotATokenizer) {
  expect_text_refused("[]", "an object is needed");
  expect_text_refused("{}", "pre_tokenizer");
  expect_text_refused("{\"a\": 1e999}", "no double can represent");
  expect_text_refused(std::string(1'000'000, '['), "nested deeper");
  expect_text_refused("{\"version\": \"" + std::string(1'000'000, 'x'), "not JSON at byte");
  expect_text_refused("{\"version\": \"\xFF\"}", "not JSON at byte");
}

TEST(TokenizerFile, OtherModels) {
  expect_refused([](json& f) { f["model"]["type"] = "Unigram"; }, "model type is '\"Unigram\"', only 'BPE'");
  expect_refused([](json& f) { f["model"] = "BPE"; }, "model is string, an object is needed");
  expect_refused([](json& f) { f["model"]["dropout"] = 0.1; }, "model.dropout is '0.1'");
  expect_refused([](json& f) { f["model"]["unk_token"] = "<unk>"; }, "model.unk_token");
  expect_refused([](json& f) { f["model"]["continuing_subword_prefix"] = "##"; }, "model.continuing_subword_prefix");
  expect_refused([](json& f) { f["model"]["end_of_word_suffix"] = "</w>"; }, "model.end_of_word_suffix");
  expect_refused([](json& f) { f["model"]["byte_fallback"] = true; }, "model.byte_fallback is 'true', only false");
  expect_refused([](json& f) { f["model"]["byte_fallback"] = 1; }, "true or false is needed");
  expect_refused([](json& f) { f["model"]["ignore_merges"] = true; }, "model.ignore_merges");
  expect_refused([](json& f) { f["model"]["cache_capacity"] = 3; }, "'cache_capacity'");
}

TEST(TokenizerFile, OtherPipelines) {
  expect_refused([](json& f) { f["truncation"] = {{"max_length", 3}}; }, "truncation");
  expect_refused([](json& f) { f["padding"] = {{"strategy", "BatchLongest"}}; }, "padding");
  expect_refused([](json& f) { f["surprise"] = 1; }, "'surprise'");
  expect_refused([](json& f) { f["normalizer"]["type"] = "NFKC"; }, "normalizer type is '\"NFKC\"', only 'NFC'");
  expect_refused([](json& f) { f["pre_tokenizer"] = nullptr; }, "pre_tokenizer type is 'null'");
  expect_refused([](json& f) { f["pre_tokenizer"]["type"] = "Whitespace"; }, "pre_tokenizer type");
  const std::string steps = "pretokenizers";
  expect_refused([&](json& f) { f["pre_tokenizer"][steps].erase(0); }, "[Split, ByteLevel]");
  expect_refused([&](json& f) { f["pre_tokenizer"][steps] = "Split"; }, "[Split, ByteLevel]");
  expect_refused([&](json& f) { f["pre_tokenizer"][steps][0]["type"] = "Digits"; }, "pretokenizers[0] type is '\"Digits\"'");
  expect_refused([&](json& f) { f["pre_tokenizer"][steps][0]["behavior"] = "Removed"; }, "Split behavior is '\"Removed\"'");
  expect_refused([&](json& f) { f["pre_tokenizer"][steps][0]["invert"] = true; }, "Split invert");
  expect_refused([&](json& f) { f["pre_tokenizer"][steps][0]["pattern"] = {{"String", "a"}}; }, "Split pattern.Regex");
  expect_refused([&](json& f) { f["pre_tokenizer"][steps][0]["pattern"]["Regex"] = "("; }, "does not compile");
  expect_refused([&](json& f) { f["pre_tokenizer"][steps][1]["use_regex"] = true; }, "ByteLevel use_regex");
  expect_refused([&](json& f) { f["pre_tokenizer"][steps][1].erase("add_prefix_space"); }, "ByteLevel add_prefix_space");
  expect_refused([](json& f) { f["post_processor"]["type"] = "TemplateProcessing"; }, "post_processor type");
  expect_refused([](json& f) { f["decoder"] = nullptr; }, "decoder type");
}

TEST(TokenizerFile, DamagedVocabulary) {
  expect_refused([](json& f) { f["model"]["vocab"] = json::array(); }, "model.vocab is array");
  expect_refused([](json& f) { f["model"]["vocab"]["he"] = 97; }, "id 97 belongs to two tokens");
  expect_refused([](json& f) { f["model"]["vocab"]["he"] = -1; }, "the id of 'he' is -1, ids are 0 to");
  expect_refused([](json& f) { f["model"]["vocab"]["he"] = 4'000'000'000u; }, "the id of 'he' is 4000000000");
  expect_refused([](json& f) { f["model"]["vocab"]["he"] = 18'446'744'073'709'551'615u; },
                 "the id of 'he' is 18446744073709551615");
  expect_refused([](json& f) { f["model"]["vocab"]["he"] = 1.5; }, "an integer is needed");
  expect_refused([](json& f) { f["model"]["vocab"]["he"] = "256"; }, "an integer is needed");
  expect_refused([](json& f) { f["model"]["vocab"][""] = 290; }, "empty token");
  expect_refused([](json& f) { f["model"]["vocab"].erase("q"); }, "no token for byte 113");
}

TEST(TokenizerFile, BytesThatNeverOccurInUtf8MayBeMissing) {
  json file = small_tokenizer();
  for (const int byte : {0xC0, 0xC1, 0xF5, 0xFF}) file["model"]["vocab"].erase(testing::letter_of(byte));
  EXPECT_EQ(testing::load_small_tokenizer(file).encode("\xFF").size(), 3u);
}

TEST(TokenizerFile, DamagedMerges) {
  expect_refused([](json& f) { f["model"]["merges"] = 3; }, "model.merges is number");
  expect_refused([](json& f) { f["model"]["merges"][1] = {"l", "zz"}; }, "model.merges[1] ('l' + 'zz') needs the token 'zz'");
  expect_refused([](json& f) { f["model"]["merges"][1] = {"h", "i"}; }, "needs the token 'hi'");
  expect_refused([](json& f) { f["model"]["merges"][1] = {"h"}; }, "model.merges[1] is neither");
  expect_refused([](json& f) { f["model"]["merges"][1] = {"h", 3}; }, "model.merges[1] is neither");
  expect_refused([](json& f) { f["model"]["merges"][1] = "l"; }, "two tokens and one space");
  expect_refused([](json& f) { f["model"]["merges"][1] = "l l l"; }, "two tokens and one space");
  expect_refused([](json& f) { f["model"]["merges"][1] = " l"; }, "needs the token ''");
}

TEST(TokenizerFile, DamagedAddedTokens) {
  const auto added = [](const json& token) { return [token](json& f) { f["added_tokens"].push_back(token); }; };
  expect_refused([](json& f) { f["added_tokens"] = "none"; }, "added_tokens is string");
  expect_refused(added(3), "an added token is number");
  expect_refused(added({{"id", 305}}), "an added token.content");
  expect_refused(added({{"content", "<x>"}}), "the id of '<x>' is null");
  expect_refused(added(added_token(5'000'000, "<x>", true)), "the id of '<x>' is 5000000");
  expect_refused(added(added_token(305, "", true)), "has 0 bytes");
  expect_refused(added(added_token(305, std::string(2000, 'x'), true)), "has 2000 bytes");
  expect_refused(added(added_token(301, "<x>", true)), "the added token '<x>' has id 301, but '<|im_end|>' has id 301");
  expect_refused(added(added_token(305, "<|im_end|>", true)), "has id 305, but '<|im_end|>' has id 301");
  expect_refused(added(added_token(256, "<x>", true)), "has id 256, which belongs to 'he' in model.vocab");
  expect_refused(added(added_token(305, "he", true)), "the added token 'he' has id 305, but model.vocab gives it 256");
  for (const char* key : {"single_word", "lstrip", "rstrip", "normalized"}) {
    json token = added_token(305, "<x>", true);
    token[key] = true;
    expect_refused(added(token), std::string("the added token '<x>' ") + key + " is 'true', only false");
  }
  expect_refused(
      [](json& f) {
        for (int i = 0; i < 5000; ++i) f["added_tokens"].push_back(added_token(400 + i, "<" + std::to_string(i) + ">", true));
      },
      "more than 4096 added tokens");
}

TEST(TokenizerFile, IdsAndNamesAtTheLimitsAndBeyond) {
  const auto load = [](const json& token) {
    json file = small_tokenizer();
    file["added_tokens"].push_back(token);
    return testing::load_small_tokenizer(file).vocab_size();
  };
  const auto ids = static_cast<int64_t>(testing::load_small_tokenizer(small_tokenizer()).vocab_size());
  EXPECT_EQ(load(added_token(ids + 65'535, "<x>", true)), ids + 65'536);
  expect_refused([&](json& f) { f["added_tokens"].push_back(added_token(ids + 65'536, "<x>", true)); },
                 "the id " + std::to_string(ids + 65'536) + " leaves more than 65536 ids before it without a token");
  expect_refused([](json& f) { f["model"]["vocab"]["zz"] = 4'194'303; }, "the id 4194303 leaves more than 65536 ids");
  EXPECT_EQ(load(added_token(305, std::string(1024, 'x'), true)), 306);
  const auto vocab = [](const json& id) { return [id](json& f) { f["model"]["vocab"]["zz"] = id; }; };
  for (const uint64_t id :
       {uint64_t{4'194'304}, uint64_t{1} << 31, (uint64_t{1} << 32) + 5, (uint64_t{1} << 63) - 1, uint64_t{1} << 63})
    expect_refused(vocab(id), "the id of 'zz' is " + std::to_string(id));
  expect_refused(vocab(-1), "the id of 'zz' is -1");
  expect_refused(vocab(1e18), "the id of 'zz' is number");
  std::string twice = small_tokenizer().dump();
  twice.replace(twice.find("\"vocab\":{"), 9, "\"vocab\":{\"!\":33,");
  expect_text_refused(twice, "repeats the key \"!\"");
}

TEST(TokenizerFile, AddedTokenMayRepeatTheVocabulary) {
  json file = small_tokenizer();
  file["added_tokens"].push_back(added_token(256, "he", true));
  const Tokenizer tokenizer = testing::load_small_tokenizer(file);
  EXPECT_EQ(tokenizer.encode("hehello", {.allow_special = true}), (std::vector<int32_t>{256, 256, 257, 'o'}));
}

TEST(TokenizerFile, DamagedTokenizerConfig) {
  expect_config_refused("{", "a JSON string");
  expect_config_refused({{"added_tokens_decoder", 3}}, "added_tokens_decoder is number");
  expect_config_refused({{"added_tokens_decoder", {{"x", added_token(0, "<x>", true)}}}}, "the key 'x', an id is needed");
  expect_config_refused({{"added_tokens_decoder", {{"99999999999", added_token(0, "<x>", true)}}}}, "an id is needed");
  expect_config_refused({{"added_tokens_decoder", {{"9999999", added_token(0, "<x>", true)}}}}, "the id of '<x>' is 9999999");
  expect_config_refused({{"added_tokens_decoder", {{"301", added_token(0, "<x>", true)}}}}, "has id 301, but '<|im_end|>'");
  expect_config_refused({{"add_bos_token", true}}, "add_bos_token is 'true', only false");
  expect_config_refused({{"add_eos_token", true}}, "add_eos_token is 'true', only false");
}

}  // namespace
}  // namespace pq
