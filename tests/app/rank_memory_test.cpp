// What is said of a rank's memory, of models on the emulated GPU.
#include "app/rank_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "comm/communicator.h"
#include "kernels/device_measure.h"
#include "kernels/device_memory.h"
#include "store/quantize_source.h"
#include "tests/support/simt/emulated_backend.h"

namespace pq {
namespace {

using testing::HasSubstr;
using testing::MatchesRegex;

// The demo model in 5 bits, planned for a GPU and not loaded. buffer_limit as of the backend.
struct Planned {
  explicit Planned(int64_t buffer_limit) : self(make_self_communicator()), encoder(make_backend("cpu")) {
    const std::string directory = std::string(PQ_TEST_DATA) + "/demo";
    model.config = load_model_config(directory);
    model.runtime = {.context = 8000, .slots = 1, .batch = 32};
    model.runtime.place = Place::gpu;
    Encoding encoding;
    require(try_parse_encoding("pq5", &encoding), "format of a test");
    model.source = std::make_unique<QuantizingSource>(directory, tensor_specs(model.config),
                                                      Recipe{.policy = Policy(encoding), .scale_search = false}, *encoder);
    model.backend = make_emulated_cuda_backend(0, buffer_limit);
    plan(0);
  }
  void plan(int64_t limit) { model.plan = plan_rank(model.config, model.runtime, *model.source, 0, 1, model.memory_limit = limit); }
  void load() {
    model.transformer = std::make_unique<Transformer>(model.config, model.runtime, *model.backend, *self, *model.source,
                                                      std::function<void(int64_t)>());
  }

  std::unique_ptr<Communicator> self;
  std::unique_ptr<Backend> encoder;
  Model model;
};

TEST(RankMemory, OfAGpuNamesWhatIsTakenAndTheLargestContext) {
  Planned planned(0);
  planned.plan(2'000'000'000);
  planned.load();
  const RankMemory memory = rank_memory(planned.model);
  EXPECT_GT(memory.device_bytes, memory.allocated_bytes);
  EXPECT_LE(memory.device_bytes, memory.planned_bytes - device_allowance_bytes(false) + (64 << 10));
  EXPECT_GE(memory.device_taken, memory.device_bytes);
  EXPECT_EQ(memory.largest_context, planned.model.plan.largest_context);
  EXPECT_THAT(memory_text(3, memory), MatchesRegex("rank 3: .* weights, .* state and workspace; planned .*, on the GPU .* in "
                                                   "buffers, .* taken in all; -c [0-9]+ would fit, resident .*"));
}

TEST(RankMemory, OfACpuSaysNothingOfDevices) {
  EXPECT_EQ(memory_text(0, {.planned_bytes = 3'000'000'000,
                            .weight_bytes = 1'000'000'000,
                            .allocated_bytes = 2'000'000'000,
                            .resident_bytes = 2'500'000'000}),
            "rank 0: 1.00 GB weights, 1.00 GB state and workspace; planned 3.00 GB, resident 2.50 GB");
}

// The backend refuses what the plan did not foresee: one line with the plan, what there is, and a context that then loads.
TEST(RankMemory, ThatRunsOutWhileLoadingIsExplained) {
  int64_t advised = 0;
  {
    Planned all(0);
    // Not enough for the other state.
    const int64_t buffers = all.model.plan.weights + all.model.plan.kv_cache + kDeviceStagingBytes;
    Planned planned(buffers);
    planned.model.memory_limit = device_allowance_bytes(false) + buffers;
    std::string why;
    try {
      planned.load();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::environment);
      why = error.what();
    }
    ASSERT_THAT(why, HasSubstr("no device memory for a buffer of"));
    const std::string text = exhausted_text(why, planned.model, 0, 1);
    EXPECT_THAT(text, MatchesRegex("no device memory .*; the plan is .* a rank \\(weights .*\\), there are .* now: a context that "
                                   "fits is -c [0-9]+ at most"));
    EXPECT_EQ(text.find('\n'), std::string::npos);
    const size_t place = text.find("-c ") + 3;
    advised = std::stoll(text.substr(place));
    ASSERT_GT(advised, 0);
    ASSERT_LT(advised, planned.model.runtime.context);
    planned.model.runtime.context = advised;
    EXPECT_NO_THROW(planned.load());
  }
  // Less than the weights.
  Planned none(0);
  none.model.memory_limit = device_allowance_bytes(false) + none.model.plan.weights / 2;
  EXPECT_THAT(exhausted_text("no device memory", none.model, 0, 1), HasSubstr("not even one position fits"));
  EXPECT_EQ(exhausted_text("why", none.model, 0, 1), "why");
}

// As much as fits by the plan, and still refused: less is advised.
TEST(RankMemory, ThatShouldHaveSufficedIsExplainedToo) {
  Planned planned(0);
  EXPECT_THAT(exhausted_text("no device memory: in pieces", planned.model, 0, 1),
              HasSubstr("a context that fits is -c 7999 at most"));
}

}  // namespace
}  // namespace pq
