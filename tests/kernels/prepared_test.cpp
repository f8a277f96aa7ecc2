// Operations that also rotate and quantise what they write, on every backend: the bits of the operation alone followed by prepare.
#include "tests/kernels/every_backend.h"

namespace pq {
namespace {

class PreparedTest : public EveryBackendTest {
 protected:
  // The coded form of [tokens, dim], between guards.
  struct Coded {
    Coded(ActivationMode m, int64_t count)
        : mode(m),
          rotated(mode == ActivationMode::f32 ? count : 0),
          codes(mode == ActivationMode::int8 ? count : 0),
          scales(mode == ActivationMode::int8 ? count / kBlock : 0) {}
    Prepared view() {
      if (mode == ActivationMode::f32) return {.mode = mode, .rotated = rotated.data()};
      return {.mode = mode, .codes = codes.data(), .scales = scales.data()};
    }
    ActivationMode mode;
    Guarded<float> rotated;
    Guarded<int8_t> codes;
    Guarded<float> scales;
  };

  // run(y, prepared) writes y [tokens, dim]; the second argument is empty for the operation alone.
  template <typename Run>
  void expect_fused(int64_t tokens, int64_t dim, const Run& run) {
    for (const ActivationMode mode : {ActivationMode::int8, ActivationMode::f32}) {
      const int64_t count = tokens * dim;
      Guarded<float> y(count), fused_y(count);
      Coded coded(mode, count), fused(mode, count);
      run(y.data(), Prepared{.mode = mode});
      backend_->prepare({.x = y.data(), .tokens = tokens, .dim = dim, .prepared = coded.view()});
      run(fused_y.data(), fused.view());
      EXPECT_TRUE(fused_y.intact() && fused.rotated.intact() && fused.codes.intact() && fused.scales.intact());
      EXPECT_TRUE(same_bits(y.values(), fused_y.values()));
      EXPECT_TRUE(same_bits(coded.rotated.values(), fused.rotated.values()));
      EXPECT_TRUE(same_bits(coded.scales.values(), fused.scales.values()));
      EXPECT_EQ(coded.codes.values(), fused.codes.values());
    }
  }
};

TEST_P(PreparedTest, NormIsNormThenPrepare) {
  for (const int64_t dim : {128, 384, 5120}) {
    for (const int64_t rows : {1, 5}) {
      const std::vector<float> x = normals(rows * dim, 4), weight = normals(dim, 5);
      expect_fused(rows, dim, [&](float* y, const Prepared& prepared) {
        backend_->rms_norm({.y = y,
                            .x = x.data(),
                            .weight = weight.data(),
                            .rows = rows,
                            .dim = dim,
                            .eps = 1e-6f,
                            .weight_offset = 1.0f,
                            .prepared = prepared});
      });
    }
  }
}

// The sum in place of x, in a place of its own, and in place of y; a row that is longer than what a block of threads keeps, too.
TEST_P(PreparedTest, AddedNormIsAddThenNorm) {
  for (const int64_t dim : {16, 384, 10368}) {
    const int64_t rows = 3, count = rows * dim;
    const std::vector<float> x = normals(count, 4), added = normals(count, 5, 2.0), weight = normals(dim, 6);
    std::vector<float> sum = x;
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += added[i];
    const auto norm = [&](float* y, const float* from, const float* plus, float* place, const Prepared& prepared) {
      backend_->rms_norm({.y = y,
                          .x = from,
                          .weight = weight.data(),
                          .rows = rows,
                          .dim = dim,
                          .eps = 1e-6f,
                          .weight_offset = 1.0f,
                          .prepared = prepared,
                          .added = plus,
                          .sum = place});
    };
    std::vector<float> expected(sum.size());
    norm(expected.data(), sum.data(), nullptr, nullptr, {});
    Guarded<float> y(count), place(count);
    norm(y.data(), x.data(), added.data(), place.data(), {});
    EXPECT_TRUE(y.intact() && place.intact());
    EXPECT_TRUE(same_bits(y.values(), expected) && same_bits(place.values(), sum));
    std::vector<float> stream = x, both(sum.size());
    norm(y.data(), stream.data(), added.data(), stream.data(), {});
    EXPECT_TRUE(same_bits(y.values(), expected) && same_bits(stream, sum));
    norm(both.data(), x.data(), added.data(), both.data(), {});
    EXPECT_TRUE(same_bits(both, expected));
    if (dim % kBlock != 0) continue;
    expect_fused(rows, dim, [&](float* out, const Prepared& prepared) {
      stream = x;
      norm(out, stream.data(), added.data(), stream.data(), prepared);
      EXPECT_TRUE(same_bits(stream, sum));
    });
  }
}

// Heads that are a block, several blocks, and a part of one.
TEST_P(PreparedTest, GatedNormIsGatedNormThenPrepare) {
  for (const auto& [heads, dim] : {std::pair<int64_t, int64_t>{3, 128}, {2, 256}, {4, 64}, {8, 48}}) {
    for (const int64_t tokens : {1, 3}) {
      const int64_t rows = tokens * heads;
      const std::vector<float> x = normals(rows * dim, 6), gate = normals(rows * dim, 7, 3.0), weight = normals(dim, 8);
      expect_fused(tokens, heads * dim, [&, dim = dim](float* y, const Prepared& prepared) {
        std::copy(x.begin(), x.end(), y);
        backend_->gated_rms_norm({.y = y,
                                  .x = y,
                                  .gate = gate.data(),
                                  .weight = weight.data(),
                                  .rows = rows,
                                  .dim = dim,
                                  .eps = 1e-6f,
                                  .prepared = prepared});
      });
    }
  }
}

TEST_P(PreparedTest, SwigluIsSwigluThenPrepare) {
  const int64_t rows = 384, dim = 256;
  for (const MatrixKind kind : {MatrixKind{WeightFormat::polar, 5}, MatrixKind{WeightFormat::bf16}}) {
    const OwnedMatrix gate = random_matrix(kind, rows, dim, 1, 21), up = random_matrix(kind, rows, dim, 1, 22);
    for (const int64_t tokens : {1, 2, 9}) {
      const std::vector<float> x = normals(tokens * dim, 23, 0.1);
      std::vector<int8_t> codes(x.size());
      std::vector<float> scales(x.size() / kBlock), rotated(x.size());
      backend_->prepare(
          {.x = x.data(), .tokens = tokens, .dim = dim, .prepared = {.codes = codes.data(), .scales = scales.data()}});
      backend_->prepare(
          {.x = x.data(), .tokens = tokens, .dim = dim, .prepared = {.mode = ActivationMode::f32, .rotated = rotated.data()}});
      expect_fused(tokens, rows, [&](float* y, const Prepared& prepared) {
        backend_->swiglu({.y = y,
                          .x = {.mode = prepared.mode,
                                .tokens = tokens,
                                .dim = dim,
                                .raw = x.data(),
                                .rotated = rotated.data(),
                                .codes = codes.data(),
                                .scales = scales.data()},
                          .gate = gate.matrix,
                          .up = up.matrix,
                          .prepared = prepared});
      });
    }
  }
}

// Heads of one kv head that are whole blocks, and that end inside one.
TEST_P(PreparedTest, AttentionIsAttentionThenPrepare) {
  struct Shape {
    int64_t heads, kv_heads, head_dim;
  };
  for (const Shape s : {Shape{4, 2, 32}, Shape{6, 2, 64}, Shape{6, 1, 256}, Shape{8, 2, 128}}) {
    const int64_t context = 150, size = s.heads * s.head_dim;
    const int64_t plane = 2 * s.kv_heads * context * s.head_dim;
    std::vector<float> k = normals(plane, 31), v = normals(plane, 32);
    const std::vector<Span> spans = {{.row = 3, .tokens = 1, .position = 140, .slot = 0},
                                     {.row = 0, .tokens = 3, .position = 5, .slot = 1}};
    const int64_t tokens = 4;
    const std::vector<float> q = normals(tokens * size, 33), q_gate = normals(2 * tokens * size, 34);
    expect_fused(tokens, size, [&](float* y, const Prepared& prepared) {
      backend_->attention({.y = y,
                           .q = q.data(),
                           .q_gate = q_gate.data(),
                           .heads = s.heads,
                           .cache = {.type = KvType::f32,
                                     .k = k.data(),
                                     .v = v.data(),
                                     .kv_heads = s.kv_heads,
                                     .context = context,
                                     .head_dim = s.head_dim},
                           .spans = {spans.data(), 2},
                           .prepared = prepared});
    });
  }
}

// No tokens are legal, with and without a coded form.
TEST_P(PreparedTest, NoTokensDoNothing) {
  float y = 1.0f;
  int8_t code = 1;
  float scale = 1.0f;
  const std::vector<float> gate_up(256 * 256), weight(256);
  const Matrix matrix{.rows = 256, .cols = 256, .data = gate_up.data()};
  const Prepared prepared{.codes = &code, .scales = &scale};
  const Span span{.row = 0, .tokens = 0, .position = 3, .slot = 0};
  std::vector<float> cache(256 * 8);
  const KvCache kv{.type = KvType::f32, .k = cache.data(), .v = cache.data(), .kv_heads = 1, .context = 8, .head_dim = 256};
  backend_->rms_norm(
      {.y = &y, .x = &y, .weight = weight.data(), .rows = 0, .dim = 256, .eps = 1, .weight_offset = 0, .prepared = prepared});
  backend_->gated_rms_norm(
      {.y = &y, .x = &y, .gate = &y, .weight = weight.data(), .rows = 0, .dim = 256, .eps = 1, .prepared = prepared});
  backend_->swiglu({.y = &y, .x = {.tokens = 0, .dim = 256, .raw = &y}, .gate = matrix, .up = matrix, .prepared = prepared});
  for (const int64_t spans : {0, 1})
    backend_->attention({.y = &y, .q = &y, .q_gate = &y, .heads = 1, .cache = kv, .spans = {&span, spans}, .prepared = prepared});
  EXPECT_EQ(y, 1.0f);
  EXPECT_EQ(code, 1);
  EXPECT_EQ(scale, 1.0f);
}

INSTANTIATE_TEST_SUITE_P(Backends, PreparedTest, ::testing::ValuesIn(every_backend()), backend_test_name);

}  // namespace
}  // namespace pq
