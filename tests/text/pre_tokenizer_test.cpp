// The split pattern of Qwen3.5, case by case, and patterns that must be refused.
#include "text/pre_tokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "small_tokenizer.h"

namespace pq {
namespace {

using Words = std::vector<std::string>;

Words split(std::string_view text, const std::string& pattern = testing::kQwenPattern) {
  const PreTokenizer pre_tokenizer(pattern, "test");
  Words words;
  for (const std::string_view word : pre_tokenizer.split(text)) words.emplace_back(word);
  return words;
}

TEST(PreTokenizer, Words) {
  EXPECT_EQ(split(""), Words{});
  EXPECT_EQ(split("Hello world"), (Words{"Hello", " world"}));
  EXPECT_EQ(split("a_b-c"), (Words{"a", "_b", "-c"}));
  EXPECT_EQ(split("\tword"), (Words{"\tword"}));
  EXPECT_EQ(split("\nword"), (Words{"\n", "word"}));
  EXPECT_EQ(split("\xD0\xBF\xD1\x80\xD0\xB8 \xE4\xBD\xA0\xE5\xA5\xBD"),
            (Words{"\xD0\xBF\xD1\x80\xD0\xB8", " \xE4\xBD\xA0\xE5\xA5\xBD"}));
}

TEST(PreTokenizer, ContractionsInEitherCase) {
  EXPECT_EQ(split("it's IT'S"), (Words{"it", "'s", " IT", "'S"}));
  EXPECT_EQ(split("we'Ve they'LL I'd"), (Words{"we", "'Ve", " they", "'LL", " I", "'d"}));
  EXPECT_EQ(split("'tis"), (Words{"'t", "is"}));
  EXPECT_EQ(split("o'clock"), (Words{"o", "'clock"}));
  EXPECT_EQ(split("a'\xC5\xBF"
                  "b"),
            (Words{"a", "'\xC5\xBF", "b"}));  // long s folds to s
}

TEST(PreTokenizer, MarksBelongToWords) {
  EXPECT_EQ(split("e\xCC\x81t"), (Words{"e\xCC\x81t"}));
  EXPECT_EQ(split(".\xCC\x81"), (Words{".\xCC\x81"}));  // the prefix of a word of marks
  EXPECT_EQ(split("..\xCC\x81"), (Words{"..", "\xCC\x81"}));
  EXPECT_EQ(split("\xCC\x81"
                  "1"),
            (Words{"\xCC\x81", "1"}));
  EXPECT_EQ(split("\xE0\xA4\x95\xE0\xA4\xBF\xE0\xA4\xA4"), (Words{"\xE0\xA4\x95\xE0\xA4\xBF\xE0\xA4\xA4"}));  // vowel sign (Mc)
}

TEST(PreTokenizer, DigitsSingly) {
  EXPECT_EQ(split("123 45"), (Words{"1", "2", "3", " ", "4", "5"}));
  EXPECT_EQ(split("x2\xC2\xBD\xD9\xA5"), (Words{"x", "2", "\xC2\xBD", "\xD9\xA5"}));
}

TEST(PreTokenizer, PunctuationTakesASpaceAndNewlines) {
  EXPECT_EQ(split("a !?\n\nb"), (Words{"a", " !?\n\n", "b"}));
  EXPECT_EQ(split("end.\r\nnext"), (Words{"end", ".\r\n", "next"}));
  EXPECT_EQ(split("\xF0\x9F\x98\x80\xE2\x80\x8D\xF0\x9F\x98\x80"), (Words{"\xF0\x9F\x98\x80\xE2\x80\x8D\xF0\x9F\x98\x80"}));
}

TEST(PreTokenizer, NewlineRuns) {
  EXPECT_EQ(split("\r\n\r\n"), (Words{"\r\n\r\n"}));
  EXPECT_EQ(split("a \n  \n b"), (Words{"a", " \n  \n", " b"}));
  EXPECT_EQ(split("a\n"), (Words{"a", "\n"}));
}

TEST(PreTokenizer, SpacesLeaveOneForTheNextWord) {
  EXPECT_EQ(split("   a"), (Words{"  ", " a"}));
  EXPECT_EQ(split("a   "), (Words{"a", "   "}));
  EXPECT_EQ(split("  1"), (Words{" ", " ", "1"}));
  EXPECT_EQ(split("  !"), (Words{" ", " !"}));
}

TEST(PreTokenizer, WhiteSpaceIsThatOfUnicode) {
  EXPECT_EQ(split("\xE3\x80\x80\xE2\x80\xA8"), (Words{"\xE3\x80\x80\xE2\x80\xA8"}));  // U+3000 U+2028
  EXPECT_EQ(split("1\xE1\xA0\x8E\n"), (Words{"1", "\xE1\xA0\x8E\n"}));                // U+180E has not been a space since 6.3
  EXPECT_EQ(split("\x1C\n"), (Words{"\x1C\n"}));                                      // nor is U+001C
  EXPECT_EQ(split("a\xC2\x85"
                  "1"),
            (Words{"a", "\xC2\x85", "1"}));
  EXPECT_EQ(split("\xE1\xA0\x8E", "\\S"), (Words{"\xE1\xA0\x8E"}));
}

TEST(PreTokenizer, GapsBetweenMatchesAreWords) {
  EXPECT_EQ(split("aXbbXc", "X"), (Words{"a", "X", "bb", "X", "c"}));
  EXPECT_EQ(split("\\sX", "\\\\s"), (Words{"\\s", "X"}));  // an escaped backslash before s is no class
}

TEST(PreTokenizer, LongRunsStayLinear) {
  // Where the JIT is not allowed the interpreter has to cope as well.
  for (const std::string prefix : {"", "(*NO_JIT)"}) {
    const PreTokenizer pre_tokenizer(prefix + testing::kQwenPattern, "test");
    for (const std::string unit : {"a", " ", "!", "1", "\n", "\xCC\x81", " \n", "a ", "\xF0\x9F\x98\x80"}) {
      std::string text;
      while (text.size() < 1'200'000) text += unit;
      size_t bytes = 0;
      for (const std::string_view word : pre_tokenizer.split(text)) bytes += word.size();
      EXPECT_EQ(bytes, text.size());
    }
  }
}

void expect_refused(const std::string& pattern, const std::string& text, const std::string& reason) {
  try {
    split(text, pattern);
    ADD_FAILURE() << pattern << " was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::input);
    EXPECT_NE(std::string(error.what()).find(reason), std::string::npos) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
  }
}

TEST(PreTokenizer, RefusesBadPatterns) {
  expect_refused("(", "x", "does not compile");
  expect_refused("a*", "x", "empty");
  expect_refused("\\C", "x", "does not compile");
  expect_refused(std::string(5000, 'a'), "x", "4096");
  expect_refused("\\xFF\\xFE\xFF", "x", "does not compile");
  expect_refused("a\\Kb?", "a", "empty");
}

TEST(PreTokenizer, GivesUpOnPatternsThatBacktrackWithoutEnd) {
  expect_refused("(a+)+$|z", std::string(40, 'a') + "b", "failed at byte 0 of a text of 41 bytes");
}

// At each byte it looks for a b to the end of the text, and takes the byte by itself.
TEST(PreTokenizer, GivesUpOnPatternsThatAreSlowAtEveryByte) {
  expect_refused("a[^c]*?b|a", std::string(200'000, 'a') + "c", "takes too long: it is at byte ");
}

}  // namespace
}  // namespace pq
