// UTF-8 scanning, replacement and NFC against hand-checked bytes.
#include "text/unicode.h"

#include <gtest/gtest.h>

#include <string>

#include "base/utf8.h"

namespace pq {
namespace {

using Kind = Utf8Unit::Kind;

void expect_unit(std::string_view text, Kind kind, int bytes) {
  const Utf8Unit unit = next_utf8(text);
  EXPECT_EQ(static_cast<int>(unit.kind), static_cast<int>(kind)) << ::testing::PrintToString(std::string(text));
  EXPECT_EQ(unit.bytes, bytes) << ::testing::PrintToString(std::string(text));
}

TEST(Unicode, AcceptsTheFirstAndLastCharacterOfEachLength) {
  for (const char* text : {"\x01", "\x7F"}) expect_unit(text, Kind::valid, 1);
  for (const char* text : {"\xC2\x80", "\xDF\xBF"}) expect_unit(text, Kind::valid, 2);
  for (const char* text : {"\xE0\xA0\x80", "\xED\x9F\xBF", "\xEE\x80\x80", "\xEF\xBF\xBF"}) expect_unit(text, Kind::valid, 3);
  for (const char* text : {"\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"}) expect_unit(text, Kind::valid, 4);
}

TEST(Unicode, FindsTheMaximalInvalidSubpart) {
  for (const char* text : {"\x80", "\xBF", "\xC0\xAF", "\xC1\xBF", "\xF5\x80\x80\x80", "\xFF", "\xE0\x9F\xBF", "\xED\xA0\x80",
                           "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xC3(", "\xE2(", "\xF0("})
    expect_unit(text, Kind::invalid, 1);
  expect_unit("\xE2\x82(", Kind::invalid, 2);
  expect_unit("\xF0\x9F\x98(", Kind::invalid, 3);
}

TEST(Unicode, TellsIncompleteFromInvalid) {
  expect_unit("\xC3", Kind::incomplete, 1);
  expect_unit("\xE2", Kind::incomplete, 1);
  expect_unit("\xE2\x82", Kind::incomplete, 2);
  expect_unit("\xF0\x9F\x98", Kind::incomplete, 3);
}

TEST(Unicode, EncodesWhatItDecodes) {
  for (const char32_t c : {0x0u, 0x41u, 0x7Fu, 0x80u, 0x7FFu, 0x800u, 0xD7FFu, 0xE000u, 0xFFFFu, 0x10000u, 0x10FFFFu}) {
    std::string text;
    append_utf8(c, &text);
    expect_unit(text, Kind::valid, static_cast<int>(text.size()));
    EXPECT_EQ(decode_utf8(text), c);
  }
}

TEST(Unicode, ReplacesEachInvalidSubpartOnce) {
  const std::string r(kReplacementCharacter);
  EXPECT_EQ(replace_invalid_utf8("plain \xC3\xA9"), "plain \xC3\xA9");
  EXPECT_EQ(replace_invalid_utf8("a\xFF"
                                 "b"),
            "a" + r + "b");
  EXPECT_EQ(replace_invalid_utf8("\xE2\x82"), r);
  EXPECT_EQ(replace_invalid_utf8("\xE2\x82x"), r + "x");
  EXPECT_EQ(replace_invalid_utf8("\xC0\xAF"), r + r);
  EXPECT_EQ(replace_invalid_utf8("\xED\xA0\x80"), r + r + r);
}

TEST(Unicode, ComposesByNfc) {
  EXPECT_EQ(normalize_nfc("plain text"), "plain text");
  EXPECT_EQ(normalize_nfc("caf\xC3\xA9"), "caf\xC3\xA9");
  EXPECT_EQ(normalize_nfc("cafe\xCC\x81!"), "caf\xC3\xA9!");
  EXPECT_EQ(normalize_nfc("\xCC\x81x"), "\xCC\x81x");                                // nothing to combine with
  EXPECT_EQ(normalize_nfc("\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB"), "\xED\x95\x9C");  // Hangul jamo
  EXPECT_EQ(normalize_nfc("a\xCC\x81\xCC\xA3"), "\xE1\xBA\xA1\xCC\x81");             // dot below is sorted first
  EXPECT_EQ(normalize_nfc("\xE0\xA5\x98"), "\xE0\xA4\x95\xE0\xA4\xBC");              // composition exclusion
  EXPECT_EQ(normalize_nfc("\xE2\x84\xAB \xE2\x84\xAA"), "\xC3\x85 K");               // singletons
  EXPECT_EQ(normalize_nfc("=\xCC\xB8=\xCC\xB8"), "\xE2\x89\xA0\xE2\x89\xA0");        // two runs
  EXPECT_EQ(normalize_nfc(std::string("\0e\xCC\x81", 4)), std::string("\0\xC3\xA9", 3));
}

TEST(Unicode, SortsALongRunOfMarksInReasonableTime) {
  // 400,000 marks in the worst order: a quadratic sort would need 4e10 exchanges.
  std::string text = "a";
  std::string below;
  std::string above;
  for (int i = 0; i < 200'000; ++i) {
    text += "\xCC\x81\xCC\xA3";
    if (i > 0) {
      below += "\xCC\xA3";
      above += "\xCC\x81";
    }
  }
  EXPECT_EQ(normalize_nfc(text), "\xE1\xBA\xA1" + below + "\xCC\x81" + above);
}

TEST(Unicode, QuotesForOneLine) {
  EXPECT_EQ(in_quotes("a\nb\xFF"), "'a?b?'");
  EXPECT_EQ(in_quotes(std::string(81, 'x')), "'" + std::string(80, 'x') + "...'");
}

}  // namespace
}  // namespace pq
