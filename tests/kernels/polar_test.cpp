// The bit layout of coded blocks and the rotation.
#include "kernels/polar.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <vector>

#include "tests/kernels/kernel_cases.h"

namespace pq {
namespace {

TEST(Polar, UnpackInvertsPackAtEveryWidth) {
  Random random(1);
  for (int bits = 2; bits <= 8; ++bits) {
    for (int trial = 0; trial < 50; ++trial) {
      std::array<uint8_t, kBlock> codes;
      // Trial 0 holds every code in order.
      for (int64_t i = 0; i < kBlock; ++i) codes[i] = static_cast<uint8_t>(trial == 0 ? i % (1 << bits) : random.below(1 << bits));
      std::vector<uint8_t> packed(static_cast<size_t>(coded_block_bytes(bits)) + 2, 0x5a);
      pack_block(codes.data(), bits, packed.data() + 1);
      EXPECT_EQ(packed.front(), 0x5a);
      EXPECT_EQ(packed.back(), 0x5a);
      std::array<uint8_t, kBlock> back;
      unpack_block(packed.data() + 1, bits, back.data());
      EXPECT_EQ(back, codes) << bits << " bits";
    }
  }
}

TEST(Polar, PackInvertsUnpackSoNoBitIsWasted) {
  Random random(2);
  for (int bits = 2; bits <= 8; ++bits) {
    std::vector<uint8_t> packed(static_cast<size_t>(coded_block_bytes(bits)));
    for (uint8_t& byte : packed) byte = static_cast<uint8_t>(random.next_u64());
    std::array<uint8_t, kBlock> codes;
    unpack_block(packed.data(), bits, codes.data());
    for (uint8_t code : codes) EXPECT_LT(code, 1 << bits);
    std::vector<uint8_t> back(packed.size());
    pack_block(codes.data(), bits, back.data());
    EXPECT_EQ(back, packed) << bits << " bits";
  }
}

TEST(Polar, PlanesLieAsDocumented) {
  // 5 bits, all weights 16 (the smallest positive: magnitude index 0, sign 0): all bytes zero.
  std::array<uint8_t, kBlock> codes;
  codes.fill(16);
  std::array<uint8_t, 80> packed;
  pack_block(codes.data(), 5, packed.data());
  EXPECT_EQ(packed, (std::array<uint8_t, 80>{}));
  // Weight 3: code 19, magnitude 3, low nibble of byte 3. Weight 70: code 5, negative, magnitude 10, high nibble of byte 6 and
  // bit 70 % 8 = 6 of sign byte 64 + 70 / 8 = 72.
  codes[3] = 19;
  codes[70] = 5;
  pack_block(codes.data(), 5, packed.data());
  std::array<uint8_t, 80> expected{};
  expected[3] = 0x03;
  expected[6] = 0xa0;
  expected[72] = 0x40;
  EXPECT_EQ(packed, expected);

  // 8 bits: magnitude 0x65 = 5 + (2 << 4) + (1 << 6) at weight 33: nibble 5 in byte 33, two bits 2 in byte 64 + 1 at bit 2,
  // one bit in byte 96 + 4 at bit 1, sign plane at 112.
  codes.fill(128);
  codes[33] = static_cast<uint8_t>(127 - 0x65);
  std::array<uint8_t, 128> wide;
  pack_block(codes.data(), 8, wide.data());
  std::array<uint8_t, 128> expected_wide{};
  expected_wide[33] = 5;
  expected_wide[64 + 1] = 2 << 2;
  expected_wide[96 + 4] = 1 << 1;
  expected_wide[112 + 4] = 1 << 1;
  EXPECT_EQ(wide, expected_wide);
}

std::vector<float> rotated(Backend& backend, const std::vector<float>& x) {
  std::vector<float> y(x.size());
  backend.prepare({.x = x.data(),
                   .tokens = 1,
                   .dim = static_cast<int64_t>(x.size()),
                   .prepared = {.mode = ActivationMode::f32, .rotated = y.data(), .codes = nullptr, .scales = nullptr}});
  return y;
}

TEST(Polar, RotationIsTheSylvesterMatrixAndItsOwnInverse) {
  for (const char* device : {"reference", "cpu"}) {
    const std::unique_ptr<Backend> backend = make_backend(device);
    for (int64_t j = 0; j < kBlock; ++j) {
      std::vector<float> unit(kBlock, 0.0f);
      unit[j] = 1.0f;
      const std::vector<float> column = rotated(*backend, unit);
      for (int64_t i = 0; i < kBlock; ++i) {
        const float entry = 0.08838834764831845f;
        ASSERT_EQ(column[i], std::popcount(static_cast<uint64_t>(i & j)) % 2 ? -entry : entry) << device << " " << i << " " << j;
      }
    }
    const std::vector<float> x = normals(3 * kBlock, 8);
    const std::vector<float> back = rotated(*backend, rotated(*backend, x));
    // Each pass: 8 roundings of at most sum |x| / sqrt(128) <= |x|_2 per block, about sqrt(128) here.
    for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(back[i], x[i], 2 * 8 * kEps * 1.3 * std::sqrt(128.0));
  }
}

}  // namespace
}  // namespace pq
