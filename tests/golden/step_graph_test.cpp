// Steps recorded as CUDA graphs, under emulation: whole models decoded at one and several ranks give the logits of the cpu backend,
// bit for bit, while positions, slots and ids change from step to step; the emulated runtime refuses allocation and waiting while a
// step is recorded, so that a graph that is launched is proof of neither.
#include "comm/sum_choice.h"
#include "golden/golden_model.h"
#include "kernels/device_memory.h"
#include "tests/support/simt/simt.h"

namespace pq {
namespace {

// A step of one token each of several sequences: {token, position, slot}.
Step decode_step(const std::vector<std::array<int64_t, 3>>& tokens) {
  Step step;
  for (const auto& [token, position, slot] : tokens) {
    const int64_t row = static_cast<int64_t>(step.tokens.size());
    step.tokens.push_back(static_cast<int32_t>(token));
    step.spans.push_back({.row = row, .tokens = 1, .position = position, .slot = slot});
    step.logit_rows.push_back(static_cast<int32_t>(row));
  }
  return step;
}

// Two sequences: prompts, then decoding alone and together, in changing order, over the end of a bucket of positions (128) and of
// chunks of the delta rule; in between a prompt that is longer than all before, for which scratch memory moves.
std::vector<Step> conversation(const std::vector<int32_t>& tokens) {
  std::vector<Step> steps = cut_steps({tokens.begin(), tokens.begin() + 3}, {3}, 0);
  int64_t first = 3, second = 0;
  const auto token = [&](int64_t position) { return static_cast<int64_t>(tokens[static_cast<size_t>(position) % tokens.size()]); };
  for (int i = 0; i < 4; ++i, ++first) steps.push_back(decode_step({{token(first), first, 0}}));
  Step prompt;
  for (second = 0; second < 120; ++second) prompt.tokens.push_back(static_cast<int32_t>(token(7 * second + 1)));
  prompt.spans = {{.row = 0, .tokens = second, .position = 0, .slot = 1}};
  prompt.logit_rows = {119};
  steps.push_back(prompt);
  for (int i = 0; i < 4; ++i, ++first) steps.push_back(decode_step({{token(first), first, 0}}));
  for (int i = 0; i < 14; ++i, ++first, ++second) {
    const std::array<int64_t, 3> a{token(first), first, 0}, b{token(3 * second), second, 1};
    steps.push_back(i % 2 == 0 ? decode_step({a, b}) : decode_step({b, a}));
  }
  return steps;
}

// The steps that are launched as graphs: all of one token a sequence but the first two of each number of tokens and bucket, of
// which the second records. Moved memory makes one more recording, not another plain step.
constexpr int64_t kDecodeSteps = 4 + 4 + 14;
constexpr int64_t kPlainSteps = 3;  // one sequence; two, below 128; two, beyond

RunSetup small_setup(const std::string& model) {
  RunSetup setup{.model = model, .format = "pq5"};
  setup.options = {.context = 160, .slots = 2, .batch = 128, .activations = ActivationMode::int8, .kv_type = KvType::f16};
  return setup;
}

TEST(EmulatedSteps, AreReplayedWithTheBitsOfTheHost) {
  const Golden golden = tiny_golden("ratio2_multimodal");
  RunSetup setup = small_setup(golden.model);
  const std::vector<Step> steps = conversation(golden.tokens);
  const std::vector<float> expected = run_steps(setup, steps);
  setup.device = "cuda-emulated";
  const int64_t before = simt::graph_launches();
  EXPECT_EQ(first_difference(expected, run_steps(setup, steps)), -1);
  EXPECT_EQ(simt::graph_launches() - before, kDecodeSteps - kPlainSteps);
}

// Sums that pass through the host are no part of a graph.
TEST(EmulatedSteps, WithSumsOnTheHostAreNotRecorded) {
  const Golden golden = tiny_golden("ratio2_multimodal");
  RunSetup setup = small_setup(golden.model);
  const std::vector<Step> steps = conversation(golden.tokens);
  const std::vector<float> expected = run_steps(setup, steps);
  setup.device = "cuda-emulated";
  setup.ranks = 2;
  const int64_t before = simt::graph_launches();
  EXPECT_EQ(first_difference(expected, run_steps(setup, steps)), -1);
  EXPECT_EQ(simt::graph_launches(), before);
}

// Ranks as threads, sums by pushing: the sums are in the graphs.
TEST(EmulatedSteps, OfTwoRanksAreReplayedWithTheirSums) {
  const Golden golden = tiny_golden("ratio2_multimodal");
  const RunSetup setup = small_setup(golden.model);
  const std::vector<Step> steps = conversation(golden.tokens);
  const std::vector<float> expected = run_steps(setup, steps);
  const ModelConfig config = load_model_config(setup.model);
  const int64_t before = simt::graph_launches();
  std::vector<float> logits;
  run_threads(2, [&](Communicator& comm) {
    const std::unique_ptr<Backend> backend = make_emulated_cuda_backend(comm.rank());
    const std::unique_ptr<Backend> encoder = make_backend("cpu");
    const RankExchange exchange{
        .rank = comm.rank(),
        .ranks = comm.size(),
        .one_node = true,
        .all_gather = [&comm](const void* data, int64_t bytes, void* out) { comm.all_gather(data, bytes, out); }};
    const std::unique_ptr<DeviceSum> sum = make_emulated_sum(*backend, "p2p", exchange, 60);
    const std::unique_ptr<Communicator> device = make_device_communicator(comm, *sum);
    Encoding encoding;
    require(try_parse_encoding(setup.format, &encoding), "format of a test setup");
    QuantizingSource source(setup.model, tensor_specs(config), Recipe{.policy = Policy(encoding), .scale_search = false}, *encoder);
    Transformer transformer(config, setup.options, *backend, *device, source, {});
    std::function<void(int64_t, const float*)> consume;
    if (comm.rank() == 0) consume = [&](int64_t, const float* row) { logits.insert(logits.end(), row, row + config.vocab); };
    for (const Step& step : steps) transformer.run(step, consume);
    comm.barrier();
  });
  EXPECT_EQ(first_difference(expected, logits), -1);
  EXPECT_EQ(simt::graph_launches() - before, 2 * (kDecodeSteps - kPlainSteps));
}

// What follows works on one number of the device: a step adds its token's embedding to it.
class StepsTest : public ::testing::Test {
 protected:
  StepsTest() : backend_(make_emulated_cuda_backend()), memory_(backend_->allocate(4096)) {
    std::vector<float> table(256);
    for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<float>(i);
    backend_->upload(memory_.data(), table.data(), 1024);
  }
  // Returns the remark.
  std::string step(int32_t id, int64_t position, StepKey key, const std::function<void()>& more = {}) {
    const Span span{.row = 0, .tokens = 1, .position = position, .slot = 0};
    const StepArgs args{.ids = &id, .tokens = 1, .spans = {&span, 1}, .key = key};
    return backend_->run_step(args, [&] {
      float* value = memory_.as<float>() + 256;
      backend_->embed(
          {.y = value, .ids = args.ids, .tokens = 1, .table = {.rows = 256, .cols = 1, .data = memory_.data()}, .first_row = 0});
      if (more) more();
      // Adds value to the one behind it; the norm itself goes to where nobody looks.
      backend_->rms_norm({.y = value + 2,
                          .x = value + 1,
                          .weight = value,
                          .rows = 1,
                          .dim = 1,
                          .eps = 1.0f,
                          .weight_offset = 0.0f,
                          .added = value,
                          .sum = value + 1});
      sum_ += static_cast<float>(id);
    });
  }
  float total() {
    float value = 0;
    backend_->download(&value, memory_.as<float>() + 257, 4);
    return value;
  }

  std::unique_ptr<Backend> backend_;
  Buffer memory_;
  float sum_ = 0;  // over the times that the body ran
};

TEST_F(StepsTest, BodiesRunTwiceAndThenTheirRecordingDoes) {
  const int64_t before = simt::graph_launches();
  for (int32_t id = 1; id <= 5; ++id) EXPECT_EQ(step(id, id, {.owner = 1, .tokens = 1}), "");
  EXPECT_EQ(total(), 15.0f);
  EXPECT_EQ(sum_, 3.0f);
  EXPECT_EQ(simt::graph_launches() - before, 4);
  // Another bucket of positions, another key, and no key at all are other steps.
  step(10, 200, {.owner = 1, .tokens = 1});
  step(10, 1, {.owner = 2, .tokens = 1});
  step(10, 1, {});
  step(10, 1, {});
  EXPECT_EQ(total(), 55.0f);
  EXPECT_EQ(sum_, 43.0f);
  EXPECT_EQ(simt::graph_launches() - before, 4);
}

TEST_F(StepsTest, ABoundedNumberIsKept) {
  for (int round = 0; round < 3; ++round) {
    for (int64_t owner = 1; owner <= 60; ++owner) step(1, 0, {.owner = owner, .tokens = 1});
  }
  EXPECT_EQ(total(), 180.0f);
  EXPECT_EQ(sum_, 180.0f);
}

TEST_F(StepsTest, MoreMemoryThanIsPlannedForThemIsSaidOnce) {
  for (const auto& [bytes, said] : {std::array<int64_t, 2>{kDeviceGraphBytes / 9, 1}, {kDeviceGraphBytes / 10, 0}}) {
    backend_ = make_emulated_cuda_backend();
    simt::set_graph_bytes(bytes);
    int64_t remarks = 0;
    for (int round = 0; round < 3; ++round) {
      for (int64_t owner = 1; owner <= 10; ++owner) {
        const std::string remark = step(1, 0, {.owner = owner, .tokens = 1});
        if (remark.empty()) continue;
        EXPECT_EQ(remark, "recorded steps take 77 MB of the device, more than the 70 planned for them");
        ++remarks;
      }
    }
    EXPECT_EQ(remarks, said);
  }
  simt::set_graph_bytes(0);
  EXPECT_EQ(total(), 60.0f);
}

// As when memory is short: the recording is given back and so are those before it.
TEST_F(StepsTest, OneThatCannotBePutOnTheDeviceIsGivenBack) {
  for (int round = 0; round < 2; ++round) step(1, 0, {.owner = 1, .tokens = 1});
  EXPECT_EQ(simt::graphs_alive(), 1);
  step(1, 0, {.owner = 2, .tokens = 1});
  simt::refuse_graphs(true);
  const std::string remark = step(1, 0, {.owner = 2, .tokens = 1});
  simt::refuse_graphs(false);
  EXPECT_NE(remark.find("not as CUDA graphs"), std::string::npos) << remark;
  EXPECT_EQ(simt::graphs_alive(), 0);
  EXPECT_EQ(total(), 4.0f);
}

TEST_F(StepsTest, WhatCannotBeRecordedRunsAsItIsAndIsSaidOnce) {
  const int64_t before = simt::graph_launches();
  const auto wait = [&] { backend_->synchronize(); };
  EXPECT_EQ(step(1, 0, {.owner = 1, .tokens = 1}, wait), "");
  const std::string remark = step(2, 0, {.owner = 1, .tokens = 1}, wait);
  EXPECT_NE(remark.find("not as CUDA graphs"), std::string::npos) << remark;
  EXPECT_NE(remark.find("not permitted when stream is capturing"), std::string::npos) << remark;
  EXPECT_EQ(step(3, 0, {.owner = 1, .tokens = 1}, wait), "");
  EXPECT_EQ(step(4, 0, {.owner = 2, .tokens = 1}), "");
  EXPECT_EQ(step(5, 0, {.owner = 2, .tokens = 1}), "");
  EXPECT_EQ(total(), 15.0f);
  EXPECT_EQ(simt::graph_launches(), before);
}

TEST_F(StepsTest, MemoryCannotBeTakenWhileRecording) {
  Buffer taken;
  const auto take = [&] { taken = backend_->allocate(64); };
  EXPECT_EQ(step(1, 0, {.owner = 1, .tokens = 1}, take), "");
  EXPECT_NE(step(2, 0, {.owner = 1, .tokens = 1}, take), "");
  EXPECT_EQ(total(), 3.0f);
}

}  // namespace
}  // namespace pq
