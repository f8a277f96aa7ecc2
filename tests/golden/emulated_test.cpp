// Whole models on the CUDA kernels under emulation: the logits of the cpu backend, bit for bit, at every rank count, cut and cache
// type. Emulation shows arithmetic and indexing; tests/gpu/RESULTS.md says what it cannot show.
#include <ostream>

#include "golden/golden_model.h"
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

INSTANTIATE_TEST_SUITE_P(Golden, EmulatedModel,
                         testing::Values(Case{"pq5_int8_f16", "pq5", ActivationMode::int8, KvType::f16},
                                         Case{"pq5_f32_f32", "pq5", ActivationMode::f32, KvType::f32},
                                         Case{"pq7_int8_f16", "pq7", ActivationMode::int8, KvType::f16},
                                         Case{"int4a_f32_f32", "int4a", ActivationMode::f32, KvType::f32},
                                         Case{"bf16_f32_f32", "bf16", ActivationMode::f32, KvType::f32}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace pq
