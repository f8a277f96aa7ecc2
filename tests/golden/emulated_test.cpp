// Whole models on the CUDA kernels under emulation: the logits of the cpu backend, bit for bit, at every rank count, cut and cache
// type. Emulation shows arithmetic and indexing; tests/gpu/RESULTS.md says what it cannot show.
#include <ostream>

#include "golden/golden_model.h"
#include "kernels/device_memory.h"
#include "tests/support/simt/simt.h"

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

// The plan of a GPU against what the backend hands out, to the byte but for tables of centroids and rounding.
TEST(EmulatedMemory, ThePlanHoldsAndALittleLessDoesNot) {
  const std::string directory = std::string(PQ_TEST_DATA) + "/demo";
  const ModelConfig config = load_model_config(directory);
  RuntimeOptions options{.context = 300, .slots = 2, .batch = 48};
  options.place = Place::gpu;
  const std::unique_ptr<Backend> encoder = make_backend("cpu");
  Encoding encoding;
  ASSERT_TRUE(try_parse_encoding("pq5", &encoding));
  QuantizingSource source(directory, tensor_specs(config), Recipe{.policy = Policy(encoding), .scale_search = false}, *encoder);
  const int64_t planned = plan_rank(config, options, source, 0, 1, 0).total() - kDeviceContextBytes;
  const auto run = [&](int64_t limit, bool host_embedding) {
    const int64_t before = simt::memory_used();
    const std::unique_ptr<Backend> backend = make_emulated_cuda_backend(0, limit);
    const std::unique_ptr<Communicator> self = make_self_communicator();
    Transformer transformer(config, options, *backend, *self, source, {}, host_embedding);
    std::vector<int32_t> tokens(48);
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 7);
    std::vector<float> logits;
    // In pieces of fewer tokens than attention takes together, at the end of the context: what needs most scratch.
    Step step{.tokens = tokens, .spans = {}, .logit_rows = {0, 47}};
    for (int64_t row = 0; row < 48; row += 12) step.spans.push_back({.row = row, .tokens = 12, .position = 252 + row, .slot = 1});
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

INSTANTIATE_TEST_SUITE_P(Golden, EmulatedModel,
                         testing::Values(Case{"pq5_int8_f16", "pq5", ActivationMode::int8, KvType::f16},
                                         Case{"pq5_f32_f32", "pq5", ActivationMode::f32, KvType::f32},
                                         Case{"pq7_int8_f16", "pq7", ActivationMode::int8, KvType::f16},
                                         Case{"int4a_f32_f32", "int4a", ActivationMode::f32, KvType::f32},
                                         Case{"bf16_f32_f32", "bf16", ActivationMode::f32, KvType::f32}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace pq
