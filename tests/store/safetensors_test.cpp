// Abuse of safetensors headers and indices through real files; the writer read back.
#include <algorithm>
#include <cstring>

#include "base/strict_json.h"
#include "store/store_fixture.h"

namespace pq {
namespace {

using testing::error_of;
using testing::spit;
using testing::TempDir;

std::string file_bytes(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + data;
}

// The error of opening a file of this header and data.
std::string open_error(const std::string& header, const std::string& data = "") {
  const TempDir dir;
  spit(dir / "x.safetensors", file_bytes(header, data));
  const std::string message = error_of(ErrorKind::input, [&] { SafetensorsFile::open(dir / "x.safetensors"); });
  EXPECT_NE(message.find(dir / "x.safetensors"), std::string::npos) << message;
  return message;
}

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

TEST(Safetensors, WriterAndReaderAgree) {
  const TempDir dir;
  SafetensorsWriter writer(dir / "a.safetensors", {{"a", DType::f32, {2, 2}}, {"empty", DType::i8, {0, 3}}, {"b", DType::u8, {3}}},
                           {{"format", "pt"}});
  const float a[4] = {1, 2, 3, 4};
  writer.write(2, 1, "yz", 2);
  writer.write(0, 0, a, 16);
  writer.write(2, 0, "x", 1);
  EXPECT_FALSE(path_exists(dir / "a.safetensors"));
  writer.finish();
  const SafetensorsFile file = SafetensorsFile::open(dir / "a.safetensors");
  ASSERT_EQ(file.entries().size(), 3u);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.entries()[0].name, "a");
  EXPECT_EQ(file.entries()[0].offset % 64, 0);
  float back[4];
  file.file().read_at(back, 16, file.entries()[0].offset);
  EXPECT_TRUE(std::equal(a, a + 4, back));
  char letters[3];
  file.file().read_at(letters, 3, file.entries()[2].offset);
  EXPECT_EQ(std::string(letters, 3), "xyz");
}

TEST(Safetensors, RefusesTruncatedFiles) {
  const TempDir dir;
  const std::string whole = file_bytes(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", "abcd");
  spit(dir / "x", whole);
  EXPECT_NO_THROW(SafetensorsFile::open(dir / "x"));
  for (size_t size = 0; size < whole.size(); ++size) {
    spit(dir / "x", whole.substr(0, size));
    error_of(ErrorKind::input, [&] { SafetensorsFile::open(dir / "x"); });
  }
}

TEST(Safetensors, RefusesHeaderLengths) {
  const TempDir dir;
  for (const uint64_t length : {uint64_t{1} << 63, ~uint64_t{0}, uint64_t{100'000'001}, uint64_t{1000}}) {
    std::string bytes = file_bytes("{}", "");
    std::memcpy(bytes.data(), &length, 8);
    spit(dir / "x", bytes);
    EXPECT_HAS(error_of(ErrorKind::input, [&] { SafetensorsFile::open(dir / "x"); }), "header of " + std::to_string(length));
  }
}

TEST(Safetensors, RefusesTilingDefects) {
  EXPECT_HAS(
      open_error(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}})",
                 "abcdefg"),
      "overlaps");
  EXPECT_HAS(
      open_error(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[2],"data_offsets":[5,7]}})",
                 "abcdefg"),
      "1 bytes before tensor \"b\" belong to no tensor");
  EXPECT_HAS(open_error(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", "abcde"), "1 bytes at the end");
  EXPECT_HAS(open_error(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", "abc"), "lies at bytes 0..4 of 3");
  EXPECT_HAS(open_error(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[3,2]}})", "abcd"), "lies at bytes 3..2");
}

TEST(Safetensors, RefusesShapesAndTypes) {
  EXPECT_HAS(open_error(R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,4]}})", "abcd"), "-1");
  EXPECT_HAS(open_error(R"({"a":{"dtype":"U8","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4]}})", "abcd"),
             "too large dimension");
  // 2^62 elements of four bytes overflow 64 bits to 0.
  EXPECT_HAS(open_error(R"({"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})"), "has 0 bytes");
  EXPECT_HAS(open_error(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", "abcd"), "has 4 bytes");
  EXPECT_HAS(open_error(R"({"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}})", "abcd"), "F8_E4M3");
  EXPECT_HAS(open_error(R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,4],"data_offsets":[0,4]}})", "abcd"), "9 dimensions");
  EXPECT_HAS(open_error(R"({"a":{"dtype":"U8","shape":[4.0],"data_offsets":[0,4]}})", "abcd"), "not an integer");
  EXPECT_HAS(open_error(R"({"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,4]}})", "abcd"),
             "18446744073709551615");
}

TEST(Safetensors, RefusesMalformedHeaders) {
  EXPECT_HAS(open_error("[]"), "does not start with '{'");
  EXPECT_HAS(open_error(""), "does not start with '{'");
  EXPECT_HAS(open_error(R"({"a":)"), "is not JSON at byte");
  EXPECT_HAS(
      open_error(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})"),
      "repeats the key \"a\"");
  EXPECT_HAS(open_error(R"({"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}})"), "repeats the key \"dtype\"");
  EXPECT_HAS(open_error(R"({"a":{"dtype":"U8","shape":[0]}})"), "2 fields");
  EXPECT_HAS(open_error(R"({"a":{"dtype":"U8","shape":[0],"offsets":[0,0]}})"), "lacks \"data_offsets\"");
  EXPECT_HAS(open_error(R"({"a":3})"), "not an object");
  EXPECT_HAS(open_error(R"({"__metadata__":{"a":1}})"), "__metadata__");
  EXPECT_HAS(open_error("{\"" + std::string(2000, 'n') + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})"),
             "name of 2000 bytes");
  EXPECT_HAS(open_error(R"({"a\u0000b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})"), "control character");
  const std::string deep = "{\"a\":" + std::string(100'000, '[') + std::string(100'000, ']') + "}";
  EXPECT_HAS(open_error(deep), "nested deeper than");
}

TEST(Safetensors, SizesAtTheEdgesOfTheirTypes) {
  const std::string head = R"({"a":{"dtype":"F32","shape":[)", tail = R"(],"data_offsets":[0,)";
  // Element counts whose bytes, or ends whose sums, wrap around in 32 or 64 bits.
  for (const char* shape : {"1073741825", "2147483648", "4294967297", "2305843009213693953", "4611686018427387904",
                            "9223372036854775807", "9223372036854775808", "4294967296,4294967297", "3037000500,3037000500"})
    EXPECT_HAS(open_error(head + shape + tail + "4]}}", "abcd"), "tensor \"a\"");
  for (const char* end : {"2147483648", "4294967300", "9223372036854775807", "9223372036854775808", "18446744073709551620"})
    EXPECT_FALSE(open_error(head + "1" + tail + std::string(end) + "]}}", "abcd").empty());
  EXPECT_HAS(open_error(head + "1" + tail +
                            "4]},\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[9223372036854775807,"
                            "9223372036854775807]}}",
                        "abcd"),
             "lies at bytes");
}

TEST(Safetensors, CountsAtTheLimitsAndBeyond) {
  const std::string name(kMaxSafetensorsNameBytes, 'n');
  const auto header = [](const std::string& tensor) {
    return "{\"" + tensor + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})";
  };
  const TempDir dir;
  spit(dir / "x", file_bytes(header(name), ""));
  EXPECT_EQ(SafetensorsFile::open(dir / "x").entries().size(), 1u);
  EXPECT_HAS(open_error(header(name + "n")), "a tensor name of 1025 bytes");
  spit(dir / "x", file_bytes(R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,4],"data_offsets":[0,4]}})", "abcd"));
  EXPECT_EQ(SafetensorsFile::open(dir / "x").entries()[0].shape.size(), 8u);
  std::string many = "{";
  for (int64_t i = 0; i <= kMaxSafetensorsTensors; ++i)
    many += (i ? ",\"" : "\"") + std::to_string(i) + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  EXPECT_HAS(open_error(many + "}"), "262145 tensors, at most 262144");
}

class SafetensorsIndex : public ::testing::Test {
 protected:
  void write(const std::string& name, const std::string& tensor) {
    spit(dir_ / name, file_bytes(R"({")" + tensor + R"(":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "x"));
  }
  std::string index_error(const std::string& map) {
    spit(dir_ / "model.safetensors.index.json", R"({"weight_map":{)" + map + "}}");
    return error_of(ErrorKind::input, [&] { SafetensorsDirectory::open(dir_.path()); });
  }
  TempDir dir_;
};

TEST_F(SafetensorsIndex, ReadsIndexAndPlainFiles) {
  write("model-1.safetensors", "a");
  write("model-2.safetensors", "b");
  const SafetensorsDirectory plain = SafetensorsDirectory::open(dir_.path());
  EXPECT_EQ(plain.files().size(), 2u);
  spit(dir_ / "model.safetensors.index.json", R"({"weight_map":{"b":"model-2.safetensors"}})");
  const SafetensorsDirectory indexed = SafetensorsDirectory::open(dir_.path());
  EXPECT_EQ(indexed.files().size(), 1u);
  EXPECT_NE(indexed.find("b"), nullptr);
  EXPECT_EQ(indexed.find("a"), nullptr);
  EXPECT_NE(plain.fingerprint(), indexed.fingerprint());
  EXPECT_EQ(plain.fingerprint().size(), 16u);
}

TEST_F(SafetensorsIndex, RefusesDisagreement) {
  write("model-1.safetensors", "a");
  write("model-2.safetensors", "b");
  EXPECT_HAS(index_error(R"("a":"model-1.safetensors","b":"model-3.safetensors")"), "model-3.safetensors is missing");
  EXPECT_HAS(index_error(R"("a":"model-1.safetensors","c":"model-2.safetensors")"), "holds \"b\", which the index does not name");
  EXPECT_HAS(index_error(R"("a":"model-1.safetensors","b":"model-2.safetensors","c":"model-2.safetensors")"), "does not hold it");
  EXPECT_HAS(index_error(R"("a":"model-1.safetensors","b":"model-1.safetensors")"), "does not hold it");
  EXPECT_HAS(index_error(R"("a":3)"), "not a string");
  EXPECT_HAS(index_error(""), "holds no model.safetensors");
}

TEST_F(SafetensorsIndex, NamesAtTheLimitAndBeyond) {
  const std::string name(kMaxSafetensorsNameBytes, 'n');
  write("model-1.safetensors", name);
  spit(dir_ / "model.safetensors.index.json", R"({"weight_map":{")" + name + R"(":"model-1.safetensors"}})");
  EXPECT_NE(SafetensorsDirectory::open(dir_.path()).find(name), nullptr);
  EXPECT_HAS(index_error("\"" + name + R"(n":"model-1.safetensors")"), "index.json: a tensor name of 1025 bytes, at most 1024");
}

TEST_F(SafetensorsIndex, StaysInsideTheDirectory) {
  for (const char* name : {"../model-1.safetensors", "/etc/passwd", "..", ".", "sub/model.safetensors", "", "a\\u0000b"})
    EXPECT_HAS(index_error(R"("a":")" + std::string(name) + "\""), "not a plain file name");
}

TEST_F(SafetensorsIndex, RefusesTheSameTensorTwice) {
  write("model-1.safetensors", "a");
  write("model-2.safetensors", "a");
  EXPECT_HAS(error_of(ErrorKind::input, [&] { SafetensorsDirectory::open(dir_.path()); }),
             "another file of the directory holds too");
}

}  // namespace
}  // namespace pq
