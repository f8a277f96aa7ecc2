// Cache writing and attention: against the reference within derived bounds, the same bits for any cutting, sequences kept apart.
#include <array>
#include <numeric>

#include "kernels/device_memory.h"
#include "kernels/kv_row.h"
#include "tests/kernels/every_backend.h"

namespace pq {
namespace {

struct Geometry {
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t rotary_dim;
};

const std::array<Geometry, 7> kGeometries = {Geometry{1, 1, 16, 4},   Geometry{12, 1, 32, 8}, Geometry{2, 2, 32, 8},
                                             Geometry{4, 2, 48, 12},  Geometry{6, 2, 64, 16}, Geometry{6, 1, 256, 64},
                                             Geometry{8, 2, 128, 128}};

struct Sequence {
  Geometry g;
  int64_t tokens;
  std::vector<float> q_gate, k, v, q_norm, k_norm, inv_freq;

  Sequence(const Geometry& geometry, int64_t count, uint64_t seed) : g(geometry), tokens(count) {
    q_gate = normals(count * g.heads * 2 * g.head_dim, seed, 2.0);
    k = normals(count * g.kv_heads * g.head_dim, seed + 1, 2.0);
    v = normals(count * g.kv_heads * g.head_dim, seed + 2);
    q_norm = normals(g.head_dim, 55, 0.3);
    k_norm = normals(g.head_dim, 56, 0.3);
    for (int64_t i = 0; i < g.rotary_dim / 2; ++i) {
      inv_freq.push_back(static_cast<float>(std::pow(1e7, -2.0 * static_cast<double>(i) / static_cast<double>(g.rotary_dim))));
    }
  }
};

// Keys and values of `slots` sequences, full of NaN whatever the type.
struct Cache {
  std::vector<uint16_t> k, v;
  KvCache view;

  Cache(const Geometry& g, KvType type, int64_t context, int64_t slots) {
    const size_t bytes = static_cast<size_t>(slots * g.kv_heads * context * kv_row_bytes(type, g.head_dim));
    k.assign(bytes / 2, 0x7fc0);
    v.assign(bytes / 2, 0x7fc0);
    view = {.type = type, .k = k.data(), .v = v.data(), .kv_heads = g.kv_heads, .context = context, .head_dim = g.head_dim};
  }
  std::vector<float> keys() const { return values_of(k); }
  std::vector<float> values() const { return values_of(v); }

 private:
  std::vector<float> values_of(const std::vector<uint16_t>& plane) const {
    const size_t row_size = static_cast<size_t>(kv_row_bytes(view.type, view.head_dim) / 2);
    std::vector<float> out;
    for (size_t row = 0; row < plane.size(); row += row_size) {
      for (int64_t i = 0; i < view.head_dim; ++i) out.push_back(kv_value(view.type, plane.data() + row, view.head_dim, i));
    }
    return out;
  }
};

bool fits(const Geometry& g, KvType type) { return type != KvType::q8 || g.head_dim % kKvGroup == 0; }

struct Output {
  std::vector<float> q;
  std::vector<float> y;
};

// One piece of a sequence: input into the cache, then attention (when `attend`) by the same backend.
Output run_piece(Backend& backend, const Sequence& s, const Cache& cache, const Span& span) {
  const int64_t size = s.g.heads * s.g.head_dim;
  const int64_t kv = s.g.kv_heads * s.g.head_dim;
  Guarded<float> q(span.tokens * size);
  Guarded<float> y(span.tokens * size);
  const float* q_gate = s.q_gate.data() + span.position * 2 * size;
  backend.attention_input({.q = q.data(),
                           .q_gate = q_gate,
                           .k = s.k.data() + span.position * kv,
                           .v = s.v.data() + span.position * kv,
                           .q_norm = s.q_norm.data(),
                           .k_norm = s.k_norm.data(),
                           .inv_freq = s.inv_freq.data(),
                           .heads = s.g.heads,
                           .rotary_dim = s.g.rotary_dim,
                           .eps = 1e-6f,
                           .cache = cache.view,
                           .spans = {&span, 1}});
  backend.attention({.y = y.data(), .q = q.data(), .q_gate = q_gate, .heads = s.g.heads, .cache = cache.view, .spans = {&span, 1}});
  EXPECT_TRUE(q.intact() && y.intact());
  return {q.values(), y.values()};
}

Output run(Backend& backend, const Sequence& s, Cache* cache, const std::vector<int64_t>& pieces, int64_t slot = 0) {
  Output out;
  int64_t position = 0;
  for (int64_t piece : pieces) {
    const Output part = run_piece(backend, s, *cache, {.row = 0, .tokens = piece, .position = position, .slot = slot});
    out.q.insert(out.q.end(), part.q.begin(), part.q.end());
    out.y.insert(out.y.end(), part.y.begin(), part.y.end());
    position += piece;
  }
  EXPECT_EQ(position, s.tokens);
  return out;
}

using AttentionTest = EveryBackendTest;

TEST_P(AttentionTest, InputAgreesWithTheReference) {
  for (const Geometry& g : kGeometries) {
    for (KvType type : {KvType::f32, KvType::f16, KvType::q8}) {
      if (!fits(g, type)) continue;
      const Sequence s(g, 19, 7);
      Cache cache(g, type, 24, 1), generic_cache(g, type, 24, 1), reference_cache(g, type, 24, 1);
      const Output out = run(*backend_, s, &cache, {19});
      const Output expected = run(*reference_, s, &reference_cache, {19});
      EXPECT_TRUE(same_bits(out.q, run(*generic_, s, &generic_cache, {19}).q));
      if (host()) {
        EXPECT_EQ(cache.k, generic_cache.k);
      }
      EXPECT_EQ(cache.v, generic_cache.v);
      EXPECT_EQ(cache.v, reference_cache.v);
      // |x| / rms <= sqrt(head_dim), weights below 1 + 4 * 0.3; a rotated value has two such terms. Roundings: the norm as in
      // RmsNorm, cosine, two products and a sum.
      const double dim = static_cast<double>(g.head_dim);
      const auto bound_of = [&](const std::vector<float>& values, const std::vector<float>& norm, double relative) {
        std::vector<double> bound;
        double weight = 0.0;
        for (float w : norm) weight = std::max(weight, 1.0 + std::abs(static_cast<double>(w)));
        for (size_t i = 0; i < values.size(); ++i) {
          bound.push_back(2 * (0.5 * (dim / 16 + 6) + 10) * kEps * 4.5 * weight + relative * std::abs(values[i]));
        }
        return bound;
      };
      EXPECT_TRUE(within(out.q, expected.q, bound_of(expected.q, s.q_norm, 0.0)));
      // Rows beyond the sequence stay untouched: NaN there, so compare row by row. A half has 11 bits: one unit may differ; so may
      // one of a q8 group, which is 1/127 of its largest value, rounded up or down by a half's 2^-11 for each side.
      const std::vector<float> keys = cache.keys(), reference_keys = reference_cache.keys();
      std::vector<double> bound = bound_of(reference_keys, s.k_norm, type == KvType::f16 ? 0x1p-10 : 0.0);
      if (type == KvType::q8) {
        double largest = 0.0;
        for (float key : reference_keys) largest = std::isnan(key) ? largest : std::max<double>(largest, std::abs(key));
        for (double& b : bound) b += largest * (1 + 0x1p-10) / 127 + largest * 0x1p-10;
      }
      const std::vector<float> values = cache.values(), reference_values = reference_cache.values();
      for (int64_t h = 0; h < g.kv_heads; ++h) {
        for (int64_t p = 0; p < 24; ++p) {
          for (int64_t i = 0; i < g.head_dim; ++i) {
            const size_t at = static_cast<size_t>((h * 24 + p) * g.head_dim + i);
            if (p < 19) {
              ASSERT_NEAR(keys[at], reference_keys[at], bound[at]);
              ASSERT_EQ(values[at], reference_values[at]);
            } else {
              ASSERT_TRUE(std::isnan(keys[at]) && std::isnan(values[at]));
            }
          }
        }
      }
    }
  }
}

// All backends read the cache and the queries that the reference wrote.
void expect_attention_of_the_reference(Backend& backend, Backend& generic, Backend& reference, const Geometry& g, KvType type,
                                       int64_t tokens) {
  const Sequence s(g, tokens, 11);
  Cache cache(g, type, tokens, 1);
  const Output input = run(reference, s, &cache, {tokens});
  const Span span{.row = 0, .tokens = tokens, .position = 0, .slot = 0};
  const auto attend = [&](Backend& by) {
    Guarded<float> y(tokens * g.heads * g.head_dim);
    by.attention({.y = y.data(),
                  .q = input.q.data(),
                  .q_gate = s.q_gate.data(),
                  .heads = g.heads,
                  .cache = cache.view,
                  .spans = {&span, 1}});
    EXPECT_TRUE(y.intact());
    return y.values();
  };
  const std::vector<float> y = attend(backend);
  EXPECT_TRUE(same_bits(y, attend(generic)));
  const std::vector<float> keys = cache.keys(), values = cache.values();
  std::vector<double> bound;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t h = 0; h < g.heads; ++h) {
      const int64_t kv = h / (g.heads / g.kv_heads);
      double score_size = 0.0;  // the largest sum |q||k| / sqrt(head_dim) of this token
      double largest_value = 0.0;
      for (int64_t p = 0; p <= t; ++p) {
        double sum = 0.0;
        for (int64_t i = 0; i < g.head_dim; ++i) {
          const size_t at = static_cast<size_t>((kv * tokens + p) * g.head_dim + i);
          sum += std::abs(static_cast<double>(input.q[(t * g.heads + h) * g.head_dim + i]) * keys[at]);
          largest_value = std::max(largest_value, std::abs(static_cast<double>(values[at])));
        }
        score_size = std::max(score_size, sum / std::sqrt(static_cast<double>(g.head_dim)));
      }
      // A score is off by ds, so a weight by 2 ds and its exponential and the difference from the largest; then the sums over the
      // positions of a block of weights and of values, for every block two exponentials, two products and a sum of each, two
      // divisions and the gate.
      const double ds = (static_cast<double>(g.head_dim) / 16 + 6) * kEps * score_size;
      const double positions = static_cast<double>(std::min(t + 1, kKeyBlock));
      const int64_t key_blocks = t / kKeyBlock + 1;
      const auto blocks = static_cast<double>(key_blocks);
      const double relative = 2 * ds + 4 * score_size * kEps + (4 + positions * 1.1 + 6 + blocks * 2 * (4 + 4 + 3) + 4 + 6) * kEps;
      for (int64_t i = 0; i < g.head_dim; ++i) bound.push_back(relative * largest_value);
    }
  }
  EXPECT_TRUE(within(y, attend(reference), bound)) << g.heads << " heads of " << g.head_dim << ", " << tokens << " tokens";
}

TEST_P(AttentionTest, AttentionAgreesWithTheReference) {
  for (KvType type : {KvType::f32, KvType::f16, KvType::q8}) {
    for (const Geometry& g : kGeometries) {
      if (fits(g, type)) expect_attention_of_the_reference(*backend_, *generic_, *reference_, g, type, 37);
    }
    // Emulated threads are slow.
    if (!host() && type != KvType::f16) continue;
    // Every key block boundary that counts: three blocks, the last one short.
    for (const Geometry& g : {Geometry{4, 2, 48, 12}, Geometry{7, 1, 64, 16}, Geometry{8, 1, 16, 4}}) {
      if (!fits(g, type)) continue;
      expect_attention_of_the_reference(*backend_, *generic_, *reference_, g, type, 2 * kKeyBlock + 21);
    }
  }
}

void expect_the_same_bits_for_any_cutting(Backend& backend, const Geometry& g, KvType type,
                                          const std::vector<std::vector<int64_t>>& cuttings) {
  const int64_t tokens = std::accumulate(cuttings[0].begin(), cuttings[0].end(), int64_t{0});
  const Sequence s(g, tokens, 13);
  Cache cache(g, type, tokens + 5, 2);
  const Output whole = run(backend, s, &cache, {tokens}, 1);
  for (const std::vector<int64_t>& pieces : cuttings) {
    Cache other(g, type, tokens + 29, 3);
    const Output cut = run(backend, s, &other, pieces, 2);
    ASSERT_TRUE(same_bits(cut.q, whole.q));
    ASSERT_TRUE(same_bits(cut.y, whole.y));
  }
}

TEST_P(AttentionTest, AnyCuttingGivesTheSameBits) {
  for (KvType type : {KvType::f32, KvType::f16, KvType::q8}) {
    for (const Geometry& g : kGeometries) {
      if (!fits(g, type)) continue;
      expect_the_same_bits_for_any_cutting(
          *backend_, g, type, {std::vector<int64_t>(35, 1), {16, 16, 3}, {1, 2, 3, 4, 5, 6, 7, 7}, {34, 1}, {0, 20, 0, 15}});
    }
    // As above.
    if (!host() && type != KvType::f16) continue;
    std::vector<std::vector<int64_t>> cuttings = {{127, 1, 1, 148}, {276, 1}};
    if (host()) cuttings = {std::vector<int64_t>(277, 1), {127, 1, 1, 148}, {128, 128, 21}, {250, 2, 3, 22}, {276, 1}};
    for (const Geometry& g : {Geometry{4, 2, 48, 12}, Geometry{7, 1, 64, 16}}) {
      if (fits(g, type)) expect_the_same_bits_for_any_cutting(*backend_, g, type, cuttings);
    }
  }
}

TEST_P(AttentionTest, AnyNumberOfThreadsGivesTheSameBits) {
  if (!host()) GTEST_SKIP() << "threads are those of the host";
  // One token over three blocks, several in the last two, a batch of two tiles: work for fewer threads than there are, and for
  // more.
  const std::vector<int64_t> pieces = {200, 1, 1, 70, 33, 8, 128};
  for (const Geometry& g : {Geometry{7, 1, 256, 16}, Geometry{12, 3, 128, 64}}) {
    const Sequence s(g, 441, 19);
    Cache cache(g, KvType::f16, 441, 1);
    const Output expected = run(*backend_, s, &cache, pieces);
    for (const int threads : {2, 3, 8}) {
      const std::unique_ptr<Backend> threaded = make_cpu_backend(*isa_, {.threads = threads});
      Cache other(g, KvType::f16, 441, 1);
      const Output out = run(*threaded, s, &other, pieces);
      EXPECT_EQ(other.k, cache.k) << threads;
      EXPECT_EQ(other.v, cache.v) << threads;
      EXPECT_TRUE(same_bits(out.q, expected.q)) << threads;
      EXPECT_TRUE(same_bits(out.y, expected.y)) << threads;
    }
  }
}

TEST_P(AttentionTest, SequencesOfABatchDoNotMeet) {
  const Geometry g{4, 2, 32, 8};
  const Sequence a(g, 9, 17);
  const Sequence b(g, 12, 18);
  Cache alone_a(g, KvType::f16, 16, 1), alone_b(g, KvType::f16, 16, 1), together(g, KvType::f16, 16, 3);
  const Output expected_a = run(*backend_, a, &alone_a, {9});
  const Output expected_b = run(*backend_, b, &alone_b, {12});
  // Rows 0-11 are b in slot 0, rows 12-20 a in slot 2.
  const std::array<Span, 2> spans = {Span{.row = 12, .tokens = 9, .position = 0, .slot = 2},
                                     Span{.row = 0, .tokens = 12, .position = 0, .slot = 0}};
  const auto joined = [](std::vector<float> first, const std::vector<float>& second) {
    first.insert(first.end(), second.begin(), second.end());
    return first;
  };
  const std::vector<float> q_gate = joined(b.q_gate, a.q_gate), k = joined(b.k, a.k), v = joined(b.v, a.v);
  std::vector<float> q(static_cast<size_t>(21 * g.heads * g.head_dim)), y(q.size());
  backend_->attention_input({.q = q.data(),
                             .q_gate = q_gate.data(),
                             .k = k.data(),
                             .v = v.data(),
                             .q_norm = a.q_norm.data(),
                             .k_norm = a.k_norm.data(),
                             .inv_freq = a.inv_freq.data(),
                             .heads = g.heads,
                             .rotary_dim = g.rotary_dim,
                             .eps = 1e-6f,
                             .cache = together.view,
                             .spans = {spans.data(), 2}});
  backend_->attention({.y = y.data(),
                       .q = q.data(),
                       .q_gate = q_gate.data(),
                       .heads = g.heads,
                       .cache = together.view,
                       .spans = {spans.data(), 2}});
  EXPECT_TRUE(same_bits(q, joined(expected_b.q, expected_a.q)));
  EXPECT_TRUE(same_bits(y, joined(expected_b.y, expected_a.y)));
}

// A value that is no number reaches the tokens that see it and no others, whatever shares their tile.
TEST_P(AttentionTest, LaterTokensDoNotReachEarlierOnes) {
  const Geometry g{4, 2, 48, 12};
  Sequence s(g, 21, 19);
  Cache cache(g, KvType::f32, 24, 1), other(g, KvType::f32, 24, 1);
  const std::vector<float> expected = run(*backend_, s, &cache, {21}).y;
  std::fill(s.v.begin() + 14 * g.kv_heads * g.head_dim, s.v.end(), INFINITY);
  const std::vector<float> y = run(*backend_, s, &other, {21}).y;
  const auto seen = 14 * g.heads * g.head_dim;
  EXPECT_TRUE(same_bits({y.begin(), y.begin() + seen}, {expected.begin(), expected.begin() + seen}));
  EXPECT_FALSE(std::isfinite(y.back()));
}

// Small heads leave room in the scratch for more tokens than a grid has along z.
TEST(AttentionRows, AreNoMoreAtOnceThanAGridHolds) {
  EXPECT_EQ(attention_rows_at_once(1, 16, 1), kGridRows);
  EXPECT_EQ(attention_row_floats(1, 16, 1, 70000), kGridRows * (16 + 2));
  // 24 heads, 128 blocks of keys, 258 floats.
  EXPECT_EQ(attention_rows_at_once(24, 256, 16384), kAttentionPartFloats / (24 * 128 * 258));
  EXPECT_EQ(attention_rows_at_once(24, 256, 262144), 1);
}

// More tokens than a device's scratch holds the parts of.
TEST_P(AttentionTest, ManySequencesOfOneToken) {
  const Geometry g{16, 1, 512, 16};
  constexpr int64_t kSequences = 520;
  ASSERT_LT(attention_rows_at_once(g.heads, g.head_dim, 1), kSequences);
  const Sequence s(g, kSequences, 20);
  Cache cache(g, KvType::q8, 1, kSequences);
  std::vector<Span> spans;
  for (int64_t i = 0; i < kSequences; ++i) spans.push_back({.row = i, .tokens = 1, .position = 0, .slot = kSequences - 1 - i});
  const std::vector<float> q = normals(kSequences * g.heads * g.head_dim, 21);
  Random random(22);
  for (size_t i = 0; i < cache.v.size(); ++i) cache.k[i] = cache.v[i] = static_cast<uint16_t>(0x2c00 + random.below(256));
  const auto attend = [&](Backend& by) {
    Guarded<float> y(kSequences * g.heads * g.head_dim);
    by.attention({.y = y.data(),
                  .q = q.data(),
                  .q_gate = s.q_gate.data(),
                  .heads = g.heads,
                  .cache = cache.view,
                  .spans = {spans.data(), kSequences}});
    EXPECT_TRUE(y.intact());
    return y.values();
  };
  EXPECT_TRUE(same_bits(attend(*backend_), attend(*generic_)));
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionTest, ::testing::ValuesIn(every_backend()), backend_test_name);

}  // namespace
}  // namespace pq
