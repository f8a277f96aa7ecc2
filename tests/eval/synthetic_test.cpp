// Synthetic weights, made on the host and on the emulated device, and through them the widest partition: a model of eight units
// gives the same bits on 1, 2, 4 and 8 ranks, with kv heads replicated at 8 and a vocabulary that only half of the ranks share.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/error.h"
#include "eval/bench.h"
#include "eval/synthetic_source.h"
#include "model/transformer.h"
#include "tests/support/simt/emulated_backend.h"

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

// Counts the tensors that a device does not make.
class CountingSource : public SyntheticSource {
 public:
  using SyntheticSource::SyntheticSource;
  void load(const TensorSpec& spec, int64_t first, int64_t count, void* data, uint16_t* scales, uint16_t* zeros) override {
    ++of_host;
    SyntheticSource::load(spec, first, count, data, scales, zeros);
  }
  int of_host = 0;
};

TEST(SyntheticWeights, OfADeviceAreTheBytesOfTheHost) {
  const ModelConfig config = eight_units();
  const std::unique_ptr<Backend> backend = make_emulated_cuda_backend();
  for (int bits = 1; bits <= 8; ++bits) {
    const WeightFormat format = bits == 1 ? WeightFormat::bf16 : WeightFormat::polar;
    SyntheticSource host(format, bits), device(format, bits, dynamic_cast<DeviceMeasure*>(backend.get()));
    for (const TensorSpec& spec : tensor_specs(config)) {
      SCOPED_TRACE(spec.name + ", " + device.description());
      // All pieces but the first, in one buffer: data, a gap, norms, a gap.
      const int64_t first = spec.pieces > 1 ? 1 : 0, count = spec.pieces - first;
      const WeightInfo info = host.info(spec);
      const Matrix matrix{.format = info.format, .rows = spec.rows, .cols = spec.cols, .codebook = info.codebook};
      const int64_t data = matrix.data_bytes() / spec.pieces * count, norms = matrix.scale_bytes() / spec.pieces * count;
      const int64_t norms_at = data / 8 * 8 + 8, end = norms_at + norms + 8;
      const Buffer made = backend->allocate(end);
      auto* place = made.as<char>();
      const bool taken =
          device.try_load_on_device(spec, first, count, place, reinterpret_cast<uint16_t*>(place + norms_at), nullptr);
      EXPECT_TRUE(taken);
      EXPECT_FALSE(host.try_load_on_device(spec, first, count, place, nullptr, nullptr));
      std::vector<char> actual(static_cast<size_t>(end)), expected(actual.size());
      backend->download(actual.data(), place, end);
      host.load(spec, first, count, expected.data(), reinterpret_cast<uint16_t*>(expected.data() + norms_at), nullptr);
      EXPECT_EQ(actual, expected);
    }
  }
}

// Matrices of rows and of columns, arranged and not; one rank, and two with the embedding in host memory.
TEST(SyntheticWeights, MadeOnADeviceGiveTheLogitsOfTheHosts) {
  ModelConfig config = eight_units();
  config.layers = 2;
  config.layer_kinds = {LayerKind::delta, LayerKind::attention};
  RuntimeOptions options{.context = 32, .slots = 1, .batch = 16};
  Step step;
  step.tokens = {5, 42, 300};
  step.spans = {{.row = 0, .tokens = 3, .position = 0, .slot = 0}};
  step.logit_rows = {0, 2};
  const auto run = [&](int ranks, WeightFormat format, bool on_device, bool host_embedding) {
    std::vector<float> logits;
    std::vector<int64_t> peak(static_cast<size_t>(ranks));
    run_threads(ranks, [&](Communicator& comm) {
      const std::unique_ptr<Backend> backend = make_emulated_cuda_backend();
      auto* device = dynamic_cast<DeviceMeasure*>(backend.get());
      CountingSource source(format, 5, on_device ? device : nullptr);
      Transformer model(config, options, *backend, comm, source, nullptr, host_embedding);
      if (on_device) EXPECT_EQ(source.of_host, host_embedding ? 1 : 0);
      model.run(step, [&](int64_t, const float* row) { logits.insert(logits.end(), row, row + config.vocab); });
      peak[static_cast<size_t>(comm.rank())] = device->peak_bytes();
    });
    return std::pair{logits, peak};
  };
  for (const WeightFormat format : {WeightFormat::polar, WeightFormat::bf16}) {
    for (const int ranks : {1, 2}) {
      const bool host_embedding = ranks == 2;
      const auto [expected, planned] = run(ranks, format, false, host_embedding);
      const auto [actual, peak] = run(ranks, format, true, host_embedding);
      ASSERT_EQ(expected.size(), static_cast<size_t>(2 * config.vocab));
      EXPECT_TRUE(std::memcmp(actual.data(), expected.data(), 4 * expected.size()) == 0) << ranks;
      EXPECT_EQ(peak, planned);
    }
  }
}

}  // namespace
}  // namespace pq
