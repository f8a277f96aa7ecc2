// The stream gives the same text however its input is cut, and never a part of a character.
#include "text/utf8_stream.h"

#include <gtest/gtest.h>

#include <string>

#include "base/random.h"
#include "base/utf8.h"

namespace pq {
namespace {

TEST(Utf8Stream, HoldsBackAnIncompleteCharacter) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("a\xE2"), "a");
  EXPECT_EQ(stream.push("\x82"), "");
  EXPECT_EQ(stream.push("\xAC"
                        "b"),
            "\xE2\x82\xAC"
            "b");
  EXPECT_EQ(stream.finish(), "");
}

TEST(Utf8Stream, ReplacesWhatCanNoLongerBeCompleted) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("\xF0\x9F"), "");
  EXPECT_EQ(stream.push("x"), "\xEF\xBF\xBDx");
  EXPECT_EQ(stream.push("\x80"), "\xEF\xBF\xBD");
}

TEST(Utf8Stream, EndsWithOneReplacementAndStartsAfresh) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("\xF0\x9F\x98"), "");
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.finish(), "");
  EXPECT_EQ(stream.push("ok"), "ok");
}

TEST(Utf8Stream, DoesNotDependOnTheCuts) {
  Random random(3);
  const std::string fragments[] = {"a",        "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "\xE2", "\xE2\x82",
                                   "\xF0\x9F", "\xFF",     "\x80",         "\xED\xA0"};
  for (int round = 0; round < 2000; ++round) {
    std::string bytes;
    for (int i = 0; i < 8; ++i) bytes += fragments[random.below(10)];
    Utf8Stream stream;
    std::string text;
    for (size_t at = 0; at < bytes.size();) {
      const size_t count = static_cast<size_t>(random.below(4));
      const std::string shown = stream.push(std::string_view(bytes).substr(at, count));
      EXPECT_EQ(shown, replace_invalid_utf8(shown));
      text += shown;
      at += count;
    }
    text += stream.finish();
    ASSERT_EQ(text, replace_invalid_utf8(bytes));
  }
}

}  // namespace
}  // namespace pq
