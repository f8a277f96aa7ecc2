// The golden models on a GPU where there is one: near the oracle, and the bits of the cpu backend, which golden_test.cpp and
// coded_test.cpp hold against it. Parts of them under emulation everywhere; more of that is in emulated_test.cpp.
#include "golden/golden_model.h"
#include "tests/kernels/staging_backend.h"

namespace pq {
namespace {

class DeviceModel : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (!emulated() && !gpu_or_required()) GTEST_SKIP() << "this machine has no GPU";
  }
  bool emulated() const { return GetParam() == "cuda-emulated"; }
};

TEST_P(DeviceModel, FollowsTheOracleWithTheBitsOfTheHost) {
  for (const std::string name : {"ratio3_full_first", "ratio2_multimodal", "ratio1_flat", "demo"}) {
    if (emulated() && name == "demo") continue;
    const Golden golden = name == "demo" ? demo_golden() : tiny_golden(name);
    const std::vector<int32_t> some(golden.tokens.begin(), golden.tokens.begin() + 19);
    const std::vector<Step> steps = emulated() ? cut_steps(some, {17, 1}) : oracle_steps(golden);
    RunSetup setup{.model = golden.model};
    const std::vector<float> expected = run_steps(setup, steps);
    setup.device = GetParam();
    for (const int ranks : {1, 2}) {
      SCOPED_TRACE(name + ", ranks " + std::to_string(ranks));
      setup.ranks = ranks;
      const std::vector<float> logits = run_steps(setup, steps);
      EXPECT_EQ(first_difference(expected, logits), -1);
      if (!emulated()) {
        EXPECT_LE(golden_error(golden, logits), kTolerance);
      }
    }
  }
}

TEST_P(DeviceModel, GivesTheBitsOfTheHostInEveryFormat) {
  const Golden golden = tiny_golden("ratio2_multimodal");
  const std::vector<int32_t> some(golden.tokens.begin(), golden.tokens.begin() + (emulated() ? 12 : 100));
  const std::vector<Step> steps = cut_steps(some, {static_cast<int64_t>(some.size()) - 2, 1});
  for (const std::string format : {"pq2", "pq3", "pq4", "pq5", "pq6", "pq7", "pq8", "int4", "int4a"})
    for (const auto& [activations, kv_type] :
         {std::pair(ActivationMode::int8, KvType::f16), std::pair(ActivationMode::f32, KvType::f32)}) {
      SCOPED_TRACE(format + (activations == ActivationMode::int8 ? ", int8" : ", f32"));
      RunSetup setup{.model = golden.model, .format = format};
      setup.options.activations = activations;
      setup.options.kv_type = kv_type;
      const std::vector<float> expected = run_steps(setup, steps);
      setup.device = GetParam();
      EXPECT_EQ(first_difference(expected, run_steps(setup, steps)), -1);
    }
}

INSTANTIATE_TEST_SUITE_P(Golden, DeviceModel, testing::Values("cuda", "cuda-emulated"), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace pq
