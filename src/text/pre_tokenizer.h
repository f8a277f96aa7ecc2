// Cuts text into words by the regular expression of tokenizer.json. Merging inside a word is left to bpe.h.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace pq {

// Hugging Face's Split(Regex, "isolated"): the matches are words, and so is each stretch between two matches.
// Immutable after construction; split may be called from several threads.
class PreTokenizer {
 public:
  // `pattern` is in the Oniguruma dialect that tokenizer.json uses; it runs on PCRE2 with Unicode classes. `\s` and `\S` mean
  // White_Space as they do there (PCRE2's own \s adds U+180E). ErrorKind::input when it does not compile, is longer than
  // 4096 bytes or may match the empty string; `source` names the file in the message.
  PreTokenizer(const std::string& pattern, const std::string& source);
  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;
  ~PreTokenizer();

  // The words in order; together they are `text`, of which they are views.
  // REQUIRES: `text` is valid UTF-8. ErrorKind::input when a match takes more than kMaxPatternSteps or exhausts the JIT
  // stack, or all of them more than kMaxPatternMs of processor time.
  std::vector<std::string_view> split(std::string_view text) const;

 private:
  struct Code;
  std::unique_ptr<Code> code_;
  std::string source_;
};

}  // namespace pq
