// Whole models on the CUDA kernels under emulation: the logits of the cpu backend, bit for bit, at every rank count, cut and cache
// type. Emulation shows arithmetic and indexing; tests/gpu/RESULTS.md says what it cannot show.
#include <cmath>
#include <ostream>

#include "golden/golden_model.h"
#include "kernels/device_measure.h"
#include "kernels/device_memory.h"
#include "tests/support/simt/cublas_v2.h"

namespace pq {
namespace {

struct Case {
  const char* name;
  const char* format;
  ActivationMode activations;
  KvType kv_type;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class EmulatedModel : public testing::TestWithParam<Case> {};

TEST_P(EmulatedModel, GivesTheLogitsOfTheHost) {
  const int64_t before = simt::launches();
  // The other tiny models are too narrow for coded matrices.
  const Golden golden = tiny_golden("ratio2_multimodal");
  RunSetup setup{.model = golden.model, .format = GetParam().format};
  setup.options.activations = GetParam().activations;
  setup.options.kv_type = GetParam().kv_type;
  const std::vector<int32_t> tokens(golden.tokens.begin(), golden.tokens.begin() + 37);
  const std::vector<float> expected = run_steps(setup, cut_steps(tokens, {37}));
  setup.device = "cuda-emulated";
  for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{32, 1}, {5, 19, 2}})
    EXPECT_EQ(first_difference(expected, run_steps(setup, cut_steps(tokens, sizes))), -1) << sizes[0];
  setup.ranks = 2;
  EXPECT_EQ(first_difference(expected, run_steps(setup, cut_steps(tokens, {35, 1}))), -1) << "2 ranks";
  EXPECT_GT(simt::launches(), before);
}

double rms(const std::vector<float>& x) {
  double sum = 0;
  for (const float value : x) sum += static_cast<double>(value) * value;
  return std::sqrt(sum / static_cast<double>(x.size()));
}

std::vector<float> minus(std::vector<float> a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return a;
}

// A prefill of 80 tokens by cuBLAS and five decoded ones after it. How far its logits may be off, as root mean squares:
// a weight and an input are each off by a uniform share of bfloat16's last place, 2^-8 / sqrt(3) of themselves at the lower end of
// a binade and half of that at the upper, 0.72 times the former over evenly spread mantissas; both together 0.0023 of a product.
// Int8 inputs add a step of 1/127 of the largest of 128, 2.75 standard deviations, as uniform error: 0.0063; inputs that differ a
// little are rounded apart, so sqrt(2) times that. The contract's integer centroids of 5 bits are 0.0074 off (1/127 of 3.26,
// uniform), those of 7 bits nowhere near, cuBLAS's not at all. A logit has passed eight products one after the other (two layers of
// in, out, up and down; the head keeps the contract's bits), whose errors the norms behind them pass on undiminished: sqrt(8) times
// the error of one. The delta rule on tensor cores is off by 2^-20, nothing beside that. Gates and softmax may add to it or take away:
// two and a half times that is allowed, and a quarter asked for, since less would say that cuBLAS had not been used.
TEST_P(EmulatedModel, ByCublasTheLogitsAreOffByTheRoundingOfBfloat16) {
  const Golden golden = tiny_golden("ratio2_multimodal");
  RunSetup setup{.model = golden.model, .format = GetParam().format, .device = "cuda-emulated"};
  setup.options.activations = GetParam().activations;
  setup.options.kv_type = GetParam().kv_type;
  const std::vector<int32_t> tokens(golden.tokens.begin(), golden.tokens.begin() + 85);
  const std::vector<Step> steps = cut_steps(tokens, {80, 1});
  const std::vector<float> contract = run_steps(setup, steps);
  setup.device = "cublas-emulated";
  const int64_t before = simt::gemms();
  const std::vector<float> wide = run_steps(setup, steps);
  EXPECT_GT(simt::gemms(), before);
  const bool int8 = GetParam().activations == ActivationMode::int8, integers = GetParam().format == std::string("pq5");
  const double expected = std::sqrt(8 * (0.0023 * 0.0023 + (int8 ? 2 * 0.0063 * 0.0063 + (integers ? 0.0074 * 0.0074 : 0) : 0)));
  const double error = rms(minus(wide, contract)) / rms(contract);
  EXPECT_LT(error, 2.5 * expected);
  EXPECT_GT(error, expected / 4);
  // Units stay apart and are added by the tree: the stand-in's order depends on the columns of a unit alone, so two ranks give the
  // bits of one. The library promises as much for equal shapes, which matrices cut by rows do not have.
  setup.ranks = 2;
  EXPECT_EQ(first_difference(wide, run_steps(setup, steps)), -1);
  // Steps below the threshold never meet the library.
  const int64_t used = simt::gemms();
  EXPECT_EQ(first_difference(contract, run_steps(setup, cut_steps(tokens, {40, 45, 1}))), -1);
  EXPECT_EQ(simt::gemms(), used);
}

class EmulatedMemory : public testing::TestWithParam<bool> {};

// The plan of a GPU, without and with cuBLAS, against what the backend hands out, to the byte but for tables of centroids and
// rounding.
TEST_P(EmulatedMemory, ThePlanHoldsAndALittleLessDoesNot) {
  const bool cublas = GetParam();
  const std::string directory = std::string(PQ_TEST_DATA) + "/demo";
  const ModelConfig config = load_model_config(directory);
  constexpr int64_t kCount = 96;
  RuntimeOptions options{.context = 300, .slots = 2, .batch = kCount};
  options.place = Place::gpu;
  options.cublas = cublas;
  const std::unique_ptr<Backend> encoder = make_backend("cpu");
  Encoding encoding;
  ASSERT_TRUE(try_parse_encoding("pq5", &encoding));
  QuantizingSource source(directory, tensor_specs(config), Recipe{.policy = Policy(encoding), .scale_search = false}, *encoder);
  const int64_t planned = plan_rank(config, options, source, 0, 1, 0).total() - device_allowance_bytes(cublas);
  const auto run = [&](int64_t limit, bool host_embedding) {
    const int64_t before = simt::memory_used();
    const std::unique_ptr<Backend> backend = make_emulated_cuda_backend(0, limit, cublas ? kWideTileBytes : 0);
    const std::unique_ptr<Communicator> self = make_self_communicator();
    Transformer transformer(config, options, *backend, *self, source, {}, host_embedding);
    std::vector<int32_t> tokens(static_cast<size_t>(kCount));
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 7);
    std::vector<float> logits;
    // In pieces of fewer tokens than attention takes together, at the end of the context: what needs most scratch.
    Step step{.tokens = tokens, .spans = {}, .logit_rows = {0, static_cast<int32_t>(kCount - 1)}};
    for (int64_t row = 0; row < kCount; row += 12)
      step.spans.push_back({.row = row, .tokens = 12, .position = 300 - kCount + row, .slot = 1});
    transformer.run(step, [&](int64_t, const float* row) { logits.insert(logits.end(), row, row + config.vocab); });
    EXPECT_LE(simt::memory_used() - before, limit);
    // A hundredth for what the plan allows and the model does not need at one rank.
    EXPECT_GE(simt::memory_used() - before, planned / 100 * 99 - (host_embedding ? planned : 0));
    return logits;
  };
  constexpr int64_t kTables = 64 << 10;
  const std::vector<float> logits = run(planned + kTables, false);
  try {
    run(planned / 100 * 95, false);
    ADD_FAILURE() << "less than the plan sufficed";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::environment);
    EXPECT_NE(std::string(error.what()).find("no device memory for a buffer of"), std::string::npos) << error.what();
  }
  if (!config.tied) {
    const int64_t embedding = embedding_bytes(config, source, 0, 1);
    EXPECT_EQ(first_difference(logits, run(planned + kTables - embedding, true)), -1);
  }
}

// Loading needs more than a small state and a small step: the memory by way of which 5-bit matrices are arranged is in the plan
// too.
TEST(EmulatedLoading, IsInThePlanOfASmallModel) {
  const std::string directory = std::string(PQ_TEST_DATA) + "/demo";
  const ModelConfig config = load_model_config(directory);
  RuntimeOptions options{.context = 16, .slots = 1, .batch = 1};
  options.place = Place::gpu;
  const std::unique_ptr<Backend> encoder = make_backend("cpu");
  Encoding encoding;
  ASSERT_TRUE(try_parse_encoding("pq5", &encoding));
  QuantizingSource source(directory, tensor_specs(config), Recipe{.policy = Policy(encoding), .scale_search = false}, *encoder);
  const MemoryPlan plan = plan_rank(config, options, source, 0, 1, 0);
  EXPECT_EQ(plan.workspace + plan.kv_cache + plan.delta_state + plan.conv_state, kDeviceStagingBytes + kDeviceBounceBytes);
  const std::unique_ptr<Backend> backend = make_emulated_cuda_backend();
  const std::unique_ptr<Communicator> self = make_self_communicator();
  Transformer transformer(config, options, *backend, *self, source, {}, false);
  transformer.run({.tokens = {1}, .spans = {{.row = 0, .tokens = 1, .position = 0, .slot = 0}}, .logit_rows = {0}},
                  [](int64_t, const float*) {});
  constexpr int64_t kTables = 64 << 10;
  EXPECT_LE(dynamic_cast<const DeviceMeasure&>(*backend).peak_bytes(), plan.total() - device_allowance_bytes(false) + kTables);
}

INSTANTIATE_TEST_SUITE_P(Devices, EmulatedMemory, testing::Bool(),
                         [](const auto& info) { return std::string(info.param ? "cublas" : "codes"); });

INSTANTIATE_TEST_SUITE_P(Golden, EmulatedModel,
                         testing::Values(Case{"pq5_int8_f16", "pq5", ActivationMode::int8, KvType::f16},
                                         Case{"pq5_f32_f32", "pq5", ActivationMode::f32, KvType::f32},
                                         Case{"pq7_int8_f16", "pq7", ActivationMode::int8, KvType::f16},
                                         Case{"int4a_f32_f32", "int4a", ActivationMode::f32, KvType::f32},
                                         Case{"bf16_f32_f32", "bf16", ActivationMode::f32, KvType::f32}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace pq
