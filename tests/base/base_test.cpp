// Conversions over all 16-bit values, checked shapes, file errors, digests with published vectors, the random stream.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <sstream>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/random.h"
#include "base/tensor.h"

namespace pq {
namespace {

using testing::HasSubstr;

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = testing::TempDir() + "pq_base_XXXXXX";
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

template <typename F>
Error error_of(F&& call) {
  try {
    call();
  } catch (const Error& e) {
    return e;
  }
  return Error(ErrorKind::internal, "no error");
}

TEST(HalfPrecision, EveryValueSurvivesARoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = f16_to_f32(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(value))));
    } else {
      EXPECT_EQ(f32_to_f16(value), bits);
    }
  }
}

// Between neighbours a and b the midpoint goes to the even one, everything nearer to a goes to a.
TEST(HalfPrecision, RoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7bff; ++bits) {
    const float a = f16_to_f32(static_cast<uint16_t>(bits));
    const float b = f16_to_f32(static_cast<uint16_t>(bits + 1));
    const float middle = 0.5f * (a + b);
    EXPECT_EQ(f32_to_f16(middle), bits % 2 == 0 ? bits : bits + 1);
    EXPECT_EQ(f32_to_f16(std::nextafter(middle, a)), bits);
    EXPECT_EQ(f32_to_f16(-std::nextafter(middle, b)), (bits + 1) | 0x8000u);
  }
  EXPECT_EQ(f32_to_f16(65519.0f), 0x7bff);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(f32_to_f16(std::numeric_limits<float>::infinity()), 0x7c00);
}

TEST(BrainFloat, RoundTripAndRounding) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = bf16_to_f32(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(value))));
    } else {
      EXPECT_EQ(f32_to_bf16(value), bits);
    }
  }
  // 1 + 2^-8 lies between 1 and 1 + 2^-7: tie to even.
  EXPECT_EQ(f32_to_bf16(1.00390625f), 0x3f80);
  EXPECT_EQ(f32_to_bf16(1.01171875f), 0x3f82);
}

TEST(Shapes, CountIsChecked) {
  EXPECT_EQ(checked_count({3, 4}), 12);
  EXPECT_EQ(checked_count({}), 1);
  EXPECT_EQ(checked_count({0, int64_t{1} << 40}), 0);
  EXPECT_EQ(error_of([] { checked_count({int64_t{1} << 32, int64_t{1} << 32}); }).kind(), ErrorKind::input);
  EXPECT_EQ(error_of([] { checked_count({-1}); }).kind(), ErrorKind::input);
  EXPECT_EQ(shape_text({1, 20}), "[1, 20]");
}

TEST(DTypes, NamesAreInverse) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16, DType::i8, DType::u8, DType::i32, DType::i64}) {
    DType parsed = DType::f32;
    ASSERT_TRUE(try_parse_dtype(dtype_name(dtype), &parsed));
    EXPECT_EQ(parsed, dtype);
  }
  DType parsed;
  EXPECT_FALSE(try_parse_dtype("F8_E4M3", &parsed));
}

TEST(Files, CachedReadGivesAPrefixOrNothing) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("ten");
  write_file_atomically(path, "0123456789");
  const File file = File::open_read(path);
  char data[20] = "xxxxxxxxxxxx";
  // How much is cached, and whether the file system tells, is not ours to say.
  const int64_t count = file.read_cached(data, 8, 2);
  ASSERT_GE(count, 0);
  ASSERT_LE(count, 8);
  EXPECT_EQ(std::string(data, static_cast<size_t>(count)), std::string("23456789").substr(0, static_cast<size_t>(count)));
  EXPECT_EQ(file.read_cached(data, 8, 10), 0);
}

TEST(Files, ShortFileNamesBothSizes) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("ten");
  write_file_atomically(path, "0123456789");
  const File file = File::open_read(path);
  EXPECT_EQ(file.size(), 10);
  char data[20];
  file.read_at(data, 4, 6);
  EXPECT_EQ(std::string(data, 4), "6789");
  const Error error = error_of([&] { file.read_at(data, 8, 6); });
  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.what(), HasSubstr("ends at byte 10, byte 14 is needed"));
}

TEST(Files, HintsChangeNothingAndMayReachBeyondTheEnd) {
  const TemporaryDirectory directory;
  File file = File::create(directory.file("hinted"));
  file.write_at("0123456789", 10, 0);
  file.start_sync();
  file.will_need(5, 1 << 20);
  file.will_need(1 << 20, 1 << 20);
  EXPECT_EQ(file.size(), 10);
  char back[10];
  file.read_at(back, 10, 0);
  EXPECT_EQ(std::string(back, 10), "0123456789");
}

TEST(Files, RefusalsNameThePath) {
  const TemporaryDirectory directory;
  const Error missing = error_of([&] { File::open_read(directory.file("absent")); });
  EXPECT_EQ(missing.kind(), ErrorKind::io);
  EXPECT_THAT(missing.what(), HasSubstr("absent: No such file"));
  EXPECT_EQ(error_of([&] { File::open_read(directory.file("")); }).kind(), ErrorKind::input);
  EXPECT_EQ(error_of([&] { write_file_atomically(directory.file("no/such/place"), "x"); }).kind(), ErrorKind::io);
  write_file_atomically(directory.file("big"), std::string(100, 'x'));
  EXPECT_THAT(error_of([&] { read_text_file(directory.file("big"), 99); }).what(), HasSubstr("100 bytes, the limit is 99"));
}

// A pipe without a writer would wait for one; a socket cannot be opened.
TEST(Files, WhatIsNoRegularFileIsRefusedAtOnce) {
  const TemporaryDirectory directory;
  ASSERT_EQ(mkfifo(directory.file("pipe").c_str(), 0600), 0);
  const Error pipe = error_of([&] { File::open_read(directory.file("pipe")); });
  EXPECT_EQ(pipe.kind(), ErrorKind::input);
  EXPECT_THAT(pipe.what(), HasSubstr("pipe is not a regular file"));
  EXPECT_EQ(error_of([] { File::open_read("/dev/null"); }).kind(), ErrorKind::input);
}

TEST(Streams, AreReadUpToTheLimitAndNotBeyond) {
  std::istringstream exact("0123456789"), more("0123456789x"), nothing("");
  EXPECT_EQ(read_stream(exact, "it", 10), "0123456789");
  EXPECT_EQ(read_stream(nothing, "it", 10), "");
  const Error error = error_of([&] { read_stream(more, "it", 10); });
  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_STREQ(error.what(), "it has more than 10 bytes, the limit");
  const std::string large(200'000, 'y');
  std::istringstream parts(large);
  EXPECT_EQ(read_stream(parts, "it", 200'000), large);
}

TEST(Streams, LinesAreThoseOfGetlineUpToTheLimit) {
  std::istringstream in("0123456789\n\r\nlast");
  std::string line;
  ASSERT_TRUE(read_line(in, "a line", 10, &line));
  EXPECT_EQ(line, "0123456789");
  ASSERT_TRUE(read_line(in, "a line", 10, &line));
  EXPECT_EQ(line, "\r");
  ASSERT_TRUE(read_line(in, "a line", 10, &line));
  EXPECT_EQ(line, "last");
  EXPECT_FALSE(read_line(in, "a line", 10, &line));
  std::istringstream blank("\n"), more("0123456789x\n");
  EXPECT_TRUE(read_line(blank, "a line", 10, &line));
  EXPECT_EQ(line, "");
  EXPECT_FALSE(read_line(blank, "a line", 10, &line));
  EXPECT_EQ(error_of([&] { read_line(more, "a line", 10, &line); }).kind(), ErrorKind::input);
}

TEST(Files, ReplacementIsAtomicAndLeavesNoTemporary) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("manifest");
  write_file_atomically(path, "old");
  write_file_atomically(path, "new");
  EXPECT_EQ(read_text_file(path, 10), "new");
  EXPECT_FALSE(path_exists(path + ".tmp"));
}

TEST(Digests, PublishedVectors) {
  EXPECT_EQ(sha256_hex("abc", 3), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256_hex("", 0), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  // XXH3-64 of the empty input with seed 0.
  EXPECT_EQ(hex64(xxh3("", 0)), "2d06800538d394c2");
}

TEST(Digests, StreamingEqualsOneShot) {
  std::string data(10'000, '\0');
  Random random(3);
  for (char& c : data) c = static_cast<char>(random.next_u64());
  Xxh3Stream stream;
  for (size_t at = 0; at < data.size();) {
    const size_t step = std::min<size_t>(data.size() - at, static_cast<size_t>(random.below(700)));
    stream.update(data.data() + at, static_cast<int64_t>(step));
    at += step;
  }
  EXPECT_EQ(stream.digest(), xxh3(data.data(), static_cast<int64_t>(data.size())));
}

// SplitMix64 of seed 1234567, first output (reference implementation of its authors).
TEST(RandomStream, PublishedVectorAndRanges) {
  EXPECT_EQ(Random(1234567).next_u64(), 6457827717110365317u);
  Random random(7);
  double sum = 0;
  double squares = 0;
  constexpr int kCount = 100'000;
  for (int i = 0; i < kCount; ++i) {
    const double value = random.normal();
    sum += value;
    squares += value * value;
    const int64_t below = random.below(3);
    ASSERT_TRUE(below >= 0 && below < 3);
  }
  // Five standard errors of the mean and of the second moment.
  EXPECT_LT(std::abs(sum / kCount), 5 / std::sqrt(kCount));
  EXPECT_LT(std::abs(squares / kCount - 1), 5 * std::sqrt(2.0 / kCount));
}

}  // namespace
}  // namespace pq
