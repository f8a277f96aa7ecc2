// What messages may quote: nothing that a terminal obeys, and not more than fits a line.
#include "base/utf8.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <string>

#include "base/log.h"

namespace pq {
namespace {

TEST(Printable, KeepsCharactersAndReplacesWhatTerminalsObey) {
  EXPECT_EQ(printable("naïve 漢字 🙂"), "naïve 漢字 🙂");
  EXPECT_EQ(printable("a\x1b[31mb\r\n\x7f"), "a?[31mb???");
  // CSI as the one character U+009B, as its raw byte, and a character cut short.
  EXPECT_EQ(printable("a\xC2\x9B"
                      "2Jb\x9B"
                      "2J\xE6\xBC"),
            "a?2Jb?2J?");
  // Line separator, right-to-left override, isolate.
  EXPECT_EQ(printable("\xE2\x80\xA8\xE2\x80\xAE\xE2\x81\xA6x"), "???x");
  EXPECT_EQ(printable(std::string("a\0b", 3)), "a?b");
  EXPECT_EQ(printable(""), "");
}

TEST(Printable, QuotesAreCutByCharacters) {
  std::string umlauts;
  for (int i = 0; i < 81; ++i) umlauts += "ä";
  EXPECT_EQ(shown(umlauts), umlauts.substr(0, 160) + "...");
  EXPECT_EQ(shown(umlauts.substr(2)), umlauts.substr(2));
  EXPECT_EQ(shown("abc", 2), "ab...");
}

// What log_line(`message`) writes.
std::string logged(const std::string& message) {
  int ends[2];
  EXPECT_EQ(pipe(ends), 0);
  const int before = dup(STDERR_FILENO);
  dup2(ends[1], STDERR_FILENO);
  log_line(message);
  dup2(before, STDERR_FILENO);
  close(before);
  close(ends[1]);
  std::string text(100'000, '\0');
  text.resize(static_cast<size_t>(read(ends[0], text.data(), text.size())));
  close(ends[0]);
  return text;
}

TEST(LogLine, IsOneLineForATerminalAndAPipe) {
  EXPECT_EQ(logged("a\nb\x1b]0;x\x07\xC2\x85"), "pq: a?b?]0;x??\n");
  const std::string line = logged("begin " + std::string(50'000, 'x') + " end");
  EXPECT_LE(line.size(), 4096u);
  EXPECT_EQ(line.substr(0, 10), "pq: begin ");
  EXPECT_NE(line.find("x ... x"), std::string::npos);
  EXPECT_EQ(line.substr(line.size() - 5), " end\n");
}

}  // namespace
}  // namespace pq
