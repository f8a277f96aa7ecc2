// The limits of every JSON file, at the limit and one beyond, and that the table of limits in words has the numbers of the code.
#include "base/strict_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/limits.h"

namespace pq {
namespace {

using ::testing::HasSubstr;

std::string refusal(const std::string& text, int64_t max_values = kMaxJsonValues) {
  try {
    parse_strict_json(text, "x.json", max_values);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::input);
    EXPECT_THAT(error.what(), HasSubstr("x.json"));
    return error.what();
  }
  return "";
}

TEST(StrictJson, BuildsTheTreeOfTheLibrary) {
  for (const char* text : {"null", "true", "-1", "18446744073709551615", "1.5e3", "\"a\\u0000b\"", "[]", "{}", "[1,[2,{}],3]",
                           R"({"b":[true,false,null],"a":{"x":{"y":[[]]}},"c":""})"})
    EXPECT_EQ(parse_strict_json(text, "x"), nlohmann::json::parse(text)) << text;
}

TEST(StrictJson, RefusesWhatIsNotJson) {
  for (const char* text :
       {"", " ", "{", "[1,]", "{\"a\" 1}", "nul", "1 2", "\"\xFF\"", "\"\x01\"", "[1}", "{\"a\":1,}", "01", "NaN"})
    EXPECT_THAT(refusal(text), HasSubstr("is not JSON at byte")) << text;
  EXPECT_THAT(refusal("[1e999]"), HasSubstr("no double can represent"));
  // What was read does not end up in the message.
  EXPECT_LT(refusal("\"" + std::string(1 << 20, 'x')).size(), 100u);
}

TEST(StrictJson, RefusesAKeyThatComesTwice) {
  EXPECT_THAT(refusal(R"({"a":1,"b":{"a":1},"a":2})"), HasSubstr("repeats the key \"a\""));
  EXPECT_THAT(refusal(R"([{"a":{"b":1,"b":1}}])"), HasSubstr("repeats the key \"b\""));
  EXPECT_EQ(refusal(R"([{"a":1},{"a":1}])"), "");
  EXPECT_LT(refusal("{\"" + std::string(5000, 'k') + "\":1,\"" + std::string(5000, 'k') + "\":1}").size(), 200u);
}

TEST(StrictJson, DepthAtTheLimitAndBeyond) {
  const auto nested = [](int depth) {
    return std::string(static_cast<size_t>(depth), '[') + std::string(static_cast<size_t>(depth), ']');
  };
  EXPECT_EQ(refusal(nested(kMaxJsonDepth)), "");
  EXPECT_THAT(refusal(nested(kMaxJsonDepth + 1)), HasSubstr("nested deeper than 32 levels"));
  EXPECT_THAT(refusal(std::string(1 << 20, '[')), HasSubstr("nested deeper than"));
  std::string objects;
  for (int i = 0; i <= kMaxJsonDepth; ++i) objects += "{\"a\":";
  EXPECT_THAT(refusal(objects), HasSubstr("nested deeper than"));
}

TEST(StrictJson, ValuesAtTheLimitAndBeyond) {
  EXPECT_EQ(refusal("[1,2,3]", 4), "");
  EXPECT_THAT(refusal("[1,2,3,4]", 4), HasSubstr("more than 4 JSON values"));
  EXPECT_EQ(refusal(R"({"a":1})", 3), "");
  EXPECT_THAT(refusal(R"({"a":[]})", 2), HasSubstr("more than 2 JSON values"));
  std::string many = "[";
  for (int64_t i = 0; i < kMaxJsonValues; ++i) many += "[],";
  EXPECT_THAT(refusal(many), HasSubstr("more than 4194304 JSON values"));
}

TEST(StrictJson, IntegersAtTheEdgesOfTheirTypes) {
  const auto integer = [](const std::string& text) {
    try {
      return std::to_string(json_as_integer(parse_strict_json(text, "x"), "x", INT64_MIN, INT64_MAX));
    } catch (const Error& error) {
      return std::string(error.what());
    }
  };
  for (const char* text : {"2147483647", "2147483648", "4294967295", "4294967296", "9223372036854775807", "-9223372036854775808"})
    EXPECT_EQ(integer(text), text);
  for (const char* text : {"9223372036854775808", "9223372036854775809", "18446744073709551615"})
    EXPECT_THAT(integer(text), HasSubstr("outside"));
  for (const char* text : {"-9223372036854775809", "18446744073709551616", "1.0", "\"1\"", "null"})
    EXPECT_THAT(integer(text), HasSubstr("not an integer"));
}

// src/LIMITS.md has a row "| `kName` | value | ... |" for each constant of base/limits.h, and the other way round.
TEST(Limits, TheTableIsTrue) {
  std::ifstream header(std::string(PQ_TEST_DATA) + "/../../src/base/limits.h"),
      table(std::string(PQ_TEST_DATA) + "/../../src/LIMITS.md");
  const auto plain = [](std::string number) {
    number.erase(std::remove_if(number.begin(), number.end(), [](char c) { return c < '0' || c > '9'; }), number.end());
    return number;
  };
  std::map<std::string, std::string> coded, told;
  const std::string text{std::istreambuf_iterator<char>(header), std::istreambuf_iterator<char>()};
  const std::string start = "inline constexpr ";
  for (size_t at = text.find(start); at != std::string::npos; at = text.find(start, at + 1)) {
    const size_t name = text.find(" kMax", at) + 1, value = text.find(" =", at), end = text.find(';', at);
    ASSERT_LT(name, value) << text.substr(at, 80);
    coded[text.substr(name, value - name)] = plain(text.substr(value, end - value));
  }
  for (std::string line; std::getline(table, line);) {
    if (line.rfind("| `kMax", 0) != 0) continue;
    const size_t end = line.find('`', 3), bar = line.find('|', end), next = line.find('|', bar + 1);
    told[line.substr(3, end - 3)] = plain(line.substr(bar, next - bar));
  }
  EXPECT_GT(coded.size(), 20u);
  EXPECT_EQ(told, coded);
}

}  // namespace
}  // namespace pq
