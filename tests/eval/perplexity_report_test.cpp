// Reports: the fields a comparison rests on, values that survive a file, and the refusal to pair what does not belong together.
#include "eval/perplexity_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"

namespace pq {
namespace {

using testing::HasSubstr;

PerplexityReport some_report() {
  PerplexityReport report;
  report.protocol = "gptq-2048 (window 4)";
  report.text = "eval.txt";
  report.text_bytes = 12;
  report.text_sha256 = "aa";
  report.text_tokens = 8;
  report.tokens_sha256 = "bb";
  report.model = "store x";
  report.recipe = "policy: default pq5";
  report.bits_per_weight = 5.125;
  report.model_bytes = 2500000;
  report.backend = "cpu (generic)";
  report.activations = "int8";
  report.kv_type = "f16";
  report.ranks = 2;
  report.seconds = 2;
  report.result.windows = 2;
  report.result.tokens_evaluated = 6;
  report.result.nll = {1.0, 2.0, 3.0, 1.0, 2.0, 3.0};
  report.result.by_token = {2.0, 0.36514837167011077};
  report.result.error_by_window = 0.0;
  report.result.perplexity = 7.38905609893065;
  report.result.perplexity_error = 2.698;
  return report;
}

class NllFileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "pq-nll-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    path_ = directory_ + "/nll.json";
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  void expect_refused(const std::string& content, const std::string& word) {
    write_file_atomically(path_, content);
    try {
      read_nll_file(path_);
      ADD_FAILURE() << content << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::input);
      EXPECT_THAT(error.what(), HasSubstr(path_));
      EXPECT_THAT(error.what(), HasSubstr(word));
    }
  }

  std::string directory_;
  std::string path_;
};

TEST(PerplexityReport, JsonCarriesWhatAComparisonRestsOn) {
  PerplexityReport report = some_report();
  report.difference = MeanEstimate{0.25, 0.125};
  report.base = "store y";
  const nlohmann::json json = nlohmann::json::parse(report_json(report));
  EXPECT_EQ(json["protocol"], report.protocol);
  EXPECT_EQ(json["perplexity"].get<double>(), report.result.perplexity);
  EXPECT_EQ(json["mean_nll_error"].get<double>(), report.result.by_token.standard_error);
  EXPECT_EQ(json["scored_tokens"], 6);
  EXPECT_EQ(json["windows"], 2);
  EXPECT_EQ(json["text_sha256"], "aa");
  EXPECT_EQ(json["tokens_sha256"], "bb");
  EXPECT_EQ(json["recipe"], report.recipe);
  EXPECT_EQ(json["bits_per_weight"], 5.125);
  EXPECT_EQ(json["ranks"], 2);
  EXPECT_EQ(json["tokens_per_second"], 3.0);
  EXPECT_EQ(json["difference"], 0.25);
  EXPECT_EQ(json["difference_base"], "store y");
}

TEST(PerplexityReport, AnErrorThatDoesNotExistIsNotANumber) {
  PerplexityReport report = some_report();
  report.result.error_by_window = std::numeric_limits<double>::quiet_NaN();
  report.result.by_token.standard_error = std::numeric_limits<double>::quiet_NaN();
  const nlohmann::json json = nlohmann::json::parse(report_json(report));
  EXPECT_TRUE(json["mean_nll_error_by_window"].is_null());
  EXPECT_FALSE(json.contains("difference"));
  EXPECT_THAT(report_text(report), HasSubstr("mean NLL     2.00000 ± n/a   by window ± n/a"));
}

TEST(PerplexityReport, TextNamesTheProtocolBesideTheNumber) {
  EXPECT_THAT(report_text(some_report()), HasSubstr("perplexity   7.3891 ± 2.6980   (gptq-2048 (window 4))\n"));
  EXPECT_THAT(report_text(some_report()), HasSubstr("5.125 bits per weight, 2.5 MB"));
}

// python3 -c "import hashlib, struct; print(hashlib.sha256(struct.pack('<3i', 1, 258, -1)).hexdigest())"
TEST(PerplexityReport, TokensHashAsLittleEndianInt32) {
  EXPECT_EQ(tokens_sha256({1, 258, -1}), "5e8691a2fba85be9ae0fadf1a71cffd24439b135a8d90272c9f33c06ec9f7b69");
}

TEST_F(NllFileTest, RoundTripKeepsEveryBit) {
  const NllFile file{"gptq-2048", "bb", "store x", {0.1, 1.0 / 3.0, 5e-324, 1.7976931348623157e308, 0.0}};
  write_nll_file(path_, file);
  const NllFile read = read_nll_file(path_);
  EXPECT_EQ(read.protocol, file.protocol);
  EXPECT_EQ(read.tokens_sha256, file.tokens_sha256);
  EXPECT_EQ(read.model, file.model);
  EXPECT_EQ(read.nll, file.nll);
}

TEST_F(NllFileTest, RefusesOtherFiles) {
  expect_refused("", "is not JSON at byte");
  expect_refused("{\"format\":\"pq-nll\",\"protocol\":\"x\"", "is not JSON at byte");
  expect_refused("[1]", "no file of likelihoods");
  expect_refused(R"({"format":"other"})", "no file of likelihoods");
  expect_refused(R"({"format":"pq-nll","protocol":1})", "\"protocol\"");
  expect_refused(R"({"format":"pq-nll","protocol":"x","tokens_sha256":"y","model":"z"})", "\"nll\"");
  expect_refused(R"({"format":"pq-nll","protocol":"x","tokens_sha256":"y","model":"z","nll":[1,"2"]})", "entry 1");
}

TEST(PairedRuns, NeedTheSameProtocolAndTokens) {
  const NllFile base{"gptq-2048", "bb", "store y", {0.5}};
  EXPECT_NO_THROW(check_pairable(base, "gptq-2048", "bb"));
  const auto refused = [&](const std::string& protocol, const std::string& hash, const std::string& theirs) {
    try {
      check_pairable(base, protocol, hash);
      ADD_FAILURE() << protocol << " " << hash << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::input);
      EXPECT_THAT(error.what(), HasSubstr(theirs));
    }
  };
  refused("gptq-2048 (window 512)", "bb", "gptq-2048 there and gptq-2048 (window 512) here");
  refused("gptq-2048", "cc", "bb there and cc here");
}

}  // namespace
}  // namespace pq
