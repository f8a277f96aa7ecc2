// Tiny cases whose answers can be worked out by hand, on every backend.
#include <array>

#include "base/error.h"
#include "tests/kernels/every_backend.h"

namespace pq {
namespace {

class PencilTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (!backend_) GTEST_SKIP() << "this machine has no GPU";
  }
  static bool on_device() { return std::string(GetParam()).substr(0, 4) == "cuda"; }
  std::unique_ptr<Backend> backend_ = make_test_backend(GetParam());
};

// One or two roundings of a value of this size.
constexpr float kUlp = 2.4e-7f;

TEST_P(PencilTest, NamesAndMemory) {
  const std::string device = GetParam();
  EXPECT_EQ(backend_->name().substr(0, 3), device == "staged" ? "cpu" : device.substr(0, 3));
  for (int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{1000}, int64_t{1} << 20, (int64_t{5} << 20) + 3}) {
    const Buffer buffer = backend_->allocate(bytes);
    EXPECT_EQ(buffer.bytes(), bytes);
    EXPECT_EQ(backend_->host_pointer(buffer), on_device() ? nullptr : buffer.data());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 256, 0u);
    std::vector<uint8_t> content(static_cast<size_t>(bytes), 7);
    backend_->download(content.data(), buffer.data(), bytes);
    EXPECT_EQ(content, std::vector<uint8_t>(static_cast<size_t>(bytes), 0));
    if (bytes == 0) continue;
    const uint8_t nine = 9;
    uint8_t back = 0;
    backend_->upload(buffer.as<uint8_t>() + bytes - 1, &nine, 1);
    backend_->zero(buffer.data(), bytes);
    backend_->download(&back, buffer.as<uint8_t>() + bytes - 1, 1);
    EXPECT_EQ(back, 0);
    backend_->upload(buffer.as<uint8_t>() + bytes - 1, &nine, 1);
    backend_->synchronize();
    backend_->download(&back, buffer.as<uint8_t>() + bytes - 1, 1);
    EXPECT_EQ(back, 9);
  }
  try {
    backend_->allocate(int64_t{1} << 60);
    FAIL() << "an exbibyte was granted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::environment);
    const char* size = on_device() ? "1152921504.61 GB" : "1152921504606846976 bytes";
    EXPECT_NE(std::string(error.what()).find(size), std::string::npos) << error.what();
  }
}

TEST_P(PencilTest, Embed) {
  // Rows (1, -0) and (3, 4) are rows 10 and 11 of the whole table.
  const std::array<float, 4> table = {1.0f, -0.0f, 3.0f, 4.0f};
  const std::array<int32_t, 4> ids = {11, 10, 9, 12};
  std::array<float, 8> y;
  y.fill(-1.0f);
  backend_->embed({.y = y.data(),
                   .ids = ids.data(),
                   .tokens = 4,
                   .table = {.format = WeightFormat::f32, .rows = 2, .cols = 2, .units = 1, .data = table.data()},
                   .first_row = 10});
  EXPECT_EQ(y, (std::array<float, 8>{3.0f, 4.0f, 1.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f}));
  for (float value : y) EXPECT_FALSE(std::signbit(value));
}

TEST_P(PencilTest, RmsNorm) {
  // mean of squares 4, so x / rms = (1, -1, 1, 1); then 1 + w.
  const std::array<float, 4> x = {2.0f, -2.0f, 2.0f, 2.0f};
  const std::array<float, 4> weight = {0.0f, 1.0f, 0.5f, -1.0f};
  std::array<float, 4> y;
  RmsNormArgs args{.y = y.data(), .x = x.data(), .weight = weight.data(), .rows = 1, .dim = 4, .eps = 0.0f, .weight_offset = 1.0f};
  backend_->rms_norm(args);
  EXPECT_EQ(y, (std::array<float, 4>{1.0f, -2.0f, 1.5f, 0.0f}));
  args.weight_offset = 0.0f;
  args.eps = 12.0f;  // root of 16: half of before
  backend_->rms_norm(args);
  EXPECT_EQ(y, (std::array<float, 4>{0.0f, -0.5f, 0.25f, -0.5f}));
}

TEST_P(PencilTest, GatedRmsNorm) {
  // The normed value is 1; silu(ln 3) = ln 3 / (1 + 1/3) = 0.75 ln 3.
  const std::array<float, 4> x = {2.0f, 2.0f, -2.0f, 2.0f};
  const std::array<float, 4> weight = {1.0f, 2.0f, 1.0f, 1.0f};
  const float ln3 = std::log(3.0f);
  const std::array<float, 4> gate = {ln3, ln3, ln3, 0.0f};
  std::array<float, 4> y;
  backend_->gated_rms_norm(
      {.y = y.data(), .x = x.data(), .gate = gate.data(), .weight = weight.data(), .rows = 1, .dim = 4, .eps = 0.0f});
  EXPECT_NEAR(y[0], 0.75f * ln3, kUlp);
  EXPECT_NEAR(y[1], 1.5f * ln3, 2 * kUlp);
  EXPECT_NEAR(y[2], -0.75f * ln3, kUlp);
  EXPECT_EQ(y[3], 0.0f);
}

TEST_P(PencilTest, Prepare) {
  // Block 0 is constant 1: everything lands in coordinate 0, which is 128 / sqrt(128) = sqrt(128). Block 1 is a spike of sqrt(128)
  // at 3: coordinate i is the sign (-1)^popcount(i & 3). Block 2 is zero.
  std::vector<float> x(3 * kBlock, 0.0f);
  std::fill_n(x.begin(), kBlock, 1.0f);
  const float root = 11.3137085f;
  x[kBlock + 3] = root;
  std::vector<float> rotated(x.size());
  std::vector<int8_t> codes(x.size(), 99);
  std::vector<float> scales(3);
  PrepareArgs args{
      .x = x.data(),
      .tokens = 1,
      .dim = 3 * kBlock,
      .prepared = {.mode = ActivationMode::f32, .rotated = rotated.data(), .codes = codes.data(), .scales = scales.data()}};
  backend_->prepare(args);
  args.prepared.mode = ActivationMode::int8;
  backend_->prepare(args);
  EXPECT_NEAR(rotated[0], root, 1e-6f);
  EXPECT_EQ(codes[0], 127);
  EXPECT_NEAR(scales[0], root / 127.0f, 1e-8f);
  EXPECT_NEAR(scales[1], 1.0f / 127.0f, 1e-9f);
  EXPECT_EQ(scales[2], 0.0f);
  for (int64_t i = 0; i < kBlock; ++i) {
    if (i > 0) {
      EXPECT_EQ(rotated[i], 0.0f);
      EXPECT_EQ(codes[i], 0);
    }
    const bool odd = (i & 1) != ((i >> 1) & 1);
    EXPECT_NEAR(rotated[kBlock + i], odd ? -1.0f : 1.0f, kUlp);
    EXPECT_EQ(codes[kBlock + i], odd ? -127 : 127);
    EXPECT_EQ(codes[2 * kBlock + i], 0);
  }
}

TEST_P(PencilTest, PrepareRoundsToNearest) {
  // x = 127 + value * (-1)^i has sums 128 * 127 in coordinate 0 and 128 * value in coordinate 1, so scale is one unit f = sqrt(128)
  // and the quotient is `value`, up to the rounding of f in both: a tie may fall either way, so test values beside it by 1e-5.
  for (const auto& [value, code] :
       {std::pair<float, int>{2.49998f, 2}, {2.50002f, 3}, {-3.49998f, -3}, {-3.50002f, -4}, {0.49998f, 0}}) {
    std::vector<float> x(kBlock), rotated(kBlock);
    std::vector<int8_t> codes(kBlock);
    float scale = 0.0f;
    for (int64_t i = 0; i < kBlock; ++i) x[i] = 127.0f + (i % 2 ? -value : value);
    backend_->prepare(
        {.x = x.data(),
         .tokens = 1,
         .dim = kBlock,
         .prepared = {.mode = ActivationMode::int8, .rotated = rotated.data(), .codes = codes.data(), .scales = &scale}});
    EXPECT_NEAR(scale, 11.3137085f, 1e-5f);
    EXPECT_EQ(codes[0], 127);
    EXPECT_EQ(codes[1], code) << value;
    EXPECT_EQ(codes[2], 0);
  }
}

TEST_P(PencilTest, LinearPlainFormats) {
  // Two units of two columns: rows (1 2 | 3 4) and (5 6 | 7 8) are stored unit by unit. x = (1, 10, 100, 1000).
  const std::array<float, 8> f32 = {1.0f, 2.0f, 5.0f, 6.0f, 3.0f, 4.0f, 7.0f, 8.0f};
  std::array<uint16_t, 8> bf16;
  for (size_t i = 0; i < 8; ++i) bf16[i] = f32_to_bf16(f32[i]);
  const std::array<float, 4> x = {1.0f, 10.0f, 100.0f, 1000.0f};
  for (WeightFormat format : {WeightFormat::f32, WeightFormat::bf16}) {
    std::array<float, 2> y{};
    const void* data = format == WeightFormat::f32 ? static_cast<const void*>(f32.data()) : bf16.data();
    backend_->linear({.y = y.data(),
                      .x = {.mode = ActivationMode::f32, .tokens = 1, .dim = 4, .raw = x.data()},
                      .w = {.format = format, .rows = 2, .cols = 4, .units = 2, .data = data}});
    EXPECT_EQ(y, (std::array<float, 2>{4321.0f, 8765.0f}));
    std::array<float, 8> decoded;
    backend_->decode({.w = decoded.data(), .matrix = {.format = format, .rows = 2, .cols = 4, .units = 2, .data = data}});
    EXPECT_EQ(decoded, (std::array<float, 8>{1.0f, 2.0f, 3.0f, 4.0f, 5.0f, 6.0f, 7.0f, 8.0f}));
  }
}

TEST_P(PencilTest, LinearAndDecodeInt4) {
  // Codes 8 (zero) except weight 0: 11, that is 3 steps, and weight 64: 0, that is -8 steps; scale 0.5, zero 2.
  std::array<uint8_t, 64> codes;
  codes.fill(0x88);
  codes[0] = 0x0b;
  const uint16_t scale = f32_to_bf16(0.5f);
  const uint16_t zero = f32_to_bf16(2.0f);
  std::vector<float> x(kBlock, 1.0f);
  x[64] = 10.0f;
  for (bool asymmetric : {false, true}) {
    const Matrix w{.format = WeightFormat::int4,
                   .rows = 1,
                   .cols = kBlock,
                   .units = 1,
                   .data = codes.data(),
                   .scales = &scale,
                   .zeros = asymmetric ? &zero : nullptr};
    float y = 0.0f;
    backend_->linear({.y = &y, .x = {.mode = ActivationMode::f32, .tokens = 1, .dim = kBlock, .raw = x.data()}, .w = w});
    // 1.5 - 4 * 10, plus the zero point times the sum of x, 137.
    EXPECT_EQ(y, asymmetric ? -38.5f + 274.0f : -38.5f);
    std::vector<float> decoded(kBlock);
    backend_->decode({.w = decoded.data(), .matrix = w});
    EXPECT_EQ(decoded[0], asymmetric ? 3.5f : 1.5f);
    EXPECT_EQ(decoded[1], asymmetric ? 2.0f : 0.0f);
    EXPECT_EQ(decoded[64], asymmetric ? -2.0f : -4.0f);
  }
}

TEST_P(PencilTest, LinearAndDecodePolar) {
  // A table of -2, -1, 1, 2. Codes 3 (2) except weight 5: 0 (-2) and weight 9: 2 (1). norm 0.5.
  const Codebook book = codebook_from_table({-2.0f, -1.0f, 1.0f, 2.0f});
  EXPECT_EQ(book.int_magnitudes, (std::vector<int16_t>{64, 127}));  // 63.5 rounds away from zero
  std::array<uint8_t, kBlock> codes;
  codes.fill(3);
  codes[5] = 0;
  codes[9] = 2;
  std::array<uint8_t, 32> packed;
  pack_block(codes.data(), 2, packed.data());
  const uint16_t norm = f32_to_f16(0.5f);
  const Matrix w{.format = WeightFormat::polar,
                 .rows = 1,
                 .cols = kBlock,
                 .units = 1,
                 .data = packed.data(),
                 .scales = &norm,
                 .zeros = nullptr,
                 .codebook = &book};
  EXPECT_EQ(w.data_bytes(), 32);
  EXPECT_EQ(w.scale_bytes(), 2);
  const float root = 11.3137085f;

  std::vector<float> rotated(kBlock, 0.0f);
  rotated[5] = 1.0f;
  rotated[9] = 10.0f;
  rotated[100] = 100.0f;
  float y = 0.0f;
  backend_->linear({.y = &y, .x = {.mode = ActivationMode::f32, .tokens = 1, .dim = kBlock, .rotated = rotated.data()}, .w = w});
  EXPECT_NEAR(y, 208.0f * 0.5f / root, 2e-6f);  // -2 + 10 + 200

  std::vector<int8_t> x(kBlock, 0);
  x[5] = 1;
  x[9] = 10;
  x[100] = 100;
  const float scale = 0.25f;
  backend_->linear(
      {.y = &y, .x = {.mode = ActivationMode::int8, .tokens = 1, .dim = kBlock, .codes = x.data(), .scales = &scale}, .w = w});
  // -127 + 640 + 12700 = 13213 integer steps of 2 / (127 sqrt(128)).
  EXPECT_NEAR(y, 13213.0f * 0.5f * 0.25f * 2.0f / (127.0f * root), 1e-6f);

  // All codes equal: rotating 2 everywhere gives 2 sqrt(128) in weight 0, times norm / sqrt(128), that is 2 * 0.5.
  codes.fill(3);
  pack_block(codes.data(), 2, packed.data());
  std::vector<float> decoded(kBlock);
  backend_->decode({.w = decoded.data(), .matrix = w});
  EXPECT_EQ(decoded[0], 1.0f);
  for (int64_t i = 1; i < kBlock; ++i) EXPECT_EQ(decoded[i], 0.0f);
}

TEST_P(PencilTest, SwigluAndAdd) {
  const float ln3 = std::log(3.0f);
  const std::array<float, 4> gate = {0.0f, ln3, -ln3, 50.0f};
  const std::array<float, 4> up = {5.0f, 4.0f, 4.0f, 2.0f};
  // Matrices of one column: the products of an input of 1 are the weights.
  const float one = 1.0f;
  std::array<float, 4> y;
  backend_->swiglu({.y = y.data(),
                    .x = {.tokens = 1, .dim = 1, .raw = &one},
                    .gate = {.rows = 4, .cols = 1, .data = gate.data()},
                    .up = {.rows = 4, .cols = 1, .data = up.data()}});
  EXPECT_EQ(y[0], 0.0f);
  EXPECT_NEAR(y[1], 3.0f * ln3, 4 * kUlp);   // sigmoid(ln 3) = 3/4
  EXPECT_NEAR(y[2], -1.0f * ln3, 2 * kUlp);  // sigmoid(-ln 3) = 1/4
  EXPECT_EQ(y[3], 100.0f);
}

TEST_P(PencilTest, CausalConv) {
  // One channel, taps 1, 2, 3, 4, inputs 1, 10, 100, then 1000 in a second call: sums 4, 43, 432, 4321; silu is the identity far
  // out.
  const std::array<float, 4> weight = {1.0f, 2.0f, 3.0f, 4.0f};
  const std::array<float, 4> x = {1.0f, 10.0f, 100.0f, 1000.0f};
  std::array<float, 4> state = {7.0f, 7.0f, 7.0f, 7.0f};
  std::array<float, 4> y{};
  Span span{.row = 0, .tokens = 3, .position = 0, .slot = 0};
  CausalConvArgs args{
      .y = y.data(), .x = x.data(), .weight = weight.data(), .state = state.data(), .channels = 1, .spans = {&span, 1}};
  backend_->causal_conv(args);
  EXPECT_EQ(state, (std::array<float, 4>{1.0f, 10.0f, 100.0f, 7.0f}));
  span = {.row = 3, .tokens = 1, .position = 3, .slot = 0};
  backend_->causal_conv(args);
  EXPECT_EQ(state, (std::array<float, 4>{1.0f, 10.0f, 100.0f, 1000.0f}));
  EXPECT_NEAR(y[0], 4.0 / (1.0 + std::exp(-4.0)), 1e-6);
  EXPECT_EQ(y[1], 43.0f);
  EXPECT_EQ(y[2], 432.0f);
  EXPECT_EQ(y[3], 4321.0f);
}

TEST_P(PencilTest, GatedDelta) {
  // q and k point along axis 0 (so long that the 1e-6 of the norm vanishes), v = 8 in column 2. a_log = 0 and a + dt_bias = 0 give
  // g = -ln 2: the state halves before each token. b = 0: beta = 1/2. q is scaled by 16^-1/2 = 1/4.
  //   token 0: S = 0,   read 0,   delta (8 - 0) / 2   = 4,    S = 4,    y = 1
  //   token 1: S = 2,   read 2,   delta (8 - 2) / 2   = 3,    S = 5,    y = 1.25
  //   token 2: S = 2.5, read 2.5, delta (8 - 2.5) / 2 = 2.75, S = 5.25, y = 1.3125
  // and so on: S <- S / 4 + 4, which tends to 16/3.
  const int64_t tokens = 40;
  std::vector<float> qkv(tokens * 48, 0.0f);
  for (int64_t t = 0; t < tokens; ++t) {
    qkv[t * 48] = 1000.0f;
    qkv[t * 48 + 16] = 1000.0f;
    qkv[t * 48 + 32 + 2] = 8.0f;
  }
  const std::vector<float> zeros(tokens, 0.0f);
  std::vector<float> s(256, 3.0f), k(16 * 16, 3.0f), delta(16 * 16, 3.0f), decay(16, 3.0f);
  std::vector<float> y(tokens * 16, -1.0f);
  const Span span{.row = 0, .tokens = tokens, .position = 0, .slot = 0};
  backend_->gated_delta({.y = y.data(),
                         .qkv = qkv.data(),
                         .a = zeros.data(),
                         .b = zeros.data(),
                         .a_log = zeros.data(),
                         .dt_bias = zeros.data(),
                         .state = {.s = s.data(), .k = k.data(), .delta = delta.data(), .decay = decay.data()},
                         .key_heads = 1,
                         .value_heads = 1,
                         .key_dim = 16,
                         .value_dim = 16,
                         .spans = {&span, 1}});
  double state = 0.0;
  for (int64_t t = 0; t < tokens; ++t) {
    state = state / 4.0 + 4.0;
    for (int64_t d = 0; d < 16; ++d) EXPECT_NEAR(y[t * 16 + d], d == 2 ? state / 4.0 : 0.0, 2e-6) << "token " << t;
  }
  EXPECT_NEAR(y[2], 1.0f, 1e-6f);
  EXPECT_NEAR(y[2 * 16 + 2], 1.3125f, 1e-6f);
  // 40 tokens leave the state of the first 32 and eight pending rows.
  EXPECT_NEAR(s[2], 16.0f / 3.0f, 1e-5f);
  EXPECT_NEAR(decay[7], -8.0f * std::log(2.0f), 1e-6f);
  EXPECT_EQ(k[0], 1.0f);
}

TEST_P(PencilTest, GatedDeltaNormsHaveTheirEpsilonOnTheSum) {
  // q = k = 1e-3 along axis 5: divided by sqrt(1e-6 + 1e-6), that is 1 / sqrt(2) each. delta = 8 / 2, y = (1/2) * 4 / 4.
  std::vector<float> qkv(48, 0.0f);
  qkv[5] = qkv[16 + 5] = 1e-3f;
  qkv[32] = 8.0f;
  const float zero = 0.0f;
  std::vector<float> s(256), k(256), delta(256), decay(16), y(16);
  const Span span{.row = 0, .tokens = 1, .position = 0, .slot = 0};
  backend_->gated_delta({.y = y.data(),
                         .qkv = qkv.data(),
                         .a = &zero,
                         .b = &zero,
                         .a_log = &zero,
                         .dt_bias = &zero,
                         .state = {.s = s.data(), .k = k.data(), .delta = delta.data(), .decay = decay.data()},
                         .key_heads = 1,
                         .value_heads = 1,
                         .key_dim = 16,
                         .value_dim = 16,
                         .spans = {&span, 1}});
  EXPECT_NEAR(y[0], 0.5f, 1e-6f);
  EXPECT_NEAR(k[5], std::sqrt(0.5f), 1e-6f);
}

TEST_P(PencilTest, AttentionInput) {
  // Normed values are 1. The pair (0, 1) turns by position * pi / 2: at position 1, (1, 1) becomes (-1, 1).
  std::vector<float> q_gate(2 * 32, 9.0f), k(2 * 16, 2.0f), v(2 * 16, 5.0f);
  for (int64_t t = 0; t < 2; ++t) std::fill_n(q_gate.begin() + 32 * t, 16, -3.0f);
  const std::vector<float> zero(16, 0.0f);
  std::vector<float> k_norm(16, 0.0f);
  k_norm[15] = 1.0f;
  const float inv_freq = 1.5707964f;
  std::vector<float> q(32), keys(4 * 16, -7.0f), values(4 * 16, -7.0f);
  const Span span{.row = 0, .tokens = 2, .position = 0, .slot = 0};
  backend_->attention_input(
      {.q = q.data(),
       .q_gate = q_gate.data(),
       .k = k.data(),
       .v = v.data(),
       .q_norm = zero.data(),
       .k_norm = k_norm.data(),
       .inv_freq = &inv_freq,
       .heads = 1,
       .rotary_dim = 2,
       .eps = 0.0f,
       .cache = {.type = KvType::f32, .k = keys.data(), .v = values.data(), .kv_heads = 1, .context = 4, .head_dim = 16},
       .spans = {&span, 1}});
  for (int64_t i = 0; i < 16; ++i) {
    EXPECT_NEAR(q[i], -1.0f, kUlp);
    EXPECT_NEAR(q[16 + i], i == 0 ? 1.0f : -1.0f, kUlp);
    EXPECT_NEAR(keys[i], i == 15 ? 2.0f : 1.0f, kUlp);
    EXPECT_NEAR(keys[16 + i], i == 0 ? -1.0f : i == 15 ? 2.0f : 1.0f, kUlp);
    EXPECT_EQ(values[16 + i], 5.0f);
    EXPECT_EQ(keys[32 + i], -7.0f);
    EXPECT_EQ(values[48 + i], -7.0f);
  }
}

TEST_P(PencilTest, Q8CacheRoundsToTheNearestStep) {
  // The largest value of a group of 32 is 127, so a step is 1; 2 and a half lies between two and goes to the even one. The second
  // group is all zeros, and so is its scale. One position has all the weight; gate 0 halves it.
  constexpr int64_t kDim = 64;
  std::vector<float> q(kDim), y(kDim), q_gate(2 * kDim, 0.0f), k(kDim, 1.0f), v(kDim, 0.0f), ones(kDim, 0.0f);
  q_gate[0] = 1.0f;
  v[0] = 127.0f, v[1] = 2.5f, v[2] = -3.5f, v[3] = 0.4f, v[31] = -126.75f;
  std::vector<uint16_t> keys(kv_row_bytes(KvType::q8, kDim) / 2), values(keys.size());
  ASSERT_EQ(keys.size(), 34u);
  const float inv_freq = 0.0f;
  const Span span{.row = 0, .tokens = 1, .position = 0, .slot = 0};
  const KvCache cache{.type = KvType::q8, .k = keys.data(), .v = values.data(), .kv_heads = 1, .context = 1, .head_dim = kDim};
  backend_->attention_input({.q = q.data(),
                             .q_gate = q_gate.data(),
                             .k = k.data(),
                             .v = v.data(),
                             .q_norm = ones.data(),
                             .k_norm = ones.data(),
                             .inv_freq = &inv_freq,
                             .heads = 1,
                             .rotary_dim = 2,
                             .eps = 0.0f,
                             .cache = cache,
                             .spans = {&span, 1}});
  const int8_t* ints = reinterpret_cast<const int8_t*>(values.data());
  EXPECT_EQ(ints[0], 127);
  EXPECT_EQ(ints[1], 2);
  EXPECT_EQ(ints[2], -4);
  EXPECT_EQ(ints[3], 0);
  EXPECT_EQ(ints[31], -127);
  EXPECT_EQ(values[32], 0x3c00);
  EXPECT_EQ(values[33], 0);
  backend_->attention({.y = y.data(), .q = q.data(), .q_gate = q_gate.data(), .heads = 1, .cache = cache, .spans = {&span, 1}});
  EXPECT_EQ(y[0], 63.5f);
  EXPECT_EQ(y[1], 1.0f);
  EXPECT_EQ(y[2], -2.0f);
  EXPECT_EQ(y[31], -63.5f);
  EXPECT_EQ(y[40], 0.0f);
}

TEST_P(PencilTest, Attention) {
  // head_dim 16, so scores are q . k / 4. q = 4 along axis 0; k_0 = 0, k_1 = ln 3 along axis 0: the second token weighs them 1/4
  // and 3/4, the first sees only itself. Values 8 and 16; gate 0 halves, gate ln 3 keeps three quarters.
  for (KvType type : {KvType::f32, KvType::f16}) {
    const float ln3 = f16_to_f32(f32_to_f16(std::log(3.0f)));
    std::vector<float> q(2 * 16, 0.0f), q_gate(2 * 32, 0.0f), keys(2 * 16, 0.0f), values(2 * 16, 8.0f);
    q[0] = q[16] = 4.0f;
    keys[16] = ln3;
    std::fill_n(values.begin() + 16, 16, 16.0f);
    q_gate[32 + 16 + 3] = std::log(3.0f);
    std::vector<uint16_t> keys16, values16;
    for (float value : keys) keys16.push_back(f32_to_f16(value));
    for (float value : values) values16.push_back(f32_to_f16(value));
    std::vector<float> y(32);
    const Span span{.row = 0, .tokens = 2, .position = 0, .slot = 0};
    const bool half = type == KvType::f16;
    backend_->attention({.y = y.data(),
                         .q = q.data(),
                         .q_gate = q_gate.data(),
                         .heads = 1,
                         .cache = {.type = type,
                                   .k = half ? static_cast<void*>(keys16.data()) : keys.data(),
                                   .v = half ? static_cast<void*>(values16.data()) : values.data(),
                                   .kv_heads = 1,
                                   .context = 2,
                                   .head_dim = 16},
                         .spans = {&span, 1}});
    // ln 3 in half precision is off by up to 2^-12: weights move by 3/16 of that, the mix of 8 by 1.5 of it.
    for (int64_t i = 0; i < 16; ++i) {
      EXPECT_EQ(y[i], 4.0f);
      EXPECT_NEAR(y[16 + i], i == 3 ? 10.5f : 7.0f, 8.0f * 0.1875f * 0x1p-11f);
    }
  }
}

TEST_P(PencilTest, PolarEncode) {
  // A constant block of 1: norm sqrt(128) = 11.3137, in half precision 11.3125; the rotation leaves sqrt(128) in coordinate 0, far
  // above the table, and zeros, which are as far from -1 as from 1: the first of the two, code 1, wins.
  const Codebook book = codebook_from_table({-2.0f, -1.0f, 1.0f, 2.0f});
  const std::vector<float> w(kBlock, 1.0f);
  std::array<uint8_t, 32> packed;
  uint16_t norm = 0;
  EncodeError error;
  backend_->polar_encode({.codes = packed.data(),
                          .norms = &norm,
                          .w = w.data(),
                          .rows = 1,
                          .cols = kBlock,
                          .codebook = &book,
                          .scale_search = false,
                          .error = &error});
  EXPECT_EQ(f16_to_f32(norm), 11.3125f);
  std::array<uint8_t, kBlock> codes;
  unpack_block(packed.data(), 2, codes.data());
  EXPECT_EQ(codes[0], 3);
  for (int64_t i = 1; i < kBlock; ++i) EXPECT_EQ(codes[i], 1);
  EXPECT_EQ(error.squared_norm, 128.0);
  // (sqrt(128) - 2)^2 + 127 in units of norm^2 / 128 = 1, with the norm short by 1e-4.
  EXPECT_NEAR(error.squared_error, 86.745 + 4.0 - 4.0 + 127.0, 0.05);
}

TEST_P(PencilTest, Int4Encode) {
  // Largest magnitude 14: scale 2. 5 / 2 = 2.5 rounds to 2, 7 / 2 = 3.5 to 4, -5 / 2 to -2. Asymmetric: range -14 to 14 over 15
  // steps.
  std::vector<float> w(kBlock, 0.0f);
  w[0] = 14.0f;
  w[1] = 5.0f;
  w[2] = 7.0f;
  w[64] = -5.0f;
  w[65] = -14.0f;
  std::array<uint8_t, 64> codes;
  uint16_t scale = 0;
  EncodeError error;
  Int4EncodeArgs args{
      .codes = codes.data(), .scales = &scale, .zeros = nullptr, .w = w.data(), .rows = 1, .cols = kBlock, .error = &error};
  backend_->int4_encode(args);
  EXPECT_EQ(bf16_to_f32(scale), 2.0f);
  EXPECT_EQ(codes[0], 0x6f);
  EXPECT_EQ(codes[1], 0x1a);
  EXPECT_EQ(codes[2], 0x8c);
  EXPECT_EQ(codes[3], 0x88);
  EXPECT_EQ(error.squared_error, 1.0 + 1.0 + 1.0);
  EXPECT_EQ(error.squared_norm, 14.0 * 14 * 2 + 25 + 49 + 25);

  // Minimum -1, maximum 14: scale 1, zero -1 + 8 = 7; q = w + 1.
  std::fill(w.begin(), w.end(), -1.0f);
  w[0] = 14.0f;
  w[70] = 4.0f;
  uint16_t zero = 0;
  args.zeros = &zero;
  backend_->int4_encode(args);
  EXPECT_EQ(bf16_to_f32(scale), 1.0f);
  EXPECT_EQ(bf16_to_f32(zero), 7.0f);
  EXPECT_EQ(codes[0], 0x0f);
  EXPECT_EQ(codes[6], 0x50);
  EXPECT_EQ(codes[7], 0x00);
  EXPECT_EQ(error.squared_error, 0.0);
}

TEST_P(PencilTest, WrongSizesAreRefused) {
  float f = 0.0f;
  const Matrix ragged{.format = WeightFormat::polar, .rows = 1, .cols = 192, .units = 1, .data = &f};
  EXPECT_THROW(backend_->linear({.y = &f, .x = {.tokens = 1, .dim = 192}, .w = ragged}), Error);
  const Matrix plain{.format = WeightFormat::f32, .rows = 1, .cols = 1, .units = 1, .data = &f};
  EXPECT_THROW(backend_->linear({.y = &f, .x = {.tokens = 1, .dim = 2, .raw = &f}, .w = plain}), Error);
  EXPECT_THROW(backend_->linear({.y = &f, .x = {.tokens = 1, .dim = 1}, .w = plain}), Error);
  const Matrix units{.format = WeightFormat::f32, .rows = 1, .cols = 3, .units = 3, .data = &f};
  EXPECT_THROW(backend_->linear({.y = &f, .x = {.tokens = 1, .dim = 3, .raw = &f}, .w = units}), Error);
  const Span beyond{.row = 0, .tokens = 2, .position = 3, .slot = 0};
  EXPECT_THROW(backend_->attention({.y = &f,
                                    .q = &f,
                                    .q_gate = &f,
                                    .heads = 1,
                                    .cache = {.type = KvType::f32, .k = &f, .v = &f, .kv_heads = 1, .context = 4, .head_dim = 16},
                                    .spans = {&beyond, 1}}),
               Error);
}

INSTANTIATE_TEST_SUITE_P(Backends, PencilTest, ::testing::Values("reference", "cpu", "staged", "cuda", "cuda-emulated"),
                         backend_test_name);

TEST(MakeBackend, RefusesOtherNames) {
  try {
    make_backend("abacus");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    EXPECT_STREQ(error.what(), "there is no device 'abacus'; devices are cpu, cuda and reference");
  }
}

}  // namespace
}  // namespace pq
