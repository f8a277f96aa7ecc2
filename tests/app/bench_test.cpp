// pq-bench as a user meets it: small synthetic models under the real mpirun. What the numbers mean is checked, not how fast they
// are: build machines share their cores.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "support/demo_model.h"
#include "support/process.h"
#include "support/refusal.h"

namespace pq {
namespace {

using nlohmann::json;
using testing::HasSubstr;

using Words = std::vector<std::string>;

test::ProcessResult bench(int ranks, const std::string& what, const Words& arguments) {
  Words words = {what};
  words.insert(words.end(), arguments.begin(), arguments.end());
  return test::run_process(test::program_command(ranks, "pq-bench", words));
}

const Words kSmall = {"--geometry", "qwen3.5-0.8b", "--layers", "4", "--vocab", "512", "--working-set", "2"};

Words small(const Words& more) {
  Words words = kSmall;
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

std::string refusal(const test::ProcessResult& result, int code) { return test::refusal_line("pq-bench", result, {code}); }

// Weights of the small model that a token passes through: the embedding is looked up, the head is the same matrix.
constexpr int64_t kHidden = 1024, kIntermediate = 3584, kVocab = 512;
constexpr int64_t kMlp = 3 * kHidden * kIntermediate;
constexpr int64_t kDelta = kHidden * (3 * 2048 + 2048) + 2048 * kHidden + kMlp;                   // q k v, z, out
constexpr int64_t kAttention = kHidden * (2 * 8 * 256 + 2 * 2 * 256) + 8 * 256 * kHidden + kMlp;  // q and gate, k, v, o
constexpr int64_t kBody = 3 * kDelta + kAttention;
constexpr int64_t kHead = kHidden * kVocab;

struct Measurement {
  const char* what;
  Words flags;
  size_t rows;
  size_t repetitions;
  bool reads;     // has a read rate
  bool computes;  // has a rate of multiply-adds
  bool planned;
};
void PrintTo(const Measurement& measurement, std::ostream* out) { *out << measurement.what; }

class Bench : public testing::TestWithParam<Measurement> {};
INSTANTIATE_TEST_SUITE_P(All, Bench,
                         testing::Values(Measurement{"decode", {"-n", "3", "-d", "5"}, 1, 3, true, true, true},
                                         Measurement{"prefill", {"-p", "20", "-b", "8", "-r", "2"}, 1, 2, false, true, true},
                                         // 8 different products and all of them in order, at 5 numbers of tokens. Products: qkv, z,
                                         // a and b, the two output projections, q, k and v and the head, gate and up, down; at two
                                         // ranks the slices of z have the shape of the output projections', but not their units.
                                         // With them those that read one input: qkv, z, b and a; q, k and v. Behind them the
                                         // embedding, norm, convolution, delta rule, its norm, these three at once, attention's
                                         // input and attention, of one token and of the batch.
                                         Measurement{"kernels", {"-r", "1", "-d", "64"}, 71, 1, true, true, false},
                                         // 1024, 2048 and 3584 inputs, with and without scale search.
                                         Measurement{"quantize", {"-r", "1"}, 6, 1, false, false, false},
                                         Measurement{"comm", {"-r", "2"}, 3, 2, false, false, false}),
                         [](const auto& info) { return std::string(info.param.what); });

TEST_P(Bench, MeasuresAtOneAndTwoRanks) {
  const Measurement& run = GetParam();
  int64_t bytes_alone = 0, macs_alone = 0;
  for (const int ranks : {1, 2}) {
    SCOPED_TRACE(std::to_string(ranks) + " ranks");
    Words flags = small(run.flags);
    flags.push_back("--json");
    const auto result = bench(ranks, run.what, flags);
    ASSERT_EQ(result.code, 0) << result.err;
    const json report = json::parse(result.out);
    EXPECT_GT(report["roofs"]["read_bytes_per_second"], 0);
    EXPECT_GT(report["roofs"]["macs_per_second"], 0);
    EXPECT_EQ(report["rows"].size(), run.rows);
    for (const json& row : report["rows"]) {
      ASSERT_EQ(row["seconds"].size(), run.repetitions) << row;
      EXPECT_GT(row["median_ms"], 0) << row;
      EXPECT_EQ(row["read_fraction"] > 0, run.reads) << row;
      EXPECT_EQ(row["dot_fraction"] > 0, run.computes && row["macs"] > 0) << row;
      EXPECT_EQ(row["mweights_per_second_per_thread"] > 0, run.what == std::string("quantize")) << row;
    }
    ASSERT_EQ(report["peak_rss_bytes"].size(), static_cast<size_t>(ranks));
    ASSERT_EQ(report["planned_bytes"].size(), static_cast<size_t>(ranks));
    for (int rank = 0; rank < ranks; ++rank) {
      const int64_t resident = report["peak_rss_bytes"][rank], planned = report["planned_bytes"][rank];
      if (run.planned) {
#if !defined(__SANITIZE_THREAD__)
        // The shadow of ThreadSanitizer is resident too.
        EXPECT_LE(resident, planned);
#endif
        // The weights at 41/64 byte are resident.
        EXPECT_GE(resident, (kBody + kHead) / 64 * 41 / ranks);
      } else {
        EXPECT_EQ(planned, 0);
      }
    }
    if (!run.planned) continue;
    // The matrices, and vectors below 1 % of them.
    const json& row = report["rows"][0];
    const double expected = run.reads ? kBody + kHead : 20.0 * kBody;
    EXPECT_GE(row["macs"], expected);
    EXPECT_LE(row["macs"], expected * 1.01);
    if (ranks == 1) {
      bytes_alone = row["bytes"];
      macs_alone = row["macs"];
    }
    // What ranks hold twice are vectors.
    EXPECT_NEAR(row["bytes"].get<double>(), bytes_alone, 0.01 * bytes_alone);
    EXPECT_NEAR(row["macs"].get<double>(), macs_alone, 0.01 * macs_alone);
    EXPECT_NEAR(row["tokens_per_second"].get<double>() * row["median_ms"].get<double>(), run.reads ? 1e3 : 20e3, 1e-3);
  }
}

// Rows 50 to 54 are the products of one step of 1, 2, 4, 8 and 256 tokens: what a decode step reads, but for vectors.
TEST(BenchKernels, TheProductsOfAStepReadAllMatrices) {
  const auto result = bench(2, "kernels", small({"-r", "1", "--json"}));
  ASSERT_EQ(result.code, 0) << result.err;
  const json rows = json::parse(result.out)["rows"];
  // Attention at two depths.
  ASSERT_EQ(rows.size(), 55u + 2u + 16u);
  const int64_t polar = (kBody + kHead) / 64 * 41;
  const int64_t f32 = 3 * 2 * 16 * kHidden * 4;  // in_proj_a and in_proj_b of three layers
  const int64_t tokens[] = {1, 2, 4, 8, 256};
  for (size_t i = 0; i < 5; ++i) {
    const json& row = rows[50 + i];
    EXPECT_THAT(row["name"].get<std::string>(), HasSubstr("all 28 products"));
    EXPECT_EQ(row["bytes"], polar + f32);
    EXPECT_EQ(row["macs"], (kBody + kHead + f32 / 4) * tokens[i]);
  }
}

// The products of rank 0 of two ranks, without the other one.
TEST(BenchKernels, ASliceOfTwoRanksReadsHalf) {
  const auto result = bench(0, "kernels", small({"-r", "1", "-d", "64", "--slice-of", "2", "--json"}));
  ASSERT_EQ(result.code, 0) << result.err;
  const json report = json::parse(result.out);
  EXPECT_THAT(report["title"].get<std::string>(), HasSubstr("rank 0 of 2 alone"));
  ASSERT_EQ(report["rows"].size(), 71u);
  EXPECT_EQ(report["rows"][50]["bytes"], (kBody + kHead) / 64 * 41 / 2 + 3 * 2 * 8 * kHidden * 4);
  const auto attention = bench(0, "kernels", small({"-r", "1", "-d", "64", "--json"}));
  const json whole = json::parse(attention.out);
  // Keys and values of one of two kv heads, half of the query heads.
  EXPECT_EQ(whole["rows"].back()["bytes"], 2 * report["rows"].back()["bytes"].get<int64_t>());
}

TEST(BenchDecode, SeveralSequencesReadTheWeightsOnce) {
  const auto result = bench(2, "decode", small({"-n", "2", "--parallel", "1,4", "--json"}));
  ASSERT_EQ(result.code, 0) << result.err;
  const json rows = json::parse(result.out)["rows"];
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0]["tokens"], 1);
  EXPECT_EQ(rows[1]["tokens"], 4);
  EXPECT_EQ(rows[1]["bytes"], rows[0]["bytes"]);
  EXPECT_EQ(rows[1]["macs"], 4 * rows[0]["macs"].get<int64_t>());
}

TEST(BenchDecode, ABreakdownNamesTheKindsOfOperations) {
  const auto result = bench(2, "decode", small({"-n", "3", "--breakdown", "--json"}));
  ASSERT_EQ(result.code, 0) << result.err;
  const json rows = json::parse(result.out)["rows"];
  ASSERT_GE(rows.size(), 8u);
  EXPECT_EQ(rows.back()["share"], 1.0);
  double products = 0;
  for (const json& row : rows) {
    if (row["name"] == "products") products = row["share"];
  }
  EXPECT_GT(products, 0);
}

// The demo model: every measurement of a model on a store, and loading it.
TEST(BenchStore, MeasuresAStore) {
  const test::TemporaryDirectory directory;
  const std::string store = directory.path() + "/store";
  const auto made = test::run_process(test::program_command(0, "pq-quantize", {test::demo_path(), store}));
  ASSERT_EQ(made.code, 0) << made.err;
  for (const std::string what : {"decode", "prefill", "kernels", "load"}) {
    SCOPED_TRACE(what);
    const auto result = bench(2, what, {"-m", store, "-n", "2", "-r", "2", "-p", "20", "--working-set", "2", "--json"});
    ASSERT_EQ(result.code, 0) << result.err;
    const json report = json::parse(result.out);
    EXPECT_THAT(report["title"].get<std::string>(), HasSubstr("5.125 bits"));
    if (what != "load") continue;
    ASSERT_EQ(report["rows"].size(), 2u);
    EXPECT_EQ(report["rows"][0]["seconds"].size(), 1u);
    EXPECT_EQ(report["rows"][1]["seconds"].size(), 2u);
    // Both ranks together load the model; what they hold twice are vectors.
    EXPECT_GE(report["rows"][0]["bytes"], report["weight_bytes"]);
    EXPECT_LE(report["rows"][0]["bytes"].get<double>(), 1.01 * report["weight_bytes"].get<double>());
  }
}

TEST(BenchUsage, FormatsBackendsAndTables) {
  const auto markdown = bench(2, "decode", small({"-n", "1", "--format", "bf16", "--activations", "f32"}));
  EXPECT_EQ(markdown.code, 0) << markdown.err;
  EXPECT_THAT(markdown.out, HasSubstr("| decode at depth 0 |"));
  EXPECT_THAT(markdown.out, HasSubstr("rank 1: peak resident"));
  const auto csv = bench(0, "comm", small({"-r", "1", "--csv"}));
  EXPECT_EQ(csv.code, 0) << csv.err;
  EXPECT_EQ(test::lines_of(csv.out).size(), 4u) << csv.out;
}

TEST(BenchUsage, Refusals) {
  const std::string ranks = refusal(bench(3, "decode", kSmall), 64);
  EXPECT_THAT(ranks, HasSubstr("3 ranks"));
  EXPECT_THAT(ranks, HasSubstr("1, 2, 4"));
  EXPECT_THAT(refusal(bench(2, "decode", {"--geometry", "qwen3.5-1b"}), 64), HasSubstr("qwen3.5-0.8b"));
  EXPECT_THAT(refusal(bench(0, "decode", {"--layers", "-1"}), 64), HasSubstr("--layers"));
  EXPECT_THAT(refusal(bench(0, "decode", {"--layers", "100000"}), 64), HasSubstr("100000 layers"));
  EXPECT_THAT(refusal(bench(0, "decode", small({"-d", "262144"})), 64), HasSubstr("262144"));
  EXPECT_THAT(refusal(bench(2, "decode", small({"-d", "60", "-n", "8", "-c", "67"})), 64), HasSubstr("-c 67 is less than the 68"));
  EXPECT_THAT(refusal(bench(0, "decode", {"--geometri", "x"}), 64), HasSubstr("did you mean --geometry?"));
  EXPECT_THAT(refusal(bench(0, "decod", {}), 64), HasSubstr("decod"));
  EXPECT_THAT(refusal(bench(0, "decode", small({"--format", "int4"})), 64), HasSubstr("pq2 to pq8 or bf16"));
  EXPECT_THAT(refusal(bench(0, "decode", small({"--format", "pq9"})), 64), HasSubstr("pq9"));
  EXPECT_THAT(refusal(bench(0, "decode", small({"-n", "0"})), 64), HasSubstr("--steps"));
  EXPECT_THAT(refusal(bench(0, "load", small({})), 64), HasSubstr("-m"));
  EXPECT_THAT(refusal(bench(0, "prefill", small({"--breakdown"})), 64), HasSubstr("--breakdown is for decode"));
  EXPECT_THAT(refusal(bench(0, "decode", small({"--slice-of", "2"})), 64), HasSubstr("--slice-of is for kernels"));
  EXPECT_THAT(refusal(bench(2, "kernels", small({"--slice-of", "2"})), 64), HasSubstr("--slice-of is for one rank"));
  EXPECT_THAT(refusal(bench(0, "comm", small({"--prefill", "cublas"})), 64), HasSubstr("--prefill is for prefill, decode and"));
  EXPECT_THAT(refusal(bench(2, "prefill", small({"--prefill", "cublas"})), 64), HasSubstr("--prefill cublas is for GPUs"));
  EXPECT_THAT(refusal(bench(0, "quantize", {"-m", test::demo_path()}), 64), HasSubstr("leave out -m"));
  EXPECT_THAT(refusal(bench(0, "quantize", small({"--format", "bf16"})), 64), HasSubstr("bf16"));
  EXPECT_THAT(refusal(bench(0, "decode", {"-m", test::demo_path(), "--layers", "2"}), 64), HasSubstr("--layers"));
  EXPECT_THAT(refusal(bench(0, "decode", {"-m", "/nowhere"}), 65), HasSubstr("/nowhere"));
}

// Where no GPU answers the encoder of a GPU cannot be measured, and that of the CPU is not taken for it; limits are measured with
// the threads of the CPU backend. Where one answers, neither is so.
TEST(BenchDevice, IsTheOneThatIsAskedFor) {
  const auto encoder = bench(0, "quantize", small({"-r", "1", "--device", "cuda", "--json"}));
  if (encoder.code == 0) {
    EXPECT_THAT(json::parse(encoder.out)["title"].get<std::string>(), HasSubstr("cuda"));
    return;
  }
  EXPECT_NE(refusal(encoder, 69), "");
  const auto automatic = bench(0, "comm", small({"-r", "1", "-t", "2", "--device", "auto", "--json"}));
  ASSERT_EQ(automatic.code, 0) << automatic.err;
  EXPECT_EQ(json::parse(automatic.out)["threads"], 2);
}

TEST(BenchUsage, HelpFitsItsScreen) {
  const auto result = bench(0, "--help", {});
  EXPECT_EQ(result.code, 0);
  EXPECT_EQ(result.err, "");
  const auto lines = test::lines_of(result.out);
  EXPECT_LE(lines.size(), 40u);
  for (const std::string& line : lines) EXPECT_LE(line.size(), 110u) << line;
  EXPECT_THAT(bench(2, "--version", {}).out, testing::MatchesRegex("pq-bench [0-9]+\\.[0-9]+\\.[0-9]+\n"));
}

}  // namespace
}  // namespace pq
