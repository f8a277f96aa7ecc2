// config.json of the published sizes, the spellings that occur in the wild, and files that must be refused with the key named.
#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"
#include "model/geometry.h"
#include "model/partition.h"

namespace pq {
namespace {

using testing::HasSubstr;

std::string published_text(const std::string& size) {
  return read_text_file(PQ_TEST_DATA "/configs/qwen3.5-" + size + ".json", 1 << 20);
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  if (at != std::string::npos) text.replace(at, from.size(), to);
  return text;
}

std::string refusal(const std::string& text) {
  try {
    parse_model_config(text, "config.json");
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::input);
    return e.what();
  }
  return "accepted";
}

// A flat, text-only configuration with flat rope keys and an interval instead of layer_types.
constexpr char kFlat[] = R"({"model_type": "qwen3_5_text", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 6,
  "linear_key_head_dim": 16, "linear_value_head_dim": 32, "vocab_size": 100, "rms_norm_eps": 1e-5, "full_attention_interval": 3,
  "rope_theta": 10000, "partial_rotary_factor": 0.5, "tie_word_embeddings": true, "eos_token_id": [3, 4]})";

TEST(Config, Published27B) {
  const ModelConfig c = parse_model_config(published_text("27b"), "config.json");
  EXPECT_EQ(c.hidden, 5120);
  EXPECT_EQ(c.intermediate, 17408);
  EXPECT_EQ(c.layers, 64);
  EXPECT_EQ(c.heads, 24);
  EXPECT_EQ(c.kv_heads, 4);
  EXPECT_EQ(c.head_dim, 256);
  EXPECT_EQ(c.rotary_dim, 64);
  EXPECT_EQ(c.rope_theta, 1e7);
  EXPECT_EQ(c.key_heads, 16);
  EXPECT_EQ(c.value_heads, 48);
  EXPECT_EQ(c.vocab, 248320);
  EXPECT_EQ(c.max_position, 262144);
  EXPECT_FALSE(c.tied);
  for (int64_t i = 0; i < c.layers; ++i)
    EXPECT_EQ(c.layer_kinds[static_cast<size_t>(i)], i % 4 == 3 ? LayerKind::attention : LayerKind::delta) << i;
}

TEST(Config, SmallSizesAreTied) {
  for (const char* size : {"4b", "2b", "0.8b"}) EXPECT_TRUE(parse_model_config(published_text(size), "c").tied) << size;
  EXPECT_FALSE(parse_model_config(published_text("9b"), "c").tied);
}

TEST(Config, NamedGeometriesAreThePublishedConfigurations) {
  for (const std::string& name : geometry_names()) {
    const ModelConfig c = named_geometry(name, 0, 0);
    const ModelConfig p = parse_model_config(read_text_file(PQ_TEST_DATA "/configs/" + name + ".json", 1 << 20), name);
    EXPECT_EQ(c.hidden, p.hidden) << name;
    EXPECT_EQ(c.intermediate, p.intermediate) << name;
    EXPECT_EQ(c.layer_kinds, p.layer_kinds) << name;
    EXPECT_EQ(c.heads, p.heads) << name;
    EXPECT_EQ(c.kv_heads, p.kv_heads) << name;
    EXPECT_EQ(c.head_dim, p.head_dim) << name;
    EXPECT_EQ(c.rotary_dim, p.rotary_dim) << name;
    EXPECT_EQ(c.key_width(), p.key_width()) << name;
    EXPECT_EQ(c.value_width(), p.value_width()) << name;
    EXPECT_EQ(c.vocab, p.vocab) << name;
    EXPECT_EQ(c.tied, p.tied) << name;
  }
  EXPECT_EQ(named_geometry("qwen3.5-27b", 4, 2048).layers, 4);
  EXPECT_EQ(named_geometry("qwen3.5-27b", 4, 2048).vocab, 2048);
  EXPECT_THROW(named_geometry("qwen3.5-28b", 0, 0), Error);
}

TEST(Config, FlatSpellings) {
  const ModelConfig c = parse_model_config(kFlat, "config.json");
  EXPECT_EQ(c.rotary_dim, 16);
  EXPECT_EQ(c.rope_theta, 10000);
  EXPECT_TRUE(c.tied);
  EXPECT_EQ(c.eos_ids, (std::vector<int64_t>{3, 4}));
  const std::vector<LayerKind> kinds = {LayerKind::delta, LayerKind::delta, LayerKind::attention,
                                        LayerKind::delta, LayerKind::delta, LayerKind::attention};
  EXPECT_EQ(c.layer_kinds, kinds);
  EXPECT_EQ(c.conv_channels(), 2 * 32 + 192);
}

TEST(Config, RefusalsNameTheKeyAndTheValue) {
  const std::string flat = kFlat;
  EXPECT_THAT(refusal(replaced(flat, "\"qwen3_5_text\"", "\"llama\"")), HasSubstr("model_type is \"llama\""));
  EXPECT_THAT(refusal(replaced(flat, "\"hidden_size\": 64", "\"hidden_size\": -64")), HasSubstr("hidden_size is -64"));
  EXPECT_THAT(refusal(replaced(flat, "\"hidden_size\": 64", "\"hidden_size\": 1e3")), HasSubstr("an integer is needed"));
  EXPECT_THAT(refusal(replaced(flat, "\"hidden_size\": 64", "\"hidden_size\": 18446744073709551615")),
              HasSubstr("hidden_size is 18446744073709551615"));
  EXPECT_THAT(refusal(replaced(flat, "\"hidden_size\": 64,", "")), HasSubstr("hidden_size is missing"));
  EXPECT_THAT(refusal(replaced(flat, "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3")),
              HasSubstr("num_attention_heads is 4"));
  EXPECT_THAT(refusal(replaced(flat, "\"linear_num_value_heads\": 6", "\"linear_num_value_heads\": 5")),
              HasSubstr("linear_num_value_heads is 5"));
  EXPECT_THAT(refusal(replaced(flat, "\"head_dim\": 32", "\"head_dim\": 40")), HasSubstr("head_dim is 40"));
  EXPECT_THAT(refusal(replaced(flat, "0.5", "1.5")), HasSubstr("partial_rotary_factor is 1.5"));
  EXPECT_THAT(refusal(replaced(flat, "\"num_hidden_layers\": 6", "\"num_hidden_layers\": 1000000")),
              HasSubstr("num_hidden_layers"));
  EXPECT_THAT(refusal("[1, 2"), HasSubstr("is not JSON"));
  EXPECT_THAT(refusal("[]"), HasSubstr("no JSON object"));
  EXPECT_THAT(refusal(std::string(100000, '[')), HasSubstr("nested deeper"));
}

TEST(Config, SizesAtTheLimitsAndBeyond) {
  const std::string flat = kFlat;
  const auto with = [&](const std::string& from, const std::string& key, int64_t value) {
    return replaced(flat, "\"" + key + "\": " + from, "\"" + key + "\": " + std::to_string(value));
  };
  EXPECT_NO_THROW(parse_model_config(with("64", "hidden_size", kMaxModelWidth), "c"));
  for (const int64_t value : {kMaxModelWidth + 1, int64_t{1} << 31, int64_t{1} << 32, INT64_MAX})
    EXPECT_THAT(refusal(with("64", "hidden_size", value)), HasSubstr("hidden_size is " + std::to_string(value)));
  EXPECT_THAT(refusal(replaced(flat, "\"hidden_size\": 64", "\"hidden_size\": 9223372036854775808")),
              HasSubstr("9223372036854775808"));
  EXPECT_THAT(refusal(replaced(flat, "\"head_dim\": 32", "\"head_dim\": 4112")), HasSubstr("head_dim is 4112"));
  // 4 heads of 4096 fit; 128 heads do not.
  const std::string wide = replaced(flat, "\"head_dim\": 32", "\"head_dim\": 4096");
  EXPECT_NO_THROW(parse_model_config(wide, "c"));
  EXPECT_THAT(refusal(replaced(wide, "\"num_attention_heads\": 4", "\"num_attention_heads\": 128")), HasSubstr("524288"));
  std::string eos = "[0";
  for (int64_t i = 1; i < kMaxEndTokens; ++i) eos += ",0";
  EXPECT_NO_THROW(parse_model_config(replaced(flat, "[3, 4]", eos + "]"), "c"));
  EXPECT_THAT(refusal(replaced(flat, "[3, 4]", eos + ",0]")), HasSubstr("has 1025 ids"));
  EXPECT_THAT(refusal(replaced(flat, "[3, 4]", "[4194304]")), HasSubstr("eos_token_id is 4194304"));
  EXPECT_THAT(refusal(replaced(flat, "\"hidden_size\"", "\"hidden_size\": 64, \"hidden_size\"")), HasSubstr("repeats the key"));
}

// The plan of the largest model that a configuration may ask for does not overflow.
TEST(Config, ThePlanOfTheLargestModelIsANumber) {
  ModelConfig c = named_geometry("qwen3.5-27b", 0, 0);
  c.hidden = kMaxModelWidth;
  c.intermediate = kMaxModelIntermediate;
  c.vocab = kMaxModelVocab;
  c.layers = kMaxModelLayers;
  c.layer_kinds.assign(static_cast<size_t>(c.layers), LayerKind::attention);
  c.layer_kinds[0] = LayerKind::delta;
  c.heads = c.kv_heads = c.key_heads = c.value_heads = kMaxModelHeads;
  c.head_dim = c.key_dim = c.value_dim = kMaxModelWidth / kMaxModelHeads;
  c.max_position = kMaxModelPositions;
  const RuntimeOptions options{
      .context = c.max_position, .slots = 256, .batch = 65536, .activations = ActivationMode::f32, .kv_type = KvType::f32};
  const MemoryPlan plan = plan_memory(c, options, 0, 1, int64_t{1} << 50, int64_t{16} << 30);
  const double kv = 2.0 * 4 * 1023 * 256 * static_cast<double>(kMaxModelWidth) * static_cast<double>(kMaxModelPositions);
  EXPECT_EQ(static_cast<double>(plan.kv_cache), kv);
  EXPECT_GT(plan.workspace, 0);
  EXPECT_GT(plan.total(), plan.kv_cache);
  EXPECT_EQ(plan.largest_context, 0);
}

TEST(Config, UnsupportedMathematicsIsRefused) {
  const std::string text = published_text("27b");
  EXPECT_THAT(refusal(replaced(text, "\"attn_output_gate\": true", "\"attn_output_gate\": false")),
              HasSubstr("attn_output_gate is false"));
  EXPECT_THAT(refusal(replaced(text, "\"rope_type\": \"default\"", "\"rope_type\": \"yarn\"")), HasSubstr("rope_type is \"yarn\""));
  EXPECT_THAT(refusal(replaced(text, "\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\"")), HasSubstr("hidden_act is \"gelu\""));
  EXPECT_THAT(refusal(replaced(text, "\"full_attention\"", "\"sliding_attention\"")), HasSubstr("sliding_attention"));
  EXPECT_THAT(refusal(replaced(text, "\"num_hidden_layers\": 64", "\"num_hidden_layers\": 63")),
              HasSubstr("layer_types has 64 entries"));
}

}  // namespace
}  // namespace pq
