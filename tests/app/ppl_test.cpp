// pq-ppl as a user meets it: the same digits at every rank count, the golden value of an independent implementation, the fields of
// its JSON, the files it writes, and one line with the documented code for every input that is not what it should be.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/hash.h"
#include "support/process.h"

namespace pq {
namespace {

using testing::HasSubstr;

const std::string kDemo = std::string(PQ_TEST_DATA) + "/demo";
const std::string kText = kDemo + "/eval.txt";

class PplTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "pq-ppl-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string path(const std::string& name) const { return directory_ + "/" + name; }

  // Of the demo model and its text, unless `flags` say otherwise later.
  static test::ProcessResult ppl(int ranks, const std::vector<std::string>& flags) {
    std::vector<std::string> arguments = {"-m", kDemo, "-f", kText};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return test::run_process(test::program_command(ranks, "pq-ppl", arguments), "", 120);
  }

  static nlohmann::json json(int ranks, std::vector<std::string> flags) {
    flags.emplace_back("--json");
    const test::ProcessResult result = ppl(ranks, flags);
    EXPECT_EQ(result.code, 0) << result.err;
    return nlohmann::json::parse(result.out, nullptr, false);
  }

  static void expect_refused(int ranks, const std::vector<std::string>& flags, int code, const std::vector<std::string>& words) {
    const test::ProcessResult result = ppl(ranks, flags);
    EXPECT_EQ(result.code, code) << ranks << " ranks: " << result.err;
    EXPECT_EQ(result.out, "");
    const std::vector<std::string> lines = test::lines_of(result.err);
    ASSERT_EQ(lines.size(), 1u) << ranks << " ranks: " << result.err;
    for (const std::string& word : words) EXPECT_THAT(lines[0], HasSubstr(word));
  }

  // A copy of the demo model that may be spoilt.
  std::string copy_of_demo() const {
    const std::string copy = path("model");
    std::filesystem::remove_all(copy);
    std::filesystem::copy(kDemo, copy, std::filesystem::copy_options::recursive);
    return copy;
  }

  std::string directory_;
};

TEST_F(PplTest, SameDigitsAtEveryRankCount) {
  const std::vector<std::string> flags = {"--protocol", "gptq-2048", "--ctx", "192", "--windows", "4"};
  const nlohmann::json alone = json(0, flags);
  EXPECT_EQ(alone["protocol"], "gptq-2048 (window 192, at most 4 windows)");
  EXPECT_EQ(alone["scored_tokens"], 4 * 191);
  EXPECT_EQ(alone["windows"], 4);
  EXPECT_EQ(alone["ranks"], 1);
  for (const int ranks : {1, 2, 4}) {
    const nlohmann::json shared = json(ranks, flags);
    EXPECT_EQ(shared["ranks"], ranks);
    for (const char* field : {"perplexity", "perplexity_error", "mean_nll", "mean_nll_error", "mean_nll_error_by_window",
                              "scored_tokens", "text_sha256", "tokens_sha256", "bits_per_weight", "model_bytes"})
      EXPECT_EQ(shared[field], alone[field]) << field << " at " << ranks << " ranks";
  }
}

TEST_F(PplTest, TheStepSizeDoesNotShow) {
  const std::vector<std::string> flags = {"--protocol", "llamacpp-512", "--ctx", "128", "--windows", "3"};
  const nlohmann::json whole = json(0, flags);
  EXPECT_EQ(whole["scored_tokens"], 3 * 63);
  for (const char* batch : {"7", "100"}) {
    std::vector<std::string> other = flags;
    other.insert(other.end(), {"-b", batch});
    EXPECT_EQ(json(0, other)["mean_nll"], whole["mean_nll"]) << "batch " << batch;
  }
}

// tests/data/golden/demo_perplexity.json: scripts/make_perplexity_golden.py tests/data/demo tests/data/demo/eval.txt FILE
TEST_F(PplTest, AgreesWithTransformers) {
  const auto golden = nlohmann::json::parse(read_text_file(std::string(PQ_TEST_DATA) + "/golden/demo_perplexity.json", 1 << 20));
  std::string weights;
  for (const char* shard : {"model.safetensors-00001-of-00002.safetensors", "model.safetensors-00002-of-00002.safetensors"})
    weights += read_text_file(kDemo + "/" + shard, 1 << 26);
  ASSERT_EQ(sha256_hex(weights.data(), static_cast<int64_t>(weights.size())), golden["weights_sha256"])
      << "the golden value belongs to other weights";
  const nlohmann::json ours = json(2, {"--protocol", "gptq-2048", "--ctx", golden["window"].dump(), "--windows",
                                       golden["windows"].dump(), "--format", "bf16", "--activations", "f32"});
  EXPECT_EQ(ours["tokens_sha256"], golden["tokens_sha256"]);
  EXPECT_EQ(ours["text_tokens"], golden["text_tokens"]);
  EXPECT_EQ(ours["scored_tokens"], golden["scored_tokens"]);
  // Logits agree within 2e-4 (the bound of the golden logits); a log-softmax moves by at most twice that, its mean as well.
  EXPECT_NEAR(ours["mean_nll"].get<double>(), golden["mean_nll"].get<double>(), 4e-4);
  // Errors of single logits have either sign and cancel in a mean of thousands: a bias would not.
  EXPECT_NEAR(ours["perplexity"].get<double>() / golden["perplexity"].get<double>(), 1.0, 1e-4);
}

TEST_F(PplTest, JsonSaysEverythingAComparisonNeeds) {
  const nlohmann::json result = json(0, {"--protocol", "polarquant", "--ctx", "128", "--windows", "2", "--format", "pq4"});
  const std::string text = read_text_file(kText, 1 << 26);
  ASSERT_GT(text.size(), 150000u) << "the cut of the protocol must bite";
  EXPECT_EQ(result["text_bytes"], 150000);  // the text is ASCII
  EXPECT_EQ(result["text_sha256"], sha256_hex(text.data(), 150000));
  EXPECT_EQ(result["scored_tokens"], 2 * 32);
  EXPECT_EQ(result["bits_per_weight"], 4.125);
  EXPECT_EQ(result["activations"], "int8");
  EXPECT_EQ(result["kv_type"], "f16");
  EXPECT_THAT(result["backend"].get<std::string>(), HasSubstr("cpu"));
  EXPECT_THAT(result["model"].get<std::string>(), HasSubstr(kDemo));
  EXPECT_GT(result["seconds"].get<double>(), 0);
  EXPECT_GT(result["tokens_per_second"].get<double>(), 0);
  EXPECT_DOUBLE_EQ(result["perplexity"].get<double>(), std::exp(result["mean_nll"].get<double>()));
  EXPECT_GT(result["mean_nll_error"].get<double>(), 0);
  EXPECT_FALSE(result.contains("difference"));
}

TEST_F(PplTest, TextForPeople) {
  const test::ProcessResult result = ppl(2, {"--ctx", "64", "--windows", "2"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("(gptq-2048 (window 64, at most 2 windows))"));
  EXPECT_THAT(result.out, HasSubstr("126 tokens in 2 windows"));
  EXPECT_THAT(result.out, HasSubstr("2 ranks"));
}

TEST_F(PplTest, AStoreGivesTheSameDigits) {
  const std::string store = path("store");
  const test::ProcessResult made = test::run_process(test::program_command(2, "pq-quantize", {kDemo, store}), "", 120);
  ASSERT_EQ(made.code, 0) << made.err;
  const std::vector<std::string> flags = {"--ctx", "96", "--windows", "2"};
  std::vector<std::string> from_store = flags;
  from_store.insert(from_store.end(), {"-m", store});
  const nlohmann::json while_loading = json(1, flags);
  const nlohmann::json stored = json(2, from_store);
  EXPECT_EQ(stored["mean_nll"], while_loading["mean_nll"]);
  EXPECT_EQ(stored["bits_per_weight"], while_loading["bits_per_weight"]);
}

TEST_F(PplTest, RunsArePairedByTheirLikelihoods) {
  const std::vector<std::string> flags = {"--ctx", "128", "--windows", "2"};
  std::vector<std::string> base = flags;
  base.insert(base.end(), {"--format", "bf16", "--nll-out", path("base.json")});
  std::vector<std::string> coded = flags;
  coded.insert(coded.end(), {"--format", "pq3", "--compare-nll", path("base.json")});
  const nlohmann::json first = json(0, base);
  const nlohmann::json second = json(2, coded);
  EXPECT_NEAR(second["difference"].get<double>(), second["mean_nll"].get<double>() - first["mean_nll"].get<double>(), 1e-12);
  EXPECT_GT(second["difference_error"].get<double>(), 0);
  EXPECT_LT(second["difference_error"].get<double>(), second["mean_nll_error"].get<double>());
  EXPECT_EQ(second["difference_base"], first["model"]);
  expect_refused(0, {"--ctx", "64", "--windows", "2", "--compare-nll", path("base.json")}, 65, {"window 128", "window 64"});
  write_file_atomically(path("base.json"), "{");
  expect_refused(2, {"--ctx", "128", "--windows", "2", "--compare-nll", path("base.json")}, 65, {path("base.json")});
}

TEST_F(PplTest, LogitsGoToAFile) {
  const test::ProcessResult result = ppl(2, {"--ctx", "64", "--windows", "2", "--logits-out", path("logits.h5")});
  ASSERT_EQ(result.code, 0) << result.err;
  const std::string content = read_text_file(path("logits.h5"), 1 << 26);
  EXPECT_EQ(content.substr(0, 8), "\x89HDF\r\n\x1a\n");
  EXPECT_GT(content.size(), 2u * 64 * 1024 * 4);  // rows, vocabulary, fp32
  EXPECT_FALSE(path_exists(path("logits.h5.tmp")));
  expect_refused(2, {"--ctx", "64", "--windows", "2", "--logits-out", path("absent/logits.h5")}, 74, {"absent/logits.h5"});
}

TEST_F(PplTest, RefusesTextsThatCannotBeMeasured) {
  write_file_atomically(path("short.txt"), "Wanda the owl woke up.");
  write_file_atomically(path("empty.txt"), "");
  for (const int ranks : {0, 2}) {
    expect_refused(ranks, {"-f", path("short.txt")}, 65, {"tokens", "at least 2048", path("short.txt")});
    expect_refused(ranks, {"-f", path("empty.txt")}, 65, {"0 tokens", "at least 2048"});
    expect_refused(ranks, {"-f", path("absent.txt")}, 74, {path("absent.txt")});
    expect_refused(ranks, {"-f", directory_}, 65, {directory_});
  }
}

TEST_F(PplTest, RefusesImpossibleFlags) {
  for (const int ranks : {0, 2}) expect_refused(ranks, {"--protocol", "gptq"}, 64, {"gptq-2048", "llamacpp-512", "polarquant"});
  expect_refused(0, {"--protocol", "polarquant", "--ctx", "130"}, 64, {"multiple of 4"});
  expect_refused(0, {"--ctx", "1"}, 64, {"at least 2"});
  expect_refused(0, {"--windows", "-1"}, 64, {"-1"});
  expect_refused(0, {"--ctx", "16384"}, 64, {"16384", "8192"});
  expect_refused(0, {"--protcol", "gptq-2048"}, 64, {"--protocol"});
  expect_refused(3, {}, 64, {"3 ranks", "1, 2, 4"});
}

TEST_F(PplTest, RefusesModelsThatAreNotWhole) {
  const std::string shard = "/model.safetensors-00002-of-00002.safetensors";
  std::string model = copy_of_demo();
  std::filesystem::resize_file(model + shard, std::filesystem::file_size(model + shard) - 1);
  for (const int ranks : {0, 2}) expect_refused(ranks, {"-m", model}, 65, {shard.substr(1)});
  model = copy_of_demo();
  write_file_atomically(model + "/config.json", "{\"model_type\": ");
  for (const int ranks : {0, 2}) expect_refused(ranks, {"-m", model}, 65, {"config.json"});
  model = copy_of_demo();
  std::filesystem::resize_file(model + "/tokenizer.json", 1000);
  for (const int ranks : {0, 2}) expect_refused(ranks, {"-m", model}, 65, {"tokenizer.json"});
  expect_refused(2, {"-m", path("nowhere")}, 65, {path("nowhere")});
}

}  // namespace
}  // namespace pq
