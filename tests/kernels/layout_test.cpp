// Coded matrices in the order of the device: where every bit goes, that all operations read them as they read store order, and
// which kernel is chosen.
#include <array>

#include "kernels/cuda/rows_choice.h"
#include "kernels/device_memory.h"
#include "tests/kernels/on_device.h"
#include "tests/support/simt/emulated_backend.h"

namespace pq {
namespace {

MatrixKind polar(int bits) { return {.format = WeightFormat::polar, .bits = bits}; }

class Layout : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Bits, Layout, testing::Range(2, 9));

// Bits [low, low + width) of weight i of a row's block in a tile of n rows, by the description in kernels/cuda/tiles.h; planes of 4
// and 2 bits, and those of 1 that are no signs.
int field_in_tile(const uint8_t* tile, int n, int row, int low, int width, int i) {
  const int q = i / 32, k = i % 32 / 8, nibble = i % 8;
  const uint8_t* quarter = tile + 16 * low * n + 16 * width * row + 4 * width * q;
  uint32_t word;
  std::memcpy(&word, quarter + 4 * (width == 4 ? k : width == 2 ? k / 2 : 0), 4);
  return static_cast<int>(word >> (4 * nibble + (width == 4 ? 0 : width == 2 ? 2 * (k % 2) : k))) & ((1 << width) - 1);
}

int code_in_tile(const uint8_t* tile, int bits, int n, int row, int i) {
  const auto field = [&](int low, int width) { return field_in_tile(tile, n, row, low, width, i) << low; };
  switch (bits) {
    case 2:
      return field(0, 2);
    case 3:
      return field(0, 2) | field(2, 1);
    case 4:
      return field(0, 4);
    case 5: {
      const int q = i / 32, j = i % 32;
      uint32_t signs;
      std::memcpy(&signs, tile + 64 * n + 16 * row + 4 * q, 4);
      const bool negative = (signs >> (8 * (j % 4) + 7 - j / 4)) & 1;
      return negative ? 15 - field(0, 4) : 16 + field(0, 4);
    }
    case 6:
      return field(0, 4) | field(4, 2);
    case 7:
      return field(0, 4) | field(4, 2) | field(6, 1);
    default:
      return field(0, 4) | field(4, 4);
  }
}

TEST_P(Layout, EveryBitGoesToItsPlaceInTheTiles) {
  const int bits = GetParam();
  const std::unique_ptr<Backend> backend = make_emulated_cuda_backend();
  // The last is larger than the memory through which matrices pass.
  for (const auto& [rows, blocks, units] :
       {std::array<int64_t, 3>{8, 1, 1}, {1, 3, 1}, {7, 2, 4}, {19, 5, 2}, {24, 17, 1}, {1304, 41, 1}}) {
    if (rows * blocks * coded_block_bytes(bits) < kDeviceBounceBytes && rows > 1000) continue;
    const OwnedMatrix owned = random_matrix(polar(bits), rows, units * blocks * kBlock, units, 11);
    const OnDevice device(*backend, owned, true);
    ASSERT_EQ(device.matrix.layout, WeightLayout::tiles);
    const std::vector<uint8_t> data = downloaded<uint8_t>(*backend, device.data);
    const std::vector<uint16_t> norms = downloaded<uint16_t>(*backend, device.scales);
    ASSERT_EQ(data.size(), owned.data.size());
    for (int64_t unit = 0; unit < units; ++unit) {
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t first = row / 8 * 8, n = std::min<int64_t>(8, rows - first);
        for (int64_t b = 0; b < blocks; ++b) {
          const int64_t index = (unit * rows + row) * blocks + b, tile = (unit * rows + first) * blocks + b * n;
          ASSERT_EQ(norms[tile + row - first], owned.scales[index]) << rows << " rows, row " << row << ", block " << b;
          std::array<uint8_t, kBlock> codes;
          unpack_block(owned.data.data() + index * coded_block_bytes(bits), bits, codes.data());
          for (int i = 0; i < kBlock; ++i) {
            ASSERT_EQ(code_in_tile(data.data() + tile * coded_block_bytes(bits), bits, static_cast<int>(n),
                                   static_cast<int>(row - first), i),
                      codes[i])
                << rows << " rows, unit " << unit << ", row " << row << ", block " << b << ", weight " << i;
          }
        }
      }
    }
  }
}

TEST(LayoutOthers, StayAsTheyAre) {
  const std::unique_ptr<Backend> backend = make_emulated_cuda_backend();
  const OwnedMatrix int4 = random_matrix({.format = WeightFormat::int4}, 9, 384, 1, 12);
  const OnDevice other(*backend, int4, true);
  EXPECT_EQ(other.matrix.layout, WeightLayout::store);
  EXPECT_EQ(downloaded<uint8_t>(*backend, other.data), int4.data);
  // A host backend arranges nothing, twice is once, and a rank without rows has nothing to arrange.
  OwnedMatrix owned = random_matrix(polar(5), 9, 384, 1, 12);
  make_backend("cpu")->arrange(&owned.matrix);
  EXPECT_EQ(owned.matrix.layout, WeightLayout::store);
  OnDevice device(*backend, owned, true);
  const std::vector<uint8_t> once = downloaded<uint8_t>(*backend, device.data);
  backend->arrange(&device.matrix);
  EXPECT_EQ(downloaded<uint8_t>(*backend, device.data), once);
  const OnDevice empty(*backend, random_matrix(polar(5), 0, 384, 1, 12), true);
  EXPECT_EQ(empty.matrix.layout, WeightLayout::store);
}

// Rows that are no multiple of eight, odd block counts, several units, more of them than a block of threads has warps, and enough
// rows that warps do not share them.
TEST_P(Layout, ProductsReadTilesAsTheyReadStores) {
  const std::unique_ptr<Backend> device = make_emulated_cuda_backend();
  const std::unique_ptr<Backend> host = make_cpu_backend(Isa::generic);
  for (const auto& [rows, blocks, units] :
       {std::array<int64_t, 3>{1, 1, 1}, {8, 5, 1}, {13, 3, 2}, {70, 35, 1}, {130, 2, 4}, {517, 7, 1}, {11, 1, 16}}) {
    const int64_t cols = units * blocks * kBlock;
    const OwnedMatrix owned = random_matrix(polar(GetParam()), rows, cols, units, 21);
    const OnDevice store(*device, owned, false), tiles(*device, owned, true);
    for (const int64_t tokens : {1, 2, 3, 5, 8, 9, 17, 66, 130}) {
      if (tokens > 9 && rows > (tokens > 100 ? 13 : 130)) continue;
      const std::vector<float> x = normals(tokens * cols, 22);
      for (const ActivationMode mode : {ActivationMode::int8, ActivationMode::f32}) {
        if (mode == ActivationMode::f32 && (tokens > 3 || rows > 130)) continue;
        const auto product = [&, rows = rows](Backend& backend, const Matrix& w) {
          const Buffer in = uploaded(backend, x), rotated = backend.allocate(4 * tokens * cols);
          const Buffer codes = backend.allocate(tokens * cols), scales = backend.allocate(4 * tokens * cols / kBlock);
          const Buffer y = backend.allocate(4 * tokens * rows);
          Prepared prepared{.mode = mode};
          Activation activation{.mode = mode, .tokens = tokens, .dim = cols};
          if (mode == ActivationMode::f32) {
            activation.rotated = prepared.rotated = rotated.as<float>();
          } else {
            activation.codes = prepared.codes = codes.as<int8_t>();
            activation.scales = prepared.scales = scales.as<float>();
          }
          backend.prepare({.x = in.as<float>(), .tokens = tokens, .dim = cols, .prepared = prepared});
          backend.linear({.y = y.as<float>(), .x = activation, .w = w});
          return downloaded<float>(backend, y);
        };
        const std::vector<float> expected = product(*host, owned.matrix);
        EXPECT_TRUE(same_bits(product(*device, tiles.matrix), expected)) << rows << " rows, " << tokens << " tokens, tiles";
        if (tokens > 2) continue;
        EXPECT_TRUE(same_bits(product(*device, store.matrix), expected)) << rows << " rows, " << tokens << " tokens, store order";
      }
    }
  }
}

TEST_P(Layout, DecodeAndEmbedReadTilesAsTheyReadStores) {
  const std::unique_ptr<Backend> device = make_emulated_cuda_backend();
  const std::unique_ptr<Backend> host = make_cpu_backend(Isa::generic);
  for (const auto& [rows, blocks, units] : {std::array<int64_t, 3>{1, 1, 1}, {13, 3, 1}, {9, 2, 4}}) {
    const int64_t cols = units * blocks * kBlock;
    const OwnedMatrix owned = random_matrix(polar(GetParam()), rows, cols, units, 31);
    const OnDevice tiles(*device, owned, true);
    std::vector<float> expected(static_cast<size_t>(rows * cols));
    host->decode({.w = expected.data(), .matrix = owned.matrix});
    const Buffer w = device->allocate(4 * rows * cols);
    device->decode({.w = w.as<float>(), .matrix = tiles.matrix});
    EXPECT_TRUE(same_bits(downloaded<float>(*device, w), expected)) << rows << " rows of " << units << " units";
    if (units > 1) continue;
    const std::vector<int32_t> ids = {2, static_cast<int32_t>(rows) + 1, 0, static_cast<int32_t>(rows + 2), 1};
    std::vector<float> rows_expected(ids.size() * static_cast<size_t>(cols));
    const int64_t tokens = static_cast<int64_t>(ids.size());
    host->embed({.y = rows_expected.data(), .ids = ids.data(), .tokens = tokens, .table = owned.matrix, .first_row = 2});
    const Buffer y = device->allocate(4 * tokens * cols);
    device->embed({.y = y.as<float>(), .ids = ids.data(), .tokens = tokens, .table = tiles.matrix, .first_row = 2});
    EXPECT_TRUE(same_bits(downloaded<float>(*device, y), rows_expected)) << rows << " rows";
  }
}

// Widths apart, and plain matrices with one of them, in one call.
TEST(LayoutOthers, ProductsOfOneInputAreGroupedByWidth) {
  const std::unique_ptr<Backend> device = make_emulated_cuda_backend();
  const std::unique_ptr<Backend> host = make_cpu_backend(Isa::generic);
  const int64_t cols = 3 * kBlock;
  const OwnedMatrix owned[] = {random_matrix(polar(4), 20, cols, 1, 41), random_matrix(polar(6), 9, cols, 1, 42),
                               random_matrix({.format = WeightFormat::f32}, 6, cols, 1, 43),
                               random_matrix(polar(4), 3, cols, 1, 44)};
  for (const int64_t tokens : {1, 8, 21}) {
    const std::vector<float> x = normals(tokens * cols, 45);
    const auto products = [&](Backend& backend, bool arranged) {
      const Buffer in = uploaded(backend, x), codes = backend.allocate(tokens * cols);
      const Buffer scales = backend.allocate(4 * tokens * cols / kBlock);
      backend.prepare({.x = in.as<float>(),
                       .tokens = tokens,
                       .dim = cols,
                       .prepared = {.mode = ActivationMode::int8, .codes = codes.as<int8_t>(), .scales = scales.as<float>()}});
      const Activation activation{.mode = ActivationMode::int8,
                                  .tokens = tokens,
                                  .dim = cols,
                                  .raw = in.as<float>(),
                                  .codes = codes.as<int8_t>(),
                                  .scales = scales.as<float>()};
      std::vector<OnDevice> weights;
      std::vector<Buffer> y;
      std::vector<LinearArgs> args;
      for (const OwnedMatrix& matrix : owned) {
        weights.emplace_back(backend, matrix, arranged);
        y.push_back(backend.allocate(4 * tokens * matrix.matrix.rows));
        args.push_back({.y = y.back().as<float>(), .x = activation, .w = weights.back().matrix});
      }
      backend.linear_group(args);
      std::vector<std::vector<float>> results;
      for (const Buffer& result : y) results.push_back(downloaded<float>(backend, result));
      return results;
    };
    const std::vector<std::vector<float>> expected = products(*host, false), results = products(*device, true);
    for (size_t i = 0; i < std::size(owned); ++i)
      EXPECT_TRUE(same_bits(results[i], expected[i])) << "matrix " << i << ", " << tokens << " tokens";
  }
}

TEST(LayoutOthers, TheSmallestPanelThatTakesAllTokens) {
  using cuda::choose_panel_tokens;
  for (const auto& [tokens, panel] : {std::array<int, 2>{9, 16}, {16, 16}, {17, 32}, {32, 32}, {33, 64}, {65, 128}, {4096, 128}})
    EXPECT_EQ(choose_panel_tokens(tokens), panel) << tokens;
}

TEST(LayoutOthers, TheKernelIsChosenByLayoutWidthTokensAndDevice) {
  using cuda::choose_rows_kernel;
  using cuda::choose_rows_split;
  using cuda::row_products_take;
  using cuda::RowsKernel;
  const Codebook five = make_codebook(5, TableKind::converged), six = make_codebook(6, TableKind::converged);
  Matrix w{.format = WeightFormat::polar, .rows = 17408, .cols = 5120, .units = 1, .codebook = &five};
  EXPECT_EQ(choose_rows_kernel(w, 1), RowsKernel::any);
  const auto taken = [&](int64_t tokens, ActivationMode mode = ActivationMode::int8) {
    return row_products_take({.y = nullptr, .x = {.mode = mode, .tokens = tokens}, .w = w});
  };
  EXPECT_FALSE(taken(1));
  w.layout = WeightLayout::tiles;
  for (const int64_t tokens : {1, 2, 4, 8}) {
    EXPECT_EQ(choose_rows_kernel(w, tokens), RowsKernel::tiles);
    EXPECT_TRUE(taken(tokens));
    EXPECT_FALSE(taken(tokens, ActivationMode::f32));
  }
  for (const int64_t tokens : {9, 64, 4096}) {
    EXPECT_EQ(choose_rows_kernel(w, tokens), RowsKernel::panels);
    EXPECT_FALSE(taken(tokens));
  }
  w.units = 8;
  EXPECT_TRUE(taken(1));
  w.units = 16;
  EXPECT_FALSE(taken(1));
  EXPECT_EQ(choose_rows_kernel(w, 1), RowsKernel::panels);
  w.codebook = &six;
  EXPECT_EQ(choose_rows_kernel(w, 1), RowsKernel::any);
  w.units = 8;
  EXPECT_TRUE(taken(1));
  EXPECT_TRUE(taken(4096));
  w = {.format = WeightFormat::f32, .rows = 48, .cols = 5120, .units = 1};
  EXPECT_TRUE(taken(1, ActivationMode::f32));
  w.units = 2;
  EXPECT_FALSE(taken(1));
  // 17408 rows are 2176 warps: enough for 132 multiprocessors of 16 (2112). 6144 rows are 768: enough for a small card only.
  EXPECT_EQ(choose_rows_split(17408, 1, 132), 1);
  EXPECT_EQ(choose_rows_split(6144, 1, 132), cuda::kRowsSplit);
  EXPECT_EQ(choose_rows_split(6144, 1, 48), 1);
  EXPECT_EQ(choose_rows_split(2 * 5120, 2, 132), cuda::kRowsSplit);
  // A block of eight warps has no place for more than two units of four warps each.
  EXPECT_EQ(choose_rows_split(4 * 64, 4, 132), 1);
}

}  // namespace
}  // namespace pq
