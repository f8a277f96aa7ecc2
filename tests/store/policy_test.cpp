// Formats by name, rules of policy files, what the recipe text says.
#include "store/policy.h"

#include "base/limits.h"
#include "store/store_fixture.h"

namespace pq {
namespace {

using testing::error_of;

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

std::string format_of(const Policy& policy, const std::string& name) { return encoding_name(policy.choose(name).encoding); }

TEST(Policy, NamesRoundTrip) {
  for (const char* name : {"pq2", "pq3", "pq4", "pq5", "pq6", "pq7", "pq8", "int4", "int4a", "bf16", "f32"}) {
    Encoding encoding;
    ASSERT_TRUE(try_parse_encoding(name, &encoding)) << name;
    EXPECT_EQ(encoding_name(encoding), name);
  }
  Encoding encoding;
  for (const char* name : {"", "pq", "pq1", "pq9", "pq55", "PQ5", "int8", "f16"})
    EXPECT_FALSE(try_parse_encoding(name, &encoding)) << name;
}

TEST(Policy, BytesARow) {
  Encoding encoding;
  ASSERT_TRUE(try_parse_encoding("pq5", &encoding));
  EXPECT_EQ(plane_row_bytes(encoding, 5120, 0) + plane_row_bytes(encoding, 5120, 1), 5120 * 5125 / 8000);
  EXPECT_EQ(plane_row_bytes(encoding, 5120, 2), 0);
  ASSERT_TRUE(try_parse_encoding("int4a", &encoding));
  EXPECT_EQ(plane_row_bytes(encoding, 256, 0), 128);
  EXPECT_EQ(plane_row_bytes(encoding, 256, 1), 4);
  EXPECT_EQ(plane_row_bytes(encoding, 256, 2), 4);
  ASSERT_TRUE(try_parse_encoding("bf16", &encoding));
  EXPECT_EQ(plane_row_bytes(encoding, 100, 0), 200);
}

TEST(Policy, DefaultIsPq5AndNotAsked) {
  const Policy policy;
  EXPECT_EQ(format_of(policy, "lm_head.weight"), "pq5");
  EXPECT_FALSE(policy.choose("lm_head.weight").asked);
}

TEST(Policy, LaterLinesWin) {
  Policy policy;
  policy.add_rules(
      "# head and embedding\n"
      "*.mlp.*        pq4   # all of them\n"
      "\n"
      "  *.down_proj.weight pq6\n"
      "layers.[01].mlp.down_proj.weight bf16\n"
      "lm_head.?eight int4a\n",
      "p");
  EXPECT_EQ(format_of(policy, "layers.7.mlp.gate_proj.weight"), "pq4");
  EXPECT_EQ(format_of(policy, "layers.7.mlp.down_proj.weight"), "pq6");
  EXPECT_EQ(format_of(policy, "layers.1.mlp.down_proj.weight"), "bf16");
  EXPECT_EQ(format_of(policy, "layers.10.mlp.down_proj.weight"), "pq6");
  EXPECT_EQ(format_of(policy, "lm_head.weight"), "int4a");
  EXPECT_EQ(format_of(policy, "embed_tokens.weight"), "pq5");
  EXPECT_TRUE(policy.choose("lm_head.weight").asked);
  EXPECT_FALSE(policy.choose("embed_tokens.weight").asked);
}

TEST(Policy, RulesOverrideFormat) {
  Encoding encoding;
  ASSERT_TRUE(try_parse_encoding("int4", &encoding));
  Policy policy(encoding);
  policy.add_rules("lm_head.weight pq6", "p");
  EXPECT_EQ(format_of(policy, "embed_tokens.weight"), "int4");
  EXPECT_EQ(format_of(policy, "lm_head.weight"), "pq6");
  EXPECT_EQ(policy.text(), "* int4; lm_head.weight pq6");
}

TEST(Policy, ErrorsNameTheLine) {
  Policy policy;
  EXPECT_HAS(error_of(ErrorKind::input, [&] { policy.add_rules("a pq5\nb\n", "file"); }), "file:2");
  EXPECT_HAS(error_of(ErrorKind::input, [&] { policy.add_rules("a pq5 x\n", "file"); }), "file:1");
  EXPECT_HAS(error_of(ErrorKind::input, [&] { policy.add_rules("\n\na pq9\n", "file"); }), "file:3: unknown format \"pq9\"");
}

TEST(Policy, LengthsAtTheLimitsAndBeyond) {
  Policy policy;
  policy.add_rules(std::string(kMaxGlobBytes, 'a') + " pq5", "file");
  EXPECT_HAS(error_of(ErrorKind::input, [&] { policy.add_rules(std::string(kMaxGlobBytes + 1, '*') + " pq5", "file"); }),
             "a glob of 1025 bytes");
  std::string rules;
  for (int64_t i = 1; i < kMaxPolicyRules; ++i) rules += "a pq5\n";
  policy.add_rules(rules, "file");
  EXPECT_HAS(error_of(ErrorKind::input, [&] { policy.add_rules("a pq5", "more"); }), "more:1: more than 10000 rules");
}

// A glob of stars and classes that fits nowhere: its time is not exponential in the stars.
TEST(Policy, StarsAreMatchedInTime) {
  Policy policy;
  std::string glob;
  for (int i = 0; i < 100; ++i) glob += "*[a-z]";
  policy.add_rules(glob + "Z pq4", "file");
  EXPECT_EQ(format_of(policy, "layers.0.linear_attn.in_proj_qkv.weight"), "pq5");
}

TEST(Policy, RuleThatMatchesNoMatrixIsRefused) {
  const testing::TinyModel model = testing::tiny_model();
  Policy policy;
  policy.add_rules("*.mlp.* pq4", "file");
  EXPECT_NO_THROW(policy.check_rules(model.specs));
  policy.add_rules("*.in_proj_a.weight pq5", "file");
  EXPECT_HAS(error_of(ErrorKind::input, [&] { policy.check_rules(model.specs); }), "\"*.in_proj_a.weight\" matches no matrix");
}

TEST(Recipe, TextTellsEveryChoice) {
  std::set<std::string> texts;
  Recipe recipe;
  texts.insert(recipe.text());
  recipe.scale_search = false;
  texts.insert(recipe.text());
  recipe.table = TableKind::published;
  texts.insert(recipe.text());
  recipe.through_bits = 5;
  texts.insert(recipe.text());
  recipe.policy.add_rules("* int4", "p");
  texts.insert(recipe.text());
  EXPECT_EQ(texts.size(), 5u);
}

}  // namespace
}  // namespace pq
