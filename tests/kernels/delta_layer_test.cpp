// A Gated DeltaNet layer in one operation, on every backend: the bits of its three operations in turn, in what it writes and in the
// state it leaves. How those operations compare with the reference is tested in ops_test.cpp and delta_test.cpp.
#include "base/error.h"
#include "tests/kernels/every_backend.h"
#include "tests/support/simt/simt.h"

namespace pq {
namespace {

struct Geometry {
  int64_t key_heads, value_heads, key_dim, value_dim;
  int64_t keys() const { return key_heads * key_dim; }
  int64_t out() const { return value_heads * value_dim; }
  int64_t channels() const { return 2 * keys() + out(); }
};

constexpr int64_t kSlots = 3;

// One layer and its state, which is full of NaN where nothing has been written.
struct Layer {
  Geometry g;
  std::vector<float> conv_weight, a_log, dt_bias, norm_weight;
  std::vector<float> conv, s, k, delta, decay;

  explicit Layer(const Geometry& geometry)
      : g(geometry),
        conv_weight(normals(4 * g.channels(), 1)),
        a_log(normals(g.value_heads, 2, 0.7)),
        dt_bias(normals(g.value_heads, 3)),
        norm_weight(normals(g.value_dim, 4)),
        conv(static_cast<size_t>(kSlots * kConvRows * g.channels()), NAN),
        s(static_cast<size_t>(kSlots * g.key_dim * g.out()), NAN),
        k(static_cast<size_t>(kSlots * kDeltaChunk * g.keys()), NAN),
        delta(static_cast<size_t>(kSlots * kDeltaChunk * g.out()), NAN),
        decay(static_cast<size_t>(kSlots * kDeltaChunk * g.value_heads), NAN) {}

  // The pending deltas that a token may read: those of a chunk's last row go into the state at once.
  std::vector<float> readable_deltas() const {
    std::vector<float> rows;
    for (int64_t row = 0; row < kSlots * kDeltaChunk; ++row) {
      if (row % kDeltaChunk != kDeltaChunk - 1)
        rows.insert(rows.end(), delta.begin() + row * g.out(), delta.begin() + (row + 1) * g.out());
    }
    return rows;
  }
};

struct Outputs {
  std::vector<float> y, rotated, scales;
  std::vector<int8_t> codes;
};

struct Coding {
  bool wanted;
  ActivationMode mode;
};

int64_t tokens_of(const std::vector<Span>& spans) {
  int64_t tokens = 0;
  for (const Span& span : spans) tokens += span.tokens;
  return tokens;
}

// The inputs of a step.
struct Inputs {
  std::vector<float> x, a, b, gate;
  Inputs(const Geometry& g, int64_t tokens, uint64_t seed)
      : x(normals(tokens * g.channels(), seed)),
        a(normals(tokens * g.value_heads, seed + 1, 2.0)),
        b(normals(tokens * g.value_heads, seed + 2, 2.0)),
        gate(normals(tokens * g.out(), seed + 3, 2.0)) {
    // The branch of softplus above 20.
    if (!a.empty()) a.back() = 25.0f;
  }
};

enum class Way { together, in_turn };

// in_place: the norm's y is its x.
Outputs run(Backend& backend, Layer* layer, const std::vector<Span>& spans, const Inputs& in, Coding coding, Way way,
            bool in_place = true) {
  const Geometry& g = layer->g;
  const int64_t tokens = tokens_of(spans), count = tokens * g.out();
  const bool integer = coding.wanted && coding.mode == ActivationMode::int8, rotated = coding.wanted && !integer;
  Guarded<float> convolved(tokens * g.channels()), mixed(count), y(count), turned(rotated ? count : 0),
      scales(integer ? count / kBlock : 0);
  Guarded<int8_t> codes(integer ? count : 0);
  Prepared prepared{.mode = coding.mode};
  if (rotated) prepared.rotated = turned.data();
  if (integer) {
    prepared.codes = codes.data();
    prepared.scales = scales.data();
  }
  const Spans all{spans.data(), static_cast<int64_t>(spans.size())};
  const GatedDeltaLayerArgs args{
      .conv = {.y = convolved.data(),
               .x = in.x.data(),
               .weight = layer->conv_weight.data(),
               .state = layer->conv.data(),
               .channels = g.channels(),
               .spans = all},
      .delta = {.y = mixed.data(),
                .qkv = convolved.data(),
                .a = in.a.data(),
                .b = in.b.data(),
                .a_log = layer->a_log.data(),
                .dt_bias = layer->dt_bias.data(),
                .state = {.s = layer->s.data(), .k = layer->k.data(), .delta = layer->delta.data(), .decay = layer->decay.data()},
                .key_heads = g.key_heads,
                .value_heads = g.value_heads,
                .key_dim = g.key_dim,
                .value_dim = g.value_dim,
                .spans = all},
      .norm = {.y = in_place ? mixed.data() : y.data(),
               .x = mixed.data(),
               .gate = in.gate.data(),
               .weight = layer->norm_weight.data(),
               .rows = tokens * g.value_heads,
               .dim = g.value_dim,
               .eps = 1e-6f,
               .prepared = prepared}};
  if (way == Way::together) {
    backend.gated_delta_layer(args);
  } else {
    backend.causal_conv(args.conv);
    backend.gated_delta(args.delta);
    backend.gated_rms_norm(args.norm);
  }
  EXPECT_TRUE(convolved.intact() && mixed.intact() && y.intact() && turned.intact() && scales.intact() && codes.intact());
  return {in_place ? mixed.values() : y.values(), turned.values(), scales.values(), codes.values()};
}

void expect_same(const Outputs& a, const Outputs& b) {
  EXPECT_TRUE(same_bits(a.y, b.y));
  EXPECT_TRUE(same_bits(a.rotated, b.rotated));
  EXPECT_TRUE(same_bits(a.scales, b.scales));
  EXPECT_EQ(a.codes, b.codes);
}

void expect_same_state(const Layer& a, const Layer& b) {
  EXPECT_TRUE(same_bits(a.conv, b.conv));
  EXPECT_TRUE(same_bits(a.s, b.s));
  EXPECT_TRUE(same_bits(a.k, b.k));
  EXPECT_TRUE(same_bits(a.readable_deltas(), b.readable_deltas()));
  EXPECT_TRUE(same_bits(a.decay, b.decay));
}

// Keys shared by one, two and three value heads; heads of half a block, of one, shorter and wider than what a device does at once.
const std::vector<Geometry> kGeometries = {{1, 1, 16, 16},   {2, 2, 32, 48},   {1, 3, 64, 64},  {2, 4, 64, 64}, {2, 2, 16, 128},
                                           {1, 3, 128, 128}, {2, 4, 128, 128}, {1, 2, 16, 192}, {1, 2, 144, 32}};

// Steps of three sequences: a chunk's first row, its last but one and its last, the first of the next chunk; prompts between single
// tokens; rows in another order than spans; two tokens of one sequence; a slot that begins anew; a span without tokens.
const std::vector<std::vector<Span>> kSteps = {
    {{.row = 1, .tokens = 14, .position = 0, .slot = 2}, {.row = 0, .tokens = 1, .position = 0, .slot = 0}},
    {{.row = 2, .tokens = 1, .position = 14, .slot = 2},
     {.row = 0, .tokens = 1, .position = 1, .slot = 0},
     {.row = 1, .tokens = 1, .position = 0, .slot = 1}},
    {{.row = 0, .tokens = 1, .position = 15, .slot = 2}, {.row = 1, .tokens = 1, .position = 1, .slot = 1}},
    {{.row = 0, .tokens = 1, .position = 2, .slot = 0}, {.row = 1, .tokens = 1, .position = 16, .slot = 2}},
    {{.row = 0, .tokens = 14, .position = 17, .slot = 2}},
    {{.row = 0, .tokens = 1, .position = 31, .slot = 2}},
    {{.row = 0, .tokens = 1, .position = 32, .slot = 2}},
    {{.row = 0, .tokens = 1, .position = 2, .slot = 1}, {.row = 1, .tokens = 1, .position = 3, .slot = 1}},
    {{.row = 0, .tokens = 1, .position = 4, .slot = 1}, {.row = 1, .tokens = 1, .position = 0, .slot = 2}},
    {{.row = 0, .tokens = 1, .position = 1, .slot = 2}, {.row = 1, .tokens = 0, .position = 3, .slot = 0}},
};

using DeltaLayerTest = EveryBackendTest;

TEST_P(DeltaLayerTest, IsItsThreeOperationsInTurn) {
  for (const Geometry& g : kGeometries) {
    for (const Coding coding :
         {Coding{false, ActivationMode::int8}, Coding{true, ActivationMode::int8}, Coding{true, ActivationMode::f32}}) {
      if (coding.wanted && g.out() % kBlock != 0) continue;
      Layer together(g), in_turn(g), host(g);
      uint64_t seed = 50;
      for (size_t i = 0; i < kSteps.size(); ++i) {
        SCOPED_TRACE(std::to_string(g.key_dim) + " x " + std::to_string(g.value_dim) + ", step " + std::to_string(i));
        const Inputs in(g, tokens_of(kSteps[i]), seed += 10);
        const Outputs out = run(*backend_, &together, kSteps[i], in, coding, Way::together, i % 2 == 0);
        expect_same(out, run(*backend_, &in_turn, kSteps[i], in, coding, Way::in_turn));
        expect_same(out, run(*generic_, &host, kSteps[i], in, coding, Way::in_turn));
        expect_same_state(together, in_turn);
        if (HasFailure()) return;
      }
    }
  }
}

// Every row of two chunks, token by token.
TEST_P(DeltaLayerTest, EveryPositionOfTwoChunks) {
  for (const Geometry& g : {Geometry{1, 2, 16, 64}, Geometry{1, 1, 128, 128}}) {
    Layer together(g), in_turn(g);
    for (int64_t position = 0; position < 2 * kDeltaChunk + 1; ++position) {
      const std::vector<Span> spans = {{.row = 0, .tokens = 1, .position = position, .slot = 1}};
      const Inputs in(g, 1, static_cast<uint64_t>(200 + 10 * position));
      expect_same(run(*backend_, &together, spans, in, {true, ActivationMode::int8}, Way::together),
                  run(*backend_, &in_turn, spans, in, {true, ActivationMode::int8}, Way::in_turn));
      expect_same_state(together, in_turn);
      ASSERT_FALSE(HasFailure()) << "position " << position;
    }
  }
}

TEST_P(DeltaLayerTest, TheReferenceTakesThemInTurnToo) {
  const Geometry g{1, 2, 32, 64};
  Layer together(g), in_turn(g);
  for (const std::vector<Span>& spans : kSteps) {
    const Inputs in(g, tokens_of(spans), 7);
    expect_same(run(*reference_, &together, spans, in, {true, ActivationMode::int8}, Way::together),
                run(*reference_, &in_turn, spans, in, {true, ActivationMode::int8}, Way::in_turn));
    expect_same_state(together, in_turn);
  }
}

TEST_P(DeltaLayerTest, RefusesOperationsThatDoNotFollowEachOther) {
  const Geometry g{1, 1, 16, 16};
  std::vector<float> area(4096), other(4096);
  const Span span{.row = 0, .tokens = 1, .position = 0, .slot = 0};
  const GatedDeltaLayerArgs right{.conv = {.y = area.data(),
                                           .x = other.data(),
                                           .weight = other.data(),
                                           .state = area.data(),
                                           .channels = g.channels(),
                                           .spans = {&span, 1}},
                                  .delta = {.y = area.data() + 512,
                                            .qkv = area.data(),
                                            .a = other.data(),
                                            .b = other.data(),
                                            .a_log = other.data(),
                                            .dt_bias = other.data(),
                                            .state = {.s = area.data() + 1024,
                                                      .k = area.data() + 2048,
                                                      .delta = area.data() + 2560,
                                                      .decay = area.data() + 3072},
                                            .key_heads = 1,
                                            .value_heads = 1,
                                            .key_dim = 16,
                                            .value_dim = 16,
                                            .spans = {&span, 1}},
                                  .norm = {.y = area.data() + 512,
                                           .x = area.data() + 512,
                                           .gate = other.data(),
                                           .weight = other.data(),
                                           .rows = 1,
                                           .dim = 16,
                                           .eps = 1}};
  const auto refused = [&](auto change) {
    GatedDeltaLayerArgs args = right;
    change(args);
    try {
      backend_->gated_delta_layer(args);
      return false;
    } catch (const Error& error) {
      return error.kind() == ErrorKind::internal && std::string(error.what()).find("gated_delta_layer") != std::string::npos;
    }
  };
  EXPECT_TRUE(refused([&](GatedDeltaLayerArgs& args) { args.delta.qkv = other.data(); }));
  EXPECT_TRUE(refused([&](GatedDeltaLayerArgs& args) { args.norm.x = other.data(); }));
  EXPECT_TRUE(refused([&](GatedDeltaLayerArgs& args) { args.norm.rows = 2; }));
  EXPECT_TRUE(refused([&](GatedDeltaLayerArgs& args) { args.norm.dim = 8; }));
  EXPECT_TRUE(refused([&](GatedDeltaLayerArgs& args) { args.conv.channels = 64; }));
  EXPECT_TRUE(refused([&](GatedDeltaLayerArgs& args) { args.conv.spans.count = 0; }));
}

INSTANTIATE_TEST_SUITE_P(Backends, DeltaLayerTest, ::testing::ValuesIn(every_backend()), backend_test_name);

// What a device launches: one kernel for tokens of different sequences where heads are whole blocks, or no coded form is wanted.
TEST(DeltaLayerOnADevice, IsOneLaunchForSingleTokens) {
  StagingBackend backend(make_emulated_cuda_backend());
  const auto launches = [&](const Geometry& g, const std::vector<Span>& spans, bool wanted) {
    Layer layer(g);
    const Inputs in(g, tokens_of(spans), 3);
    const int64_t before = simt::launches();
    run(backend, &layer, spans, in, {wanted, ActivationMode::int8}, Way::together);
    return simt::launches() - before;
  };
  const std::vector<Span> two = {{.row = 0, .tokens = 1, .position = 0, .slot = 1},
                                 {.row = 1, .tokens = 1, .position = 0, .slot = 0}};
  EXPECT_EQ(launches({1, 2, 128, 128}, two, true), 1);
  EXPECT_EQ(launches({1, 2, 32, 64}, two, false), 1);
  EXPECT_EQ(launches({1, 2, 32, 64}, two, true), 2);
  EXPECT_EQ(launches({1, 2, 32, 64}, {{.row = 0, .tokens = 2, .position = 0, .slot = 0}}, false), 4);
}

}  // namespace
}  // namespace pq
