// Synthetic weights, and through them the widest partition: a model of eight units gives the same bits on 1, 2, 4 and 8 ranks, with
// kv heads replicated at 8 and a vocabulary that only half of the ranks share.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/error.h"
#include "eval/bench.h"
#include "eval/synthetic_source.h"
#include "model/transformer.h"

namespace pq {
namespace {

// Eight units: 8 key heads, 8 query heads, 8 blocks of inputs everywhere; 4 kv heads; 2 * odd vocabulary rows.
ModelConfig eight_units() {
  ModelConfig c;
  c.model_type = "qwen3_5_text";
  c.hidden = 128;
  c.intermediate = 1024;
  c.layers = 4;
  c.layer_kinds = {LayerKind::delta, LayerKind::delta, LayerKind::delta, LayerKind::attention};
  c.heads = 8;
  c.kv_heads = 4;
  c.head_dim = 128;
  c.rotary_dim = 32;
  c.rope_theta = 1e6;
  c.key_heads = 8;
  c.value_heads = 16;
  c.key_dim = 32;
  c.value_dim = 64;
  c.vocab = 2 * 151;
  c.max_position = 1024;
  c.rms_norm_eps = 1e-6f;
  return c;
}

std::vector<float> logits_of(const ModelConfig& config, int ranks, WeightFormat format, ActivationMode activations) {
  std::vector<float> logits;
  RuntimeOptions options;
  options.context = 64;
  options.batch = 24;
  options.activations = activations;
  run_threads(ranks, [&](Communicator& comm) {
    const std::unique_ptr<Backend> backend = make_backend("cpu");
    SyntheticSource source(format, 5);
    Transformer model(config, options, *backend, comm, source, nullptr);
    for (int64_t position = 0; position < 41;) {
      Step step;
      const int64_t count = position == 0 ? 20 : 7;
      for (int64_t i = 0; i < count; ++i) {
        step.tokens.push_back(static_cast<int32_t>((position + i) * 37 % config.vocab));
        step.logit_rows.push_back(static_cast<int32_t>(i));
      }
      step.spans.push_back({0, count, position, 0});
      position += count;
      model.run(step, [&](int64_t, const float* row) { logits.insert(logits.end(), row, row + config.vocab); });
    }
  });
  return logits;
}

TEST(EightUnits, LegalRankCounts) { EXPECT_EQ(legal_rank_counts(eight_units()), (std::vector<int>{1, 2, 4, 8})); }

TEST(EightUnits, SameBitsAtEveryRankCount) {
  for (const WeightFormat format : {WeightFormat::polar, WeightFormat::bf16}) {
    const std::vector<float> one = logits_of(eight_units(), 1, format, ActivationMode::int8);
    ASSERT_EQ(one.size(), 41u * 302u);
    for (const float value : one) ASSERT_TRUE(std::isfinite(value));
    for (const int ranks : {2, 4, 8}) {
      const std::vector<float> many = logits_of(eight_units(), ranks, format, ActivationMode::int8);
      ASSERT_EQ(many.size(), one.size());
      EXPECT_EQ(std::memcmp(many.data(), one.data(), 4 * one.size()), 0) << ranks << " ranks";
    }
  }
}

// Two ranks read what one reads, and the replicated vectors twice.
TEST(SyntheticWeights, BytesOfTheRanksAddUpToTheModel) {
  const ModelConfig config = eight_units();
  const SyntheticSource source(WeightFormat::polar, 5);
  int64_t whole = 0;
  for (const TensorSpec& spec : tensor_specs(config))
    if (spec.name != "embed_tokens.weight") whole += source.info(spec).bytes;
  EXPECT_EQ(token_cost(config, source, 0, 1, true).bytes, whole);
  int64_t halves = 0;
  int64_t replicated = 0;
  for (int rank = 0; rank < 2; ++rank) halves += token_cost(config, source, rank, 2, true).bytes;
  for (const TensorSpec& spec : tensor_specs(config))
    if (spec.split == Split::replicated) replicated += source.info(spec).bytes;
  EXPECT_EQ(halves, whole + replicated);
}

TEST(SyntheticWeights, AreDeterministicAndOfTheFormatAsked) {
  const ModelConfig config = eight_units();
  for (const int bits : {2, 5, 8}) {
    SyntheticSource source(WeightFormat::polar, bits);
    for (const TensorSpec& spec : tensor_specs(config)) {
      if (spec.name != "layers.0.mlp.down_proj.weight") continue;
      const WeightInfo info = source.info(spec);
      EXPECT_EQ(info.bytes, spec.rows * spec.cols / kBlock * (16 * bits + 2));
      const int64_t blocks = spec.rows * spec.cols / kBlock / spec.pieces;
      std::vector<uint8_t> both(static_cast<size_t>(2 * blocks * 16 * bits));
      std::vector<uint8_t> second(both.size() / 2);
      std::vector<uint16_t> norms(static_cast<size_t>(2 * blocks));
      source.load(spec, 2, 2, both.data(), norms.data(), nullptr);
      source.load(spec, 3, 1, second.data(), norms.data(), nullptr);
      EXPECT_EQ(std::memcmp(both.data() + second.size(), second.data(), second.size()), 0);
    }
  }
  EXPECT_THROW(SyntheticSource(WeightFormat::int4, 4), Error);
  EXPECT_THROW(SyntheticSource(WeightFormat::polar, 9), Error);
}

}  // namespace
}  // namespace pq
