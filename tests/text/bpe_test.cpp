// Merges: hand-checked order, and random tables against the definition (rescan the word after every merge).
#include "text/bpe.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/random.h"

namespace pq {
namespace {

std::array<int32_t, 256> identity() {
  std::array<int32_t, 256> ids;
  for (int i = 0; i < 256; ++i) ids[i] = i;
  return ids;
}

std::vector<int32_t> encode(const Bpe& bpe, std::string_view word) {
  Bpe::Scratch scratch;
  std::vector<int32_t> ids;
  bpe.encode(word, &scratch, &ids);
  return ids;
}

using Ids = std::vector<int32_t>;

TEST(Bpe, LowerRankGoesFirst) {
  const Bpe bpe(identity(), {{'b', 'c', 300}, {'a', 'b', 301}, {'a', 300, 302}});
  EXPECT_EQ(encode(bpe, "abc"), (Ids{302}));
  EXPECT_EQ(encode(bpe, "abab"), (Ids{301, 301}));
  EXPECT_EQ(encode(bpe, "bcb"), (Ids{300, 'b'}));
  EXPECT_EQ(encode(bpe, ""), Ids{});
}

TEST(Bpe, LeftmostOfEqualsGoesFirst) {
  const Bpe bpe(identity(), {{'a', 'a', 300}});
  EXPECT_EQ(encode(bpe, "aaa"), (Ids{300, 'a'}));
  EXPECT_EQ(encode(bpe, "aaaaa"), (Ids{300, 300, 'a'}));
}

TEST(Bpe, LaterOfTwoRulesForOnePairIsUsed) {
  const Bpe bpe(identity(), {{'a', 'b', 300}, {'b', 'c', 301}, {'a', 'b', 302}});
  EXPECT_EQ(encode(bpe, "abc"), (Ids{'a', 301}));
  EXPECT_EQ(encode(bpe, "ab"), (Ids{302}));
}

TEST(Bpe, ByteWithoutIdIsAnInternalError) {
  auto ids = identity();
  ids[0xFF] = -1;
  const Bpe bpe(ids, {});
  EXPECT_THROW(encode(bpe, "\xFF"), Error);
}

Ids encode_by_definition(const std::vector<MergeRule>& rules, std::string_view word) {
  Ids ids(word.begin(), word.end());
  while (true) {
    size_t best_rank = rules.size();
    size_t best_at = 0;
    for (size_t at = 0; at + 1 < ids.size(); ++at)
      for (size_t rank = 0; rank < best_rank; ++rank)
        if (rules[rank].left == ids[at] && rules[rank].right == ids[at + 1]) {
          best_rank = rank;
          best_at = at;
        }
    if (best_rank == rules.size()) return ids;
    ids[best_at] = rules[best_rank].merged;
    ids.erase(ids.begin() + best_at + 1);
  }
}

TEST(Bpe, AgreesWithTheDefinitionOnRandomTables) {
  Random random(11);
  int merged_words = 0;
  for (int round = 0; round < 300; ++round) {
    std::vector<MergeRule> rules;
    std::set<std::pair<int32_t, int32_t>> used;
    std::vector<int32_t> known = {'a', 'b', 'c'};
    for (int i = 0; i < 20; ++i) {
      const int32_t left = known[random.below(static_cast<int64_t>(known.size()))];
      const int32_t right = known[random.below(static_cast<int64_t>(known.size()))];
      if (!used.emplace(left, right).second) continue;
      rules.push_back({left, right, 300 + i});
      known.push_back(300 + i);
    }
    // Rules may be ranked before those they build on.
    for (size_t i = rules.size(); i > 1; --i) std::swap(rules[i - 1], rules[random.below(static_cast<int64_t>(i))]);
    const Bpe bpe(identity(), rules);
    for (int i = 0; i < 30; ++i) {
      std::string word;
      for (int64_t n = random.below(40); n > 0; --n) word += static_cast<char>('a' + random.below(3));
      const Ids ids = encode(bpe, word);
      ASSERT_EQ(ids, encode_by_definition(rules, word)) << word;
      merged_words += ids.size() < word.size();
    }
  }
  EXPECT_GT(merged_words, 300 * 30 / 2);
}

TEST(Bpe, LongWordTakesNoQuadraticTime) {
  const Bpe bpe(identity(), {{'a', 'b', 300}, {300, 300, 301}, {301, 301, 302}, {302, 302, 303}});
  std::string word;
  for (int i = 0; i < 1 << 19; ++i) word += "ab";
  EXPECT_EQ(encode(bpe, word), Ids(1 << 16, 303));
}

}  // namespace
}  // namespace pq
