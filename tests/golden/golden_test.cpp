// The whole model against an independent implementation: logits of transformers in fp32 on three tiny models and the demo model
// (scripts/make_goldens.py), and what must hold bit for bit between rank counts, cuts of a prefill and neighbours in a batch.
// Coded weights are left to coded_test.cpp.
#include <ostream>

#include "base/file.h"
#include "base/hash.h"
#include "base/random.h"
#include "golden/golden_model.h"

namespace pq {
namespace {

struct TinyModel {
  const char* name;
  std::vector<int> ranks;  // legal
};

const TinyModel kTinyModels[] = {{"ratio3_full_first", {1, 2, 4}}, {"ratio2_multimodal", {1, 2}}, {"ratio1_flat", {1, 2}}};

void PrintTo(const TinyModel& model, std::ostream* out) { *out << model.name; }

std::string case_name(const testing::TestParamInfo<TinyModel>& info) { return info.param.name; }

class TinyModels : public testing::TestWithParam<TinyModel> {
 protected:
  Golden golden_ = tiny_golden(GetParam().name);
};

TEST_P(TinyModels, GoldenHoldsAPrefillAndThirtyTwoSteps) {
  const ModelConfig config = load_model_config(golden_.model);
  EXPECT_EQ(static_cast<int64_t>(golden_.tokens.size()), golden_.prefill + 32);
  EXPECT_EQ(golden_.positions.size(), golden_.tokens.size());
  EXPECT_EQ(static_cast<int64_t>(golden_.logits.size()), static_cast<int64_t>(golden_.tokens.size()) * config.vocab);
  EXPECT_EQ(legal_rank_counts(config), GetParam().ranks);
}

TEST_P(TinyModels, LogitsMatchTheOracleWithTheSameBitsAtEveryRankCount) {
  for (const std::string device : {"reference", "cpu"}) {
    std::vector<float> one_rank;
    for (const int ranks : GetParam().ranks) {
      SCOPED_TRACE(device + ", ranks " + std::to_string(ranks));
      const std::vector<float> logits =
          run_steps({.model = golden_.model, .device = device, .ranks = ranks}, oracle_steps(golden_));
      const double error = golden_error(golden_, logits);
      EXPECT_LE(error, kTolerance);
      RecordProperty(device + std::to_string(ranks), std::to_string(error * 1e6) + "e-6");
      if (ranks == 1) one_rank = logits;
      EXPECT_EQ(first_difference(one_rank, logits), -1);
    }
  }
}

TEST_P(TinyModels, AnyCutOfThePrefillGivesTheSameBits) {
  const std::vector<std::vector<int64_t>> cuts = {{1}, {16}, {7, 64, 1}, {5, 11, 16, 3}, {15, 2}, {33}};
  for (const char* device : {"reference", "cpu"}) {
    const RunSetup setup{.model = golden_.model, .device = device};
    const std::vector<float> whole = run_steps(setup, cut_steps(golden_.tokens, {128}));
    ASSERT_LE(golden_error(golden_, whole), kTolerance);
    for (const std::vector<int64_t>& cut : cuts)
      EXPECT_EQ(first_difference(whole, run_steps(setup, cut_steps(golden_.tokens, cut))), -1)
          << device << ", first cut at " << cut[0] << " of " << cut.size() << " sizes";
  }
}

// Adds to every step a span of other sequences before and after the span of `steps`, in their own slots.
std::vector<Step> with_neighbours(const std::vector<Step>& steps, int64_t vocab) {
  Random random(71);
  std::vector<Step> crowded;
  int64_t before_position = 0;
  int64_t after_position = 0;
  for (const Step& step : steps) {
    const int64_t own = step.spans[0].tokens;
    const int64_t before = 1 + random.below(4);
    const int64_t after = random.below(3);
    Step wide;
    for (int64_t i = 0; i < before; ++i) wide.tokens.push_back(static_cast<int32_t>(random.below(vocab)));
    wide.tokens.insert(wide.tokens.end(), step.tokens.begin(), step.tokens.end());
    for (int64_t i = 0; i < after; ++i) wide.tokens.push_back(static_cast<int32_t>(random.below(vocab)));
    wide.spans = {{.row = 0, .tokens = before, .position = before_position, .slot = 2},
                  {.row = before, .tokens = own, .position = step.spans[0].position, .slot = 1}};
    if (after > 0) wide.spans.push_back({.row = before + own, .tokens = after, .position = after_position, .slot = 0});
    for (const int32_t row : step.logit_rows) wide.logit_rows.push_back(row + static_cast<int32_t>(before));
    before_position += before;
    after_position += after;
    crowded.push_back(std::move(wide));
  }
  return crowded;
}

TEST_P(TinyModels, NeighboursInTheBatchChangeNoBit) {
  const int64_t vocab = load_model_config(golden_.model).vocab;
  for (const char* device : {"reference", "cpu"})
    for (const int ranks : {1, 2}) {
      RunSetup setup{.model = golden_.model, .device = device, .ranks = ranks};
      const std::vector<float> alone = run_steps(setup, oracle_steps(golden_));
      setup.options.slots = 3;
      const std::vector<Step> steps = cut_steps(golden_.tokens, {20, 1, 1, 9, 1});
      EXPECT_EQ(first_difference(alone, run_steps(setup, with_neighbours(steps, vocab))), -1) << device << ", ranks " << ranks;
    }
}

// A slot that served another sequence starts afresh at position 0, whatever it held.
TEST_P(TinyModels, AUsedSlotIsForgottenAtPositionZero) {
  const RunSetup setup{.model = golden_.model, .device = "cpu"};
  std::vector<int32_t> other(golden_.tokens.rbegin(), golden_.tokens.rend());
  std::vector<Step> steps = cut_steps(other, {41});
  for (Step& step : steps) step.logit_rows.clear();
  for (Step& step : oracle_steps(golden_)) steps.push_back(std::move(step));
  EXPECT_EQ(first_difference(run_steps(setup, oracle_steps(golden_)), run_steps(setup, steps)), -1);
}

// Keys and values in half precision are rounded by at most 2^-11 of themselves; the logits must show it, and by little. What
// reaches the logits is of the order of 2^-11 of their size (std 2, |max| 10), amplified by the few layers behind.
TEST_P(TinyModels, HalfPrecisionCacheStaysNearTheOracle) {
  RunSetup setup{.model = golden_.model, .device = "cpu"};
  setup.options.kv_type = KvType::f16;
  const double error = golden_error(golden_, run_steps(setup, oracle_steps(golden_)));
  RecordProperty("f16", std::to_string(error));
  EXPECT_GT(error, kTolerance / 4);
  EXPECT_LT(error, 10 * 10 * 0x1p-11);
}

// Keys and values in q8 are off by at most half a step, 1/254 of the largest of their group: the same reasoning.
TEST_P(TinyModels, Q8CacheStaysNearTheOracle) {
  RunSetup setup{.model = golden_.model, .device = "cpu"};
  setup.options.kv_type = KvType::q8;
  if (load_model_config(golden_.model).head_dim % kKvGroup != 0) {
    EXPECT_THROW(run_steps(setup, oracle_steps(golden_)), Error);
    return;
  }
  const double error = golden_error(golden_, run_steps(setup, oracle_steps(golden_)));
  RecordProperty("q8", std::to_string(error));
  EXPECT_GT(error, 2 * kTolerance);
  EXPECT_LT(error, 10 * 10 / 254.0);
}

INSTANTIATE_TEST_SUITE_P(Golden, TinyModels, testing::ValuesIn(kTinyModels), case_name);

TEST(DemoModel, GoldenBelongsToTheseWeights) {
  const Golden golden = demo_golden();
  const SafetensorsDirectory directory = SafetensorsDirectory::open(golden.model);
  std::string shards;
  for (const auto& file : directory.files()) shards += read_text_file(file->file().path(), 1 << 26);
  EXPECT_EQ(sha256_hex(shards.data(), static_cast<int64_t>(shards.size())), golden.metadata.at("weights_sha256"))
      << "the demo model was trained again: run scripts/make_goldens.py demo";
}

TEST(DemoModel, LogitsMatchTheOracleWithTheSameBitsAtEveryRankCount) {
  const Golden golden = demo_golden();
  EXPECT_EQ(golden.tokens.size(), 96u + 32u);
  std::vector<float> one_rank;
  for (const int ranks : {1, 2, 4}) {
    const std::vector<float> logits = run_steps({.model = golden.model, .ranks = ranks}, oracle_steps(golden));
    const double error = golden_error(golden, logits);
    EXPECT_LE(error, kTolerance) << "ranks " << ranks;
    RecordProperty("cpu" + std::to_string(ranks), std::to_string(error * 1e6) + "e-6");
    if (ranks == 1) one_rank = logits;
    EXPECT_EQ(first_difference(one_rank, logits), -1) << "ranks " << ranks;
  }
}

TEST(DemoModel, ReferenceBackendMatchesTheOracle) {
  const Golden golden = demo_golden();
  EXPECT_LE(golden_error(golden, run_steps({.model = golden.model, .device = "reference"}, oracle_steps(golden))), kTolerance);
}

}  // namespace
}  // namespace pq
