// The gated delta rule: against the plain recurrence in double, the same bits for any cutting of a sequence, sequences kept apart.
#include <array>

#include "kernels/device_memory.h"
#include "tests/kernels/every_backend.h"

namespace pq {
namespace {

struct Geometry {
  int64_t key_heads;
  int64_t value_heads;
  int64_t key_dim;
  int64_t value_dim;
  int64_t row() const { return 2 * key_heads * key_dim + value_heads * value_dim; }
  int64_t out() const { return value_heads * value_dim; }
};

// The inputs of one sequence.
struct Sequence {
  Geometry g;
  int64_t tokens;
  std::vector<float> qkv, a, b, a_log, dt_bias;

  Sequence(const Geometry& geometry, int64_t count, uint64_t seed) : g(geometry), tokens(count) {
    qkv = normals(count * g.row(), seed);
    a = normals(count * g.value_heads, seed + 1, 2.0);
    b = normals(count * g.value_heads, seed + 2, 2.0);
    // Parameters belong to the layer, not to the sequence.
    a_log = normals(g.value_heads, 77, 0.7);
    dt_bias = normals(g.value_heads, 78);
    // The branch of softplus above 20.
    if (!a.empty()) a.back() = 25.0f;
  }
};

// State of `slots` sequences, full of NaN: position 0 must not read it.
struct State {
  std::vector<float> s, k, delta, decay;
  State(const Geometry& g, int64_t slots)
      : s(slots * g.value_heads * g.key_dim * g.value_dim, NAN),
        k(slots * kDeltaChunk * g.key_heads * g.key_dim, NAN),
        delta(slots * kDeltaChunk * g.value_heads * g.value_dim, NAN),
        decay(slots * kDeltaChunk * g.value_heads, NAN) {}
  DeltaState view() { return {.s = s.data(), .k = k.data(), .delta = delta.data(), .decay = decay.data()}; }
};

void step(Backend& backend, const Sequence& q, State* state, float* y, const Spans& spans, const float* qkv, const float* a,
          const float* b) {
  backend.gated_delta({.y = y,
                       .qkv = qkv,
                       .a = a,
                       .b = b,
                       .a_log = q.a_log.data(),
                       .dt_bias = q.dt_bias.data(),
                       .state = state->view(),
                       .key_heads = q.g.key_heads,
                       .value_heads = q.g.value_heads,
                       .key_dim = q.g.key_dim,
                       .value_dim = q.g.value_dim,
                       .spans = spans});
}

std::vector<float> run(Backend& backend, const Sequence& q, const std::vector<int64_t>& pieces, int64_t slot = 0,
                       int64_t slots = 1) {
  State state(q.g, slots);
  std::vector<float> out;
  int64_t position = 0;
  for (int64_t piece : pieces) {
    const Span span{.row = 0, .tokens = piece, .position = position, .slot = slot};
    Guarded<float> y(piece * q.g.out());
    step(backend, q, &state, y.data(), {&span, 1}, q.qkv.data() + position * q.g.row(), q.a.data() + position * q.g.value_heads,
         q.b.data() + position * q.g.value_heads);
    EXPECT_TRUE(y.intact());
    const std::vector<float> values = y.values();
    out.insert(out.end(), values.begin(), values.end());
    position += piece;
  }
  EXPECT_EQ(position, q.tokens);
  return out;
}

// Spec of the model, section 2.4 steps 3 to 7, in double, with the sizes needed for a bound.
struct Truth {
  std::vector<double> y;
  std::vector<double> bound;
};

Truth recurrence(const Sequence& q) {
  const Geometry& g = q.g;
  Truth truth;
  truth.y.resize(static_cast<size_t>(q.tokens * g.out()));
  truth.bound.resize(truth.y.size());
  const auto unit = [](const float* x, int64_t dim) {
    double sum = 1e-6;
    for (int64_t i = 0; i < dim; ++i) sum += static_cast<double>(x[i]) * x[i];
    std::vector<double> out(x, x + dim);
    for (double& value : out) value /= std::sqrt(sum);
    return out;
  };
  for (int64_t h = 0; h < g.value_heads; ++h) {
    const int64_t key_head = h / (g.value_heads / g.key_heads);
    std::vector<double> s(static_cast<size_t>(g.key_dim * g.value_dim), 0.0);
    std::vector<double> size(s.size(), 0.0);  // the recurrence on absolute values
    double largest = 0.0;
    double decay_sum = 0.0;
    double chunk_decay = 0.0;
    for (int64_t t = 0; t < q.tokens; ++t) {
      const float* row = q.qkv.data() + t * g.row();
      std::vector<double> query = unit(row + key_head * g.key_dim, g.key_dim);
      for (double& value : query) value /= std::sqrt(static_cast<double>(g.key_dim));
      const std::vector<double> key = unit(row + (g.key_heads + key_head) * g.key_dim, g.key_dim);
      const float* v = row + 2 * g.key_heads * g.key_dim + h * g.value_dim;
      const double beta = 1.0 / (1.0 + std::exp(-static_cast<double>(q.b[t * g.value_heads + h])));
      const double x = static_cast<double>(q.a[t * g.value_heads + h]) + q.dt_bias[h];
      const double log_decay = -std::exp(static_cast<double>(q.a_log[h])) * std::log1p(std::exp(x));
      const double alpha = std::exp(log_decay);
      decay_sum = t % kDeltaChunk == 0 ? -log_decay : decay_sum - log_decay;
      // Once exp(-G) vanishes its relative error no longer matters: x exp(-x) <= 1 / e.
      chunk_decay = std::max(chunk_decay, std::min(decay_sum, 16.0));
      for (int64_t d = 0; d < g.value_dim; ++d) {
        double old = 0.0;
        double old_size = 0.0;
        for (int64_t i = 0; i < g.key_dim; ++i) {
          s[i * g.value_dim + d] *= alpha;
          size[i * g.value_dim + d] *= alpha;
          old += s[i * g.value_dim + d] * key[i];
          old_size += size[i * g.value_dim + d] * std::abs(key[i]);
        }
        const double delta = beta * (v[d] - old);
        double out = 0.0;
        double out_size = 0.0;
        for (int64_t i = 0; i < g.key_dim; ++i) {
          s[i * g.value_dim + d] += key[i] * delta;
          size[i * g.value_dim + d] += std::abs(key[i] * delta);
          out += s[i * g.value_dim + d] * query[i];
          out_size += size[i * g.value_dim + d] * std::abs(query[i]);
        }
        largest = std::max({largest, std::abs(v[d]) + old_size, out_size});
        truth.y[t * g.out() + h * g.value_dim + d] = out;
      }
      // Per token: key_dim fmas of S^T x, up to 2 x 16 of pending rows with their products, two l2 norms (key_dim / 16 + 8 each),
      // the exponentials (4 eps each, and eps times the exponent), a dozen single operations. Errors of earlier tokens stay in S
      // and are not amplified, since I - beta k k^T and alpha are contractions: at most t + 1 times the local one.
      const double local = static_cast<double>(g.key_dim) * 1.125 + 32 + 16 + 12 + 12 + chunk_decay;
      for (int64_t d = 0; d < g.value_dim; ++d) {
        truth.bound[t * g.out() + h * g.value_dim + d] = local * kEps * static_cast<double>(t + 1) * largest;
      }
    }
  }
  return truth;
}

const std::array<Geometry, 6> kGeometries = {Geometry{1, 1, 16, 16}, Geometry{2, 2, 32, 48}, Geometry{2, 4, 16, 32},
                                             Geometry{1, 3, 64, 64}, Geometry{2, 6, 32, 16}, Geometry{1, 2, 128, 128}};

using DeltaTest = EveryBackendTest;

TEST_P(DeltaTest, FollowsTheRecurrence) {
  uint64_t seed = 100;
  for (const Geometry& g : kGeometries) {
    const Sequence q(g, 70, ++seed);
    const Truth truth = recurrence(q);
    const std::vector<float> expected(truth.y.begin(), truth.y.end());
    const std::vector<float> y = run(*backend_, q, {70});
    EXPECT_TRUE(within(y, expected, truth.bound)) << g.key_dim << " x " << g.value_dim;
    EXPECT_TRUE(same_bits(y, run(*generic_, q, {70})));
    EXPECT_TRUE(within(run(*reference_, q, {70}), expected, truth.bound));
  }
}

TEST_P(DeltaTest, AnyCuttingGivesTheSameBits) {
  std::vector<std::vector<int64_t>> cuttings = {
      std::vector<int64_t>(70, 1), {16, 16, 16, 16, 6}, {15, 1, 1, 15, 38}, {17, 53}, {33, 0, 37}, {64, 1, 1, 1, 1, 1, 1}};
  Random random(9);
  for (int i = 0; i < 6; ++i) {
    std::vector<int64_t> pieces;
    for (int64_t left = 70; left > 0; left -= pieces.back()) pieces.push_back(std::min<int64_t>(left, 1 + random.below(25)));
    cuttings.push_back(pieces);
  }
  for (const Geometry& g : kGeometries) {
    const Sequence q(g, 70, 5);
    const std::vector<float> whole = run(*backend_, q, {70});
    for (const std::vector<int64_t>& pieces : cuttings) ASSERT_TRUE(same_bits(run(*backend_, q, pieces), whole));
  }
  // The state a cutting leaves behind is what the next token shows: 70 tokens above cover every phase; the reference obeys as well.
  const Sequence q({1, 2, 16, 16}, 70, 6);
  const std::vector<float> whole = run(*reference_, q, {70});
  for (const std::vector<int64_t>& pieces : cuttings) ASSERT_TRUE(same_bits(run(*reference_, q, pieces), whole));
}

TEST_P(DeltaTest, SequencesOfABatchDoNotMeet) {
  const Geometry g{2, 4, 32, 32};
  const std::array<Sequence, 3> sequences = {Sequence(g, 40, 21), Sequence(g, 40, 22), Sequence(g, 40, 23)};
  const std::array<int64_t, 3> slots = {3, 0, 2};
  State state(g, 4);
  std::array<std::vector<float>, 3> outputs;
  std::array<int64_t, 3> position = {0, 0, 0};
  // Each round takes a different number of tokens of each sequence, some none.
  for (int64_t round = 0; position[0] < 40 || position[1] < 40 || position[2] < 40; ++round) {
    std::vector<Span> spans;
    std::vector<float> qkv, a, b;
    std::vector<size_t> owners;
    int64_t row = 0;
    for (size_t i = 0; i < 3; ++i) {
      const size_t j = (i + static_cast<size_t>(round)) % 3;
      const int64_t tokens = std::min<int64_t>(40 - position[j], (round * 7 + static_cast<int64_t>(j) * 5) % 12);
      if (tokens == 0) continue;
      spans.push_back({.row = row, .tokens = tokens, .position = position[j], .slot = slots[j]});
      owners.push_back(j);
      const Sequence& q = sequences[j];
      qkv.insert(qkv.end(), q.qkv.begin() + position[j] * g.row(), q.qkv.begin() + (position[j] + tokens) * g.row());
      a.insert(a.end(), q.a.begin() + position[j] * g.value_heads, q.a.begin() + (position[j] + tokens) * g.value_heads);
      b.insert(b.end(), q.b.begin() + position[j] * g.value_heads, q.b.begin() + (position[j] + tokens) * g.value_heads);
      position[j] += tokens;
      row += tokens;
    }
    std::vector<float> y(static_cast<size_t>(row * g.out()));
    step(*backend_, sequences[0], &state, y.data(), {spans.data(), static_cast<int64_t>(spans.size())}, qkv.data(), a.data(),
         b.data());
    for (size_t i = 0; i < spans.size(); ++i) {
      std::vector<float>& out = outputs[owners[i]];
      out.insert(out.end(), y.begin() + spans[i].row * g.out(), y.begin() + (spans[i].row + spans[i].tokens) * g.out());
    }
  }
  for (size_t j = 0; j < 3; ++j) EXPECT_TRUE(same_bits(outputs[j], run(*backend_, sequences[j], {40})));
}

// What BackendOptions::cublas makes of spans of many tokens: no promised bits, the recurrence still.
TEST_P(DeltaTest, ByTensorCoresFollowsTheRecurrence) {
  std::unique_ptr<Backend> tensor;
  if (GetParam() == "cuda") tensor = std::make_unique<StagingBackend>(make_backend("cuda", {.cublas = true}));
  if (GetParam() == "cuda-emulated") tensor = std::make_unique<StagingBackend>(make_emulated_cuda_backend(0, 0, 1 << 20));
  if (!tensor) GTEST_SKIP() << "a path of the cuda backend";
  uint64_t seed = 300;
  for (const Geometry& g : kGeometries) {
    const int64_t tokens = kWideTokens + 41;
    const Sequence q(g, tokens, ++seed);
    Truth truth = recurrence(q);
    const std::vector<float> expected(truth.y.begin(), truth.y.end());
    // An operand is hi + lo but for 2^-22 of itself, and lo * lo, 2^-22 of a product at most, is left out: 3 * 2^-22 of a product,
    // 12 rounding errors of fp32. Three sums follow each other, over rows, the state and the fold: 36 more than `local`, which is
    // 90 or more.
    for (double& bound : truth.bound) bound *= 2;
    const std::vector<float> whole = run(*tensor, q, {tokens});
    EXPECT_TRUE(within(whole, expected, truth.bound)) << g.key_dim << " x " << g.value_dim;
    // Chunks begun by one call and ended by another.
    EXPECT_TRUE(within(run(*tensor, q, {5, kWideTokens + 3, 33}), expected, truth.bound));
    // They were used, and for short spans they are not.
    const std::vector<float> contract = run(*backend_, q, {tokens});
    EXPECT_FALSE(same_bits(whole, contract));
    EXPECT_TRUE(same_bits(run(*tensor, q, {kWideTokens - 1, 42}), contract));
  }
}

// Two pieces of one sequence in one batch, with another sequence between them.
TEST_P(DeltaTest, PiecesOfOneSequenceInABatchFollowEachOther) {
  const Geometry g{1, 2, 16, 32};
  const Sequence first(g, 21, 33);
  const Sequence second(g, 21, 34);
  State state(g, 2);
  // Rows 0-20 are the first sequence, rows 21-41 the second.
  const auto joined = [](std::vector<float> a, const std::vector<float>& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
  };
  const std::vector<float> qkv = joined(first.qkv, second.qkv), a = joined(first.a, second.a), b = joined(first.b, second.b);
  const std::array<Span, 3> spans = {Span{.row = 0, .tokens = 14, .position = 0, .slot = 1},
                                     Span{.row = 21, .tokens = 21, .position = 0, .slot = 0},
                                     Span{.row = 14, .tokens = 7, .position = 14, .slot = 1}};
  std::vector<float> y(static_cast<size_t>(42 * g.out()));
  step(*backend_, first, &state, y.data(), {spans.data(), 3}, qkv.data(), a.data(), b.data());
  EXPECT_TRUE(same_bits(y, joined(run(*backend_, first, {21}), run(*backend_, second, {21}))));
}

TEST_P(DeltaTest, ASlotIsReusedFromPositionZero) {
  const Geometry g{1, 2, 16, 32};
  const Sequence first(g, 21, 31);
  const Sequence second(g, 21, 32);
  State state(g, 1);
  const Span span{.row = 0, .tokens = 21, .position = 0, .slot = 0};
  std::vector<float> y(static_cast<size_t>(21 * g.out()));
  step(*backend_, first, &state, y.data(), {&span, 1}, first.qkv.data(), first.a.data(), first.b.data());
  step(*backend_, second, &state, y.data(), {&span, 1}, second.qkv.data(), second.a.data(), second.b.data());
  EXPECT_TRUE(same_bits(y, run(*backend_, second, {21})));
}

INSTANTIATE_TEST_SUITE_P(Backends, DeltaTest, ::testing::ValuesIn(every_backend()), backend_test_name);

}  // namespace
}  // namespace pq
