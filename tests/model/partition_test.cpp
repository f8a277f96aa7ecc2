// The catalogue of tensors and its cuts against the published totals of the five dense sizes, legal rank counts, and the memory
// plan.
#include "model/partition.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "base/error.h"
#include "kernels/device_memory.h"
#include "model/state.h"
#include "model/transformer.h"

namespace pq {
namespace {

ModelConfig published(const std::string& size) { return load_model_config(PQ_TEST_DATA "/configs/qwen3.5-" + size + ".json"); }

// Delivers every matrix as 5-bit codes and everything else as fp32, without any data.
class PlannedSource : public WeightSource {
 public:
  WeightInfo info(const TensorSpec& spec) const override {
    WeightInfo info;
    const int64_t count = spec.rows * spec.cols;
    info.bytes = 4 * count;
    if (spec.matrix) {
      info.format = WeightFormat::polar;
      info.bits = 5;
      info.bytes = count / kBlock * 82;
    }
    return info;
  }
  void load(const TensorSpec&, int64_t, int64_t, void*, uint16_t*, uint16_t*) override {}
  std::string description() const override { return "planned"; }
};

struct PublishedSize {
  const char* name;
  int64_t text_parameters;
  std::vector<int> legal;
};

class PublishedSizes : public testing::TestWithParam<PublishedSize> {};

TEST_P(PublishedSizes, ParametersAddUpToThePublishedTotal) {
  int64_t parameters = 0;
  for (const TensorSpec& spec : tensor_specs(published(GetParam().name))) parameters += spec.rows * spec.cols;
  EXPECT_EQ(parameters, GetParam().text_parameters);
}

TEST_P(PublishedSizes, LegalRankCounts) { EXPECT_EQ(legal_rank_counts(published(GetParam().name)), GetParam().legal); }

TEST_P(PublishedSizes, SlicesAreDisjointAndCoverEveryTensor) {
  const ModelConfig config = published(GetParam().name);
  for (const int ranks : legal_rank_counts(config)) {
    for (const TensorSpec& spec : tensor_specs(config)) {
      std::map<int64_t, int> owners;
      for (int rank = 0; rank < ranks; ++rank) {
        const PieceRange owned = owned_pieces(spec, rank, ranks);
        for (int64_t piece = owned.first; piece < owned.first + owned.count; ++piece) ++owners[piece];
      }
      ASSERT_EQ(static_cast<int64_t>(owners.size()), spec.pieces) << spec.name;
      const int copies = spec.split == Split::replicated      ? ranks
                         : spec.shared && ranks > spec.pieces ? ranks / static_cast<int>(spec.pieces)
                                                              : 1;
      for (const auto& [piece, count] : owners) {
        EXPECT_GE(piece, 0);
        EXPECT_LT(piece, spec.pieces);
        EXPECT_EQ(count, copies) << spec.name;
      }
    }
  }
}

TEST_P(PublishedSizes, RowParallelPiecesAreWholeBlocks) {
  for (const TensorSpec& spec : tensor_specs(published(GetParam().name))) {
    if (spec.split == Split::cols) {
      EXPECT_EQ(spec.cols / spec.pieces % kBlock, 0) << spec.name;
    }
    if (spec.split == Split::rows) {
      EXPECT_EQ(spec.rows % spec.pieces, 0) << spec.name;
    }
  }
}

// Text parameters: spec of Qwen3.5 §1.2. 2B and 0.8B: 28 and 48 down_proj blocks, 2 kv heads.
INSTANTIATE_TEST_SUITE_P(Dense, PublishedSizes,
                         testing::Values(PublishedSize{"27b", 26'895'998'464, {1, 2, 4, 8}},
                                         PublishedSize{"9b", 8'953'803'264, {1, 2, 4, 8}},
                                         PublishedSize{"4b", 4'205'751'296, {1, 2, 4, 8}},
                                         PublishedSize{"2b", 1'881'825'088, {1, 2, 4, 8}},
                                         PublishedSize{"0.8b", 752'393'024, {1, 2, 4}}),
                         [](const auto& info) {
                           std::string name = info.param.name;
                           for (char& c : name)
                             if (c == '.') c = '_';
                           return "qwen" + name;
                         });

TEST(Partition, FusedProjectionIsThreeMatrices) {
  const ModelConfig config = published("27b");
  std::map<std::string, std::pair<int64_t, int64_t>> rows;
  for (const TensorSpec& spec : tensor_specs(config))
    if (spec.source == "layers.0.linear_attn.in_proj_qkv.weight") rows[spec.name] = {spec.source_row, spec.rows};
  const std::map<std::string, std::pair<int64_t, int64_t>> expected = {{"layers.0.linear_attn.in_proj_q.weight", {0, 2048}},
                                                                       {"layers.0.linear_attn.in_proj_k.weight", {2048, 2048}},
                                                                       {"layers.0.linear_attn.in_proj_v.weight", {4096, 6144}}};
  EXPECT_EQ(rows, expected);
}

TEST(Partition, OtherRankCountsAreRefusedWithTheLegalOnes) {
  const ModelConfig config = published("27b");
  for (const int ranks : {3, 5, 6, 16}) {
    try {
      check_rank_count(config, ranks);
      ADD_FAILURE() << ranks << " ranks accepted";
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::usage);
      EXPECT_NE(std::string(e.what()).find("1, 2, 4, 8"), std::string::npos) << e.what();
      EXPECT_NE(std::string(e.what()).find(std::to_string(ranks) + " ranks"), std::string::npos) << e.what();
    }
  }
}

// Spec of Qwen3.5 §6.5: body, embedding and head at 5.125 bits is 8.63 GB a rank at two ranks with in_proj_a and in_proj_b in BF16;
// held in fp32 they add 23.6 MB.
TEST(MemoryPlanOf27B, TwoRanksFitTenGigabytes) {
  const ModelConfig config = published("27b");
  const PlannedSource source;
  const int64_t weights = weight_bytes(config, source, 0, 2);
  EXPECT_NEAR(static_cast<double>(weights), 8.63e9 + 23.6e6, 0.02e9);
  RuntimeOptions options;
  options.context = 8192;
  const MemoryPlan plan = plan_memory(config, options, 0, 2, weights, 10'000'000'000);
  // 16 attention layers * (K, V) * 2 kv heads * 256 * 2 bytes * 8192 positions
  EXPECT_EQ(plan.kv_cache, 16 * 2 * 2 * 256 * 2 * int64_t{8192});
  // 48 layers of 24 heads * 128 * 128, plus 16 pending rows of 8 * 128 keys, 24 * 128 deltas and 24 decays, all fp32
  EXPECT_EQ(plan.delta_state, 48 * int64_t{4} * (24 * 128 * 128 + 16 * (8 * 128 + 24 * 128 + 24)));
  // Four inputs of 2 * 8 * 128 + 24 * 128 channels.
  EXPECT_EQ(plan.conv_state, 48 * 4 * 4 * int64_t{5120});
  EXPECT_LE(plan.total(), 10'000'000'000);
  EXPECT_GT(plan.largest_context, 8192);
}

TEST(MemoryPlanOf27B, LargestContextIsExact) {
  const ModelConfig config = published("27b");
  const PlannedSource source;
  const int64_t weights = weight_bytes(config, source, 0, 2);
  RuntimeOptions options;
  const int64_t limit = 10'000'000'000;
  options.context = plan_memory(config, options, 0, 2, weights, limit).largest_context;
  ASSERT_GT(options.context, 0);
  EXPECT_LE(plan_memory(config, options, 0, 2, weights, limit).total(), limit);
  ++options.context;
  EXPECT_GT(plan_memory(config, options, 0, 2, weights, limit).total(), limit);
}

// Of a GPU, whose attention keeps more of a single token the more positions there are: with a small step that is most of its
// scratch. At 16 tokens of two ranks it is 12 heads, blocks of 128 positions, 258 floats.
TEST(MemoryPlanOf27B, LargestContextIsExactForSmallSteps) {
  const ModelConfig config = published("27b");
  const PlannedSource source;
  for (const int ranks : {1, 2}) {
    for (const int64_t batch : {1, 4, 16, 64, 256}) {
      for (const int64_t context : {64, 1024, 4096}) {
        RuntimeOptions options{.context = context, .batch = batch};
        options.place = Place::gpu;
        const int64_t limit = 22'000'000'000 / ranks;
        const int64_t most = plan_rank(config, options, source, 0, ranks, limit).largest_context;
        ASSERT_GT(most, 4096);
        ASSERT_LT(most, config.max_position);
        options.context = most;
        const MemoryPlan plan = plan_rank(config, options, source, 0, ranks, limit);
        EXPECT_LE(plan.total(), limit) << batch << " on " << ranks;
        EXPECT_EQ(plan.largest_context, most) << batch << " from " << context;
        ++options.context;
        EXPECT_GT(plan_rank(config, options, source, 0, ranks, limit).total(), limit) << batch << " on " << ranks;
      }
    }
  }
}

// A context so short that it cuts the step says what a step that is not cut leaves room for.
TEST(MemoryPlanOf27B, LargestContextIsThatOfTheBatchAskedFor) {
  const ModelConfig config = published("27b");
  const PlannedSource source;
  const int64_t weights = weight_bytes(config, source, 0, 2), limit = 10'000'000'000;
  const RuntimeOptions whole{.context = 4096, .batch = 2048}, cut{.context = 16, .batch = 16, .asked_batch = 2048};
  EXPECT_EQ(plan_memory(config, cut, 0, 2, weights, limit).largest_context,
            plan_memory(config, whole, 0, 2, weights, limit).largest_context);
}

TEST(MemoryPlanOf27B, OneRankDoesNotFit) {
  const ModelConfig config = published("27b");
  const PlannedSource source;
  const MemoryPlan plan = plan_memory(config, RuntimeOptions{}, 0, 1, weight_bytes(config, source, 0, 1), 10'000'000'000);
  EXPECT_GT(plan.total(), 10'000'000'000);
  EXPECT_EQ(plan.largest_context, 0);
}

// A GPU holds what a CPU rank holds, but for the process, the window and rank 0's rows of logits, and its own context, staging,
// sums of units (4 of them, 256 tokens) and packets of two senders.
TEST(MemoryPlanOf27B, TwoGpusOfTenGigabytesHoldSixteenThousandPositions) {
  const ModelConfig config = published("27b");
  const PlannedSource source;
  RuntimeOptions options;
  options.context = 16384;
  const MemoryPlan host = plan_rank(config, options, source, 0, 2, 0);
  options.place = Place::gpu;
  const MemoryPlan all = plan_rank(config, options, source, 0, 2, 0);
  EXPECT_EQ(all.weights, host.weights);
  EXPECT_EQ(all.host_embedding, 0);
  EXPECT_EQ(all.kv_cache, host.kv_cache);
  EXPECT_EQ(all.process, kDeviceContextBytes);
  EXPECT_EQ(all.graphs, kDeviceGraphBytes);
  EXPECT_EQ(host.graphs, 0);
  EXPECT_EQ(all.workspace - host.workspace, kDeviceStagingBytes + 4 * 256 * int64_t{4 * 5120});
  EXPECT_EQ(all.communication, 2 * 2 * 8 * kPushPieceFloats);
  // cuBLAS: its code, its workspace, a tile of weights; inputs of half the intermediate width where a step has enough tokens.
  options.cublas = true;
  for (const int64_t batch : {int64_t{16}, int64_t{256}, int64_t{2048}}) {
    RuntimeOptions without = options;
    without.batch = options.batch = batch;
    without.cublas = false;
    const MemoryPlan with = plan_rank(config, options, source, 0, 2, 0), codes = plan_rank(config, without, source, 0, 2, 0);
    EXPECT_EQ(with.process - codes.process, kCublasBytes);
    EXPECT_EQ(with.workspace - codes.workspace,
              kWideTileBytes + kCublasWorkspaceBytes + (batch < kWideTokens ? 0 : 2 * batch * 8704));
    EXPECT_EQ(with.kv_cache, codes.kv_cache);
  }
  options.cublas = false;
  options.batch = 256;
  // With room for NCCL the embedding has to leave: half of 248,320 rows of 5120 weights at 41/64 byte.
  options.nccl = true;
  for (int rank : {0, 1}) {
    const MemoryPlan plan = plan_rank(config, options, source, rank, 2, 10'000'000'000);
    EXPECT_EQ(plan.host_embedding, int64_t{248320} / 2 * 5120 / 64 * 41);
    EXPECT_EQ(plan.weights, all.weights - plan.host_embedding);
    EXPECT_EQ(plan.communication, all.communication + kNcclBytes);
    EXPECT_LE(plan.total(), 10'000'000'000);
    EXPECT_GE(plan.largest_context, 16384);
    RuntimeOptions longest = options;
    longest.context = plan.largest_context;
    EXPECT_LE(plan_rank(config, longest, source, rank, 2, 10'000'000'000).total(), 10'000'000'000);
    ++longest.context;
    EXPECT_GT(plan_rank(config, longest, source, rank, 2, 10'000'000'000).total(), 10'000'000'000);
  }
  // A short context leaves it on the device and promises no less.
  RuntimeOptions shortest = options;
  shortest.context = 1024;
  const MemoryPlan small = plan_rank(config, shortest, source, 0, 2, 10'000'000'000);
  EXPECT_EQ(small.host_embedding, 0);
  EXPECT_EQ(small.largest_context, plan_rank(config, options, source, 0, 2, 10'000'000'000).largest_context);
  // Where all of it fits it stays; tied embeddings stay in any case.
  EXPECT_EQ(plan_rank(config, options, source, 0, 2, 24'000'000'000).host_embedding, 0);
  const ModelConfig tied = published("0.8b");
  ASSERT_TRUE(tied.tied);
  EXPECT_EQ(plan_rank(tied, options, source, 0, 2, 1'000'000).host_embedding, 0);
}

// A row of 256 values is 256 int8 and 8 fp16 scales.
TEST(MemoryPlanOf27B, EightBitCache) {
  const ModelConfig config = published("27b");
  RuntimeOptions options;
  options.context = 8192;
  options.kv_type = KvType::q8;
  EXPECT_EQ(plan_memory(config, options, 0, 2, 0, 0).kv_cache, 16 * 2 * 2 * (256 + 8 * 2) * int64_t{8192});
}

TEST(Partition, EightBitCacheNeedsHeadsOfWholeGroups) {
  ModelConfig config = published("27b");
  config.head_dim = 80;
  RuntimeOptions options;
  options.kv_type = KvType::q8;
  try {
    layer_state_size(config, options, 2);
    ADD_FAILURE() << "heads of 80 accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::usage);
    EXPECT_NE(std::string(e.what()).find("a multiple of 32, this model's have 80; take --kv-type f16"), std::string::npos)
        << e.what();
  }
}

TEST(StepMessage, RoundTripAndMalformed) {
  Step step;
  step.tokens = {5, 6, 7};
  step.spans = {{0, 2, 10, 0}, {2, 1, 0, 3}};
  step.logit_rows = {2};
  const std::vector<uint8_t> bytes = serialize_step(step);
  const Step back = parse_step(bytes);
  EXPECT_EQ(back.tokens, step.tokens);
  EXPECT_EQ(back.logit_rows, step.logit_rows);
  ASSERT_EQ(back.spans.size(), 2u);
  EXPECT_EQ(back.spans[1].slot, 3);
  EXPECT_EQ(back.spans[0].position, 10);
  for (size_t length = 0; length < bytes.size(); ++length)
    EXPECT_THROW(parse_step(std::vector<uint8_t>(bytes.begin(), bytes.begin() + static_cast<long>(length))), Error);
}

}  // namespace
}  // namespace pq
