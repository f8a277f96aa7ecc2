// The linear operation and the preparation of its input on every instruction set: against the reference within the rounding bound,
// against the generic path bit for bit; independence of batch and rows; units against ranks.
#include <array>

#include "tests/kernels/every_backend.h"

namespace pq {
namespace {

using LinearTest = EveryBackendTest;

// Random input in all three forms; the int8 form uses the whole range including both ends.
struct Input {
  int64_t tokens;
  int64_t dim;
  std::vector<float> raw;
  std::vector<int8_t> codes;
  std::vector<float> scales;

  Input(int64_t tokens_, int64_t dim_, uint64_t seed) : tokens(tokens_), dim(dim_), raw(normals(tokens_ * dim_, seed)) {
    Random random(seed + 1);
    codes.resize(raw.size());
    for (int8_t& code : codes) code = static_cast<int8_t>(random.below(255) - 127);
    if (!codes.empty()) codes.front() = 127;
    scales.resize(static_cast<size_t>(tokens * ((dim + kBlock - 1) / kBlock)));
    for (float& scale : scales) scale = static_cast<float>(0.001 + random.uniform());
  }
  Activation activation(ActivationMode mode, int64_t first = 0, int64_t count = -1) const {
    return {.mode = mode,
            .tokens = count < 0 ? tokens : count,
            .dim = dim,
            .raw = raw.data() + first * dim,
            .rotated = raw.data() + first * dim,
            .codes = codes.data() + first * dim,
            .scales = scales.data() + first * (dim / kBlock)};
  }
};

std::vector<float> run_linear(Backend& backend, const Activation& x, const Matrix& w) {
  Guarded<float> y(x.tokens * w.rows);
  backend.linear({.y = y.data(), .x = x, .w = w});
  EXPECT_TRUE(y.intact());
  return y.values();
}

// k * eps * sum |terms|. k counts the roundings a term passes: its own products (4), the additions of its lane or of its blocks
// (at most unit_cols / 16), folding (4), the tree over units (6), and the reference's own rounding of units and tree (4).
std::vector<double> bounds(const Activation& x, const Matrix& w) {
  std::vector<double> bound(static_cast<size_t>(x.tokens * w.rows), 0.0);
  const int64_t unit_cols = w.unit_cols();
  const int64_t lane_terms = (unit_cols + 15) / 16;
  const double k = 4.0 + static_cast<double>(lane_terms) + 4.0 + 6.0 + 4.0;
  for (int64_t r = 0; r < w.rows; ++r) {
    for (int64_t unit = 0; unit < w.units; ++unit) {
      // Magnitudes of the weights in the basis of the product.
      std::vector<double> weights(static_cast<size_t>(unit_cols));
      const int64_t line = unit * w.rows + r;
      for (int64_t c = 0; c < unit_cols; ++c) {
        if (w.format == WeightFormat::f32) weights[c] = static_cast<const float*>(w.data)[line * unit_cols + c];
        if (w.format == WeightFormat::bf16) weights[c] = bf16_to_f32(static_cast<const uint16_t*>(w.data)[line * unit_cols + c]);
        const int64_t block = line * (unit_cols / kBlock) + c / kBlock;
        // q is at most 8 steps from the middle.
        if (w.format == WeightFormat::int4) {
          weights[c] = 8.0 * bf16_to_f32(w.scales[block]) + (w.zeros ? std::abs(bf16_to_f32(w.zeros[block])) : 0.0);
        }
        if (w.format == WeightFormat::polar) {
          std::array<uint8_t, kBlock> codes;
          if (c % kBlock == 0) {
            const int64_t bytes = coded_block_bytes(w.codebook->bits);
            unpack_block(static_cast<const uint8_t*>(w.data) + block * bytes, w.codebook->bits, codes.data());
            for (int64_t i = 0; i < kBlock; ++i) {
              weights[c + i] = w.codebook->centroids[codes[i]] * f16_to_f32(w.scales[block]) / std::sqrt(128.0);
            }
          }
        }
      }
      for (int64_t t = 0; t < x.tokens; ++t) {
        for (int64_t c = 0; c < unit_cols; ++c) {
          const int64_t column = unit * unit_cols + c;
          double value = w.format == WeightFormat::polar ? x.rotated[t * x.dim + column] : x.raw[t * x.dim + column];
          if (w.format == WeightFormat::polar && x.mode == ActivationMode::int8) {
            // The integer centroid differs from the centroid by up to 2 % of the smallest and half a step: 1.1 covers it in the
            // sum.
            value = 1.1 * x.codes[t * x.dim + column] * x.scales[t * (x.dim / kBlock) + column / kBlock];
          }
          bound[t * w.rows + r] += k * kEps * std::abs(weights[c] * value);
        }
      }
    }
  }
  return bound;
}

TEST_P(LinearTest, CodedMatricesAgreeOverShapesAndWidths) {
  const std::array<int64_t, 4> dims = {128, 256, 384, 5120};
  const std::array<int64_t, 5> rows = {1, 3, 15, 16, 17};
  const std::array<int64_t, 8> tokens = {0, 1, 2, 3, 7, 8, 9, 17};
  int64_t combination = 0;
  for (int bits = 2; bits <= 8; ++bits) {
    for (int64_t dim : dims) {
      // Five and eight are coprime: over widths and dimensions every pair of rows and tokens occurs for the small dimensions.
      const int64_t pairs = dim == 5120 ? 4 : 10;
      for (int64_t i = 0; i < pairs; ++i, ++combination) {
        const int64_t row_count = rows[combination % 5];
        const int64_t token_count = tokens[combination % 8];
        SCOPED_TRACE(::testing::Message() << bits << " bits, dim " << dim << ", rows " << row_count << ", tokens " << token_count);
        const OwnedMatrix w = random_matrix({WeightFormat::polar, bits}, row_count, dim, 1, 7 * combination);
        const Input input(token_count, dim, 11 * combination);
        for (ActivationMode mode : {ActivationMode::int8, ActivationMode::f32}) {
          const Activation x = input.activation(mode);
          const std::vector<float> y = run_linear(*backend_, x, w.matrix);
          const std::vector<float> expected = run_linear(*generic_, x, w.matrix);
          ASSERT_TRUE(same_bits(y, expected));
          ASSERT_TRUE(within(y, run_linear(*reference_, x, w.matrix), bounds(x, w.matrix)));
        }
      }
    }
  }
}

TEST_P(LinearTest, ExtremeCodesDoNotOverflow) {
  // All weights at the largest magnitude and all activations at 127 with matching signs: the largest dot product there is.
  for (int bits = 2; bits <= 8; ++bits) {
    OwnedMatrix w = random_matrix({WeightFormat::polar, bits}, 17, 256, 1, bits);
    std::vector<uint8_t> codes(kBlock);
    for (int64_t i = 0; i < kBlock; ++i) codes[i] = static_cast<uint8_t>(i % 3 == 0 ? 0 : (1 << bits) - 1);
    for (int64_t b = 0; b < 34; ++b) pack_block(codes.data(), bits, w.data.data() + b * coded_block_bytes(bits));
    Input input(9, 256, 3);
    for (size_t i = 0; i < input.codes.size(); ++i) input.codes[i] = (i % kBlock) % 3 == 0 ? -127 : 127;
    const Activation x = input.activation(ActivationMode::int8);
    const std::vector<float> y = run_linear(*backend_, x, w.matrix);
    EXPECT_TRUE(same_bits(y, run_linear(*generic_, x, w.matrix)));
    EXPECT_TRUE(within(y, run_linear(*reference_, x, w.matrix), bounds(x, w.matrix)));
  }
}

TEST_P(LinearTest, PlainFormatsAgreeOverShapes) {
  const std::array<MatrixKind, 4> kinds = {MatrixKind{WeightFormat::f32}, MatrixKind{WeightFormat::bf16},
                                           MatrixKind{WeightFormat::int4}, MatrixKind{WeightFormat::int4, 0, true}};
  uint64_t seed = 0;
  for (const MatrixKind& kind : kinds) {
    for (int64_t dim : {48, 100, 128, 384, 5120}) {
      if (kind.format == WeightFormat::int4 && dim % kBlock != 0) continue;
      for (int64_t rows : {1, 3, 16, 17}) {
        for (int64_t tokens : {0, 1, 3, 6, 9}) {
          SCOPED_TRACE(::testing::Message() << "format " << static_cast<int>(kind.format) << ", dim " << dim << ", rows " << rows
                                            << ", tokens " << tokens);
          const OwnedMatrix w = random_matrix(kind, rows, dim, 1, ++seed);
          const Input input(tokens, dim, ++seed);
          const Activation x = input.activation(ActivationMode::f32);
          const std::vector<float> y = run_linear(*backend_, x, w.matrix);
          ASSERT_TRUE(same_bits(y, run_linear(*generic_, x, w.matrix)));
          ASSERT_TRUE(within(y, run_linear(*reference_, x, w.matrix), bounds(x, w.matrix)));
        }
      }
    }
  }
}

TEST_P(LinearTest, ATokenDoesNotDependOnItsBatch) {
  for (const MatrixKind& kind : {MatrixKind{WeightFormat::polar, 5}, MatrixKind{WeightFormat::polar, 6},
                                 MatrixKind{WeightFormat::bf16}, MatrixKind{WeightFormat::int4}}) {
    const OwnedMatrix w = random_matrix(kind, 21, 512, 2, 5);
    const Input input(71, 512, 6);
    for (ActivationMode mode : {ActivationMode::int8, ActivationMode::f32}) {
      const std::vector<float> together = run_linear(*backend_, input.activation(mode), w.matrix);
      for (int64_t size : {1, 2, 3, 4, 5, 13, 33}) {
        std::vector<float> pieces;
        for (int64_t first = 0; first < input.tokens; first += size) {
          const std::vector<float> y =
              run_linear(*backend_, input.activation(mode, first, std::min(size, input.tokens - first)), w.matrix);
          pieces.insert(pieces.end(), y.begin(), y.end());
        }
        EXPECT_TRUE(same_bits(pieces, together)) << "batches of " << size;
      }
    }
  }
}

// The part of `w` that rank `rank` of `ranks` owns: consecutive units, a contiguous range of every plane.
Matrix unit_slice(const Matrix& w, int64_t rank, int64_t ranks) {
  Matrix slice = w;
  slice.cols = w.cols / ranks;
  slice.units = w.units / ranks;
  slice.data = static_cast<const uint8_t*>(w.data) + rank * (w.data_bytes() / ranks);
  slice.scales = w.scales ? w.scales + rank * (w.scale_bytes() / 2 / ranks) : nullptr;
  slice.zeros = w.zeros ? w.zeros + rank * (w.scale_bytes() / 2 / ranks) : nullptr;
  return slice;
}

TEST_P(LinearTest, RankCountsGiveTheSameBits) {
  for (const MatrixKind& kind :
       {MatrixKind{WeightFormat::polar, 5}, MatrixKind{WeightFormat::polar, 3}, MatrixKind{WeightFormat::f32},
        MatrixKind{WeightFormat::bf16}, MatrixKind{WeightFormat::int4, 0, true}}) {
    for (int64_t units : {1, 2, 4, 8}) {
      const int64_t dim = 8 * 256;
      const int64_t tokens = 3;
      const OwnedMatrix w = random_matrix(kind, 18, dim, units, units);
      const Input input(tokens, dim, 9);
      for (ActivationMode mode : {ActivationMode::int8, ActivationMode::f32}) {
        const std::vector<float> whole = run_linear(*backend_, input.activation(mode), w.matrix);
        EXPECT_TRUE(
            within(whole, run_linear(*reference_, input.activation(mode), w.matrix), bounds(input.activation(mode), w.matrix)));
        for (int64_t ranks = 2; ranks <= units; ranks *= 2) {
          std::vector<std::vector<float>> parts;
          for (int64_t rank = 0; rank < ranks; ++rank) {
            Input part(tokens, dim / ranks, 1);
            const int64_t first = rank * part.dim;
            for (int64_t t = 0; t < tokens; ++t) {
              std::copy_n(input.raw.data() + t * dim + first, part.dim, part.raw.data() + t * part.dim);
              std::copy_n(input.codes.data() + t * dim + first, part.dim, part.codes.data() + t * part.dim);
              std::copy_n(input.scales.data() + (t * dim + first) / kBlock, part.dim / kBlock,
                          part.scales.data() + t * part.dim / kBlock);
            }
            parts.push_back(run_linear(*backend_, part.activation(mode), unit_slice(w.matrix, rank, ranks)));
          }
          for (int64_t distance = 1; distance < ranks; distance *= 2) {
            for (int64_t rank = 0; rank < ranks; rank += 2 * distance) {
              for (size_t i = 0; i < parts[rank].size(); ++i) parts[rank][i] += parts[rank + distance][i];
            }
          }
          EXPECT_TRUE(same_bits(parts[0], whole)) << units << " units over " << ranks << " ranks";
        }
      }
    }
  }
}

// One pass gives the bits of two products and the function between them, whatever the formats and units of the two matrices.
TEST_P(LinearTest, SwigluIsTwoProducts) {
  const OwnedMatrix gate = random_matrix({WeightFormat::polar, 5}, 40, 512, 1, 1);
  for (const MatrixKind& kind :
       {MatrixKind{WeightFormat::polar, 5}, {WeightFormat::polar, 6}, {WeightFormat::int4}, {WeightFormat::bf16}}) {
    const OwnedMatrix up = random_matrix(kind, 40, 512, 2, 2);
    for (const int64_t tokens : {0, 1, 5, 33}) {
      const Input input(tokens, 512, 3);
      const Activation x = input.activation(ActivationMode::int8);
      Guarded<float> y(tokens * 40), expected(tokens * 40);
      backend_->swiglu({.y = y.data(), .x = x, .gate = gate.matrix, .up = up.matrix});
      const std::vector<float> g = run_linear(*backend_, x, gate.matrix);
      const std::vector<float> u = run_linear(*backend_, x, up.matrix);
      // Matrices of one column: the products of an input of 1 are the weights.
      const float one = 1.0f;
      backend_->swiglu({.y = expected.data(),
                        .x = {.tokens = 1, .dim = 1, .raw = &one},
                        .gate = {.rows = tokens * 40, .cols = 1, .data = g.data()},
                        .up = {.rows = tokens * 40, .cols = 1, .data = u.data()}});
      EXPECT_TRUE(y.intact());
      EXPECT_TRUE(same_bits(y.values(), expected.values()));
    }
  }
}

// Products that read one input, in any mixture of formats, units and sizes, are what each gives by itself.
TEST_P(LinearTest, AGroupIsItsProducts) {
  using Kind = MatrixKind;
  struct Member {
    Kind kind;
    int64_t rows, units;
  };
  const std::vector<std::vector<Member>> groups = {
      {},
      {{{WeightFormat::polar, 5}, 40, 1},
       {{WeightFormat::polar, 5}, 24, 1},
       {{WeightFormat::f32}, 6, 1},
       {{WeightFormat::f32}, 5, 1}},
      {{{WeightFormat::polar, 5}, 19, 2}, {{WeightFormat::bf16}, 3, 1}, {{WeightFormat::polar, 5}, 8, 1}},
      {{{WeightFormat::polar, 5}, 70, 4}, {{WeightFormat::polar, 6}, 9, 1}, {{WeightFormat::int4}, 9, 1}},
      {{{WeightFormat::f32}, 7, 1}, {{WeightFormat::f32}, 2, 2}, {{WeightFormat::polar, 5}, 11, 8}},
      {{{WeightFormat::bf16}, 4, 1}, {{WeightFormat::bf16}, 9, 1}},
      {{{WeightFormat::polar, 5}, 1, 1}},
  };
  constexpr int64_t kDim = 2048;
  for (size_t g = 0; g < groups.size(); ++g) {
    std::vector<OwnedMatrix> matrices;
    for (const Member& m : groups[g]) matrices.push_back(random_matrix(m.kind, m.rows, kDim, m.units, 7 * g + matrices.size()));
    for (const int64_t tokens : {0, 1, 2, 3, 5, 8, 9}) {
      const Input input(tokens, kDim, 11);
      for (const ActivationMode mode : {ActivationMode::int8, ActivationMode::f32}) {
        const Activation x = input.activation(mode);
        std::vector<Guarded<float>> y;
        y.reserve(matrices.size());
        std::vector<LinearArgs> products;
        for (const OwnedMatrix& m : matrices) {
          y.emplace_back(tokens * m.matrix.rows);
          products.push_back({.y = y.back().data(), .x = x, .w = m.matrix});
        }
        backend_->linear_group(products);
        for (size_t i = 0; i < matrices.size(); ++i) {
          EXPECT_TRUE(y[i].intact());
          EXPECT_TRUE(same_bits(y[i].values(), run_linear(*generic_, x, matrices[i].matrix)))
              << "group " << g << ", product " << i << ", " << tokens << " tokens";
        }
      }
    }
  }
}

TEST_P(LinearTest, PrepareAgrees) {
  for (int64_t dim : {128, 384, 5120}) {
    for (int64_t tokens : {0, 1, 3}) {
      std::vector<float> x = normals(tokens * dim, dim + tokens);
      // A block of zeros, a block with one spike, and one of tiny values.
      if (tokens == 3) {
        std::fill_n(x.begin(), kBlock, 0.0f);
        std::fill_n(x.begin() + dim, kBlock, 0.0f);
        x[dim + 5] = 3.0f;
        for (int64_t i = 0; i < kBlock; ++i) x[2 * dim + i] *= 1e-30f;
      }
      Guarded<float> rotated(tokens * dim), generic_rotated(tokens * dim), scales(tokens * dim / kBlock),
          generic_scales(tokens * dim / kBlock);
      Guarded<int8_t> codes(tokens * dim), generic_codes(tokens * dim);
      std::vector<float> expected(x.size());
      PrepareArgs args{.x = x.data(),
                       .tokens = tokens,
                       .dim = dim,
                       .prepared = {.mode = ActivationMode::f32, .rotated = rotated.data(), .codes = nullptr, .scales = nullptr}};
      backend_->prepare(args);
      args.prepared.rotated = generic_rotated.data();
      generic_->prepare(args);
      args.prepared.rotated = expected.data();
      reference_->prepare(args);
      args.prepared.mode = ActivationMode::int8;
      args.prepared.codes = codes.data();
      args.prepared.scales = scales.data();
      backend_->prepare(args);
      args.prepared.codes = generic_codes.data();
      args.prepared.scales = generic_scales.data();
      generic_->prepare(args);
      EXPECT_TRUE(rotated.intact() && scales.intact() && codes.intact());
      EXPECT_TRUE(same_bits(rotated.values(), generic_rotated.values()));
      EXPECT_TRUE(same_bits(scales.values(), generic_scales.values()));
      EXPECT_EQ(codes.values(), generic_codes.values());
      for (int64_t b = 0; b < tokens * dim / kBlock; ++b) {
        double sum = 0.0;
        double largest = 0.0;
        for (int64_t i = 0; i < kBlock; ++i) {
          sum += std::abs(x[b * kBlock + i]);
          largest = std::max(largest, std::abs(static_cast<double>(expected[b * kBlock + i])));
        }
        // Seven butterfly levels, the factor, its own rounding.
        const double bound = 9 * kEps * sum / std::sqrt(128.0) + 1e-45;
        const double scale = scales.data()[b];
        EXPECT_NEAR(scale, largest / 127.0, (bound + 2 * kEps * largest) / 127.0 + 1e-45);
        for (int64_t i = 0; i < kBlock; ++i) {
          const double value = expected[b * kBlock + i];
          ASSERT_NEAR(rotated.data()[b * kBlock + i], value, bound);
          // Half a step of rounding, plus the error of the value and of the quotient (at most 127 steps).
          ASSERT_NEAR(codes.data()[b * kBlock + i] * scale, value, scale * (0.5 + 254 * kEps) + bound);
        }
      }
    }
  }
}

// A step may hold 65536 tokens, one more than a grid has room for along y.
TEST_P(LinearTest, EmbedsAsManyTokensAsAStepHolds) {
  constexpr int64_t kTokens = 65536;
  const OwnedMatrix table = random_matrix({WeightFormat::f32}, 3, 1, 1, 5);
  std::vector<int32_t> ids(static_cast<size_t>(kTokens));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i % 3);
  Guarded<float> y(kTokens), rows(3);
  backend_->embed({.y = y.data(), .ids = ids.data(), .tokens = kTokens, .table = table.matrix, .first_row = 0});
  backend_->decode({.w = rows.data(), .matrix = table.matrix});
  EXPECT_TRUE(y.intact());
  for (int64_t i = 0; i < kTokens; ++i) ASSERT_EQ(y.data()[i], rows.data()[i % 3]) << i;
}

TEST_P(LinearTest, EmbedAndDecodeAgreeWithTheReference) {
  for (const MatrixKind& kind : {MatrixKind{WeightFormat::f32}, MatrixKind{WeightFormat::bf16}, MatrixKind{WeightFormat::int4},
                                 MatrixKind{WeightFormat::polar, 5}}) {
    const OwnedMatrix table = random_matrix(kind, 9, 256, 1, 4);
    const std::vector<int32_t> ids = {100, 99, 108, 109, 104, 0};  // rows 0, none, 8, none, 4, none
    Guarded<float> y(6 * 256);
    Guarded<float> decoded(9 * 256);
    backend_->embed({.y = y.data(), .ids = ids.data(), .tokens = 6, .table = table.matrix, .first_row = 100});
    backend_->decode({.w = decoded.data(), .matrix = table.matrix});
    EXPECT_TRUE(y.intact() && decoded.intact());
    const std::vector<float> rows = decoded.values();
    for (int64_t i = 0; i < 256; ++i) {
      EXPECT_EQ(y.data()[i], rows[i]);
      EXPECT_EQ(y.data()[2 * 256 + i], rows[8 * 256 + i]);
      EXPECT_EQ(y.data()[4 * 256 + i], rows[4 * 256 + i]);
      for (int64_t absent : {1, 3, 5})
        ASSERT_EQ(std::signbit(y.data()[absent * 256 + i]) || y.data()[absent * 256 + i] != 0.0f, false);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, LinearTest, ::testing::ValuesIn(every_backend()), backend_test_name);

}  // namespace
}  // namespace pq
