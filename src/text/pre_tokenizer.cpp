// PCRE2 behind pre_tokenizer.h.
#include "text/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <ctime>
#include <utility>

#include "base/error.h"
#include "base/limits.h"

namespace pq {
namespace {

constexpr size_t kJitStackStartBytes = size_t{32} << 10;
constexpr size_t kJitStackLimitBytes = size_t{16} << 20;
// The pattern of the model takes 0.02 on prose and code.
constexpr int64_t kPatternUsOfAByte = 5;
constexpr size_t kMatchesALook = 64;

std::string pcre2_message(int code) {
  PCRE2_UCHAR text[256];
  if (pcre2_get_error_message(code, text, sizeof text) < 0) return "PCRE2 error " + std::to_string(code);
  return reinterpret_cast<const char*>(text);
}

std::string with_white_space_property(const std::string& pattern) {
  std::string out;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] != '\\' || i + 1 == pattern.size()) {
      out += pattern[i];
      continue;
    }
    const char escaped = pattern[++i];
    if (escaped == 's')
      out += "\\p{White_Space}";
    else if (escaped == 'S')
      out += "\\P{White_Space}";
    else
      (out += '\\') += escaped;
  }
  return out;
}

int64_t processor_us() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return int64_t{time.tv_sec} * 1'000'000 + time.tv_nsec / 1'000;
}

struct CodeDeleter {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
};
struct MatchDataDeleter {
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
};
struct MatchContextDeleter {
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
};
struct JitStackDeleter {
  void operator()(pcre2_jit_stack* p) const { pcre2_jit_stack_free(p); }
};

}  // namespace

struct PreTokenizer::Code {
  std::unique_ptr<pcre2_code, CodeDeleter> regex;
};

PreTokenizer::PreTokenizer(const std::string& pattern, const std::string& source)
    : code_(std::make_unique<Code>()), source_(source) {
  if (pattern.size() > static_cast<size_t>(kMaxPatternBytes))
    throw Error(ErrorKind::input, source + ": the split pattern has " + std::to_string(pattern.size()) + " bytes, the limit is " +
                                      std::to_string(kMaxPatternBytes));
  const std::string translated = with_white_space_property(pattern);
  int error = 0;
  PCRE2_SIZE offset = 0;
  code_->regex.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                   PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr));
  if (!code_->regex)
    throw Error(ErrorKind::input, source + ": the split pattern does not compile, at byte " + std::to_string(offset) + " of " +
                                      std::to_string(translated.size()) + ": " + pcre2_message(error));
  uint32_t may_be_empty = 0;
  pcre2_pattern_info(code_->regex.get(), PCRE2_INFO_MATCHEMPTY, &may_be_empty);
  if (may_be_empty != 0) throw Error(ErrorKind::input, source + ": the split pattern may match the empty string");
  // A failure leaves the interpreter in charge: slower, same matches.
  pcre2_jit_compile(code_->regex.get(), PCRE2_JIT_COMPLETE);
}

PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;
PreTokenizer::~PreTokenizer() = default;

std::vector<std::string_view> PreTokenizer::split(std::string_view text) const {
  std::vector<std::string_view> words;
  if (text.empty()) return words;
  const std::unique_ptr<pcre2_match_data, MatchDataDeleter> match(
      pcre2_match_data_create_from_pattern(code_->regex.get(), nullptr));
  const std::unique_ptr<pcre2_match_context, MatchContextDeleter> context(pcre2_match_context_create(nullptr));
  const std::unique_ptr<pcre2_jit_stack, JitStackDeleter> stack(
      pcre2_jit_stack_create(kJitStackStartBytes, kJitStackLimitBytes, nullptr));
  if (!match || !context) throw Error(ErrorKind::environment, "no memory for a regular expression match");
  if (stack) pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  // A run of spaces is backtracked over once a byte; what needs far more than that is a hostile pattern.
  pcre2_set_match_limit(
      context.get(), static_cast<uint32_t>(std::min(static_cast<size_t>(kMaxPatternSteps) + 4 * text.size(), size_t{0xFFFFFFFF})));

  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const PCRE2_SIZE* span = pcre2_get_ovector_pointer(match.get());
  // A pattern may also take a little less than that at every byte.
  const int64_t deadline_us = processor_us() + kMaxPatternMs * 1'000 + kPatternUsOfAByte * static_cast<int64_t>(text.size());
  size_t at = 0;
  for (size_t matches = 1; at < text.size(); ++matches) {
    if (matches % kMatchesALook == 0 && processor_us() > deadline_us)
      throw Error(ErrorKind::input, source_ + ": the split pattern takes too long: it is at byte " + std::to_string(at) +
                                        " of a text of " + std::to_string(text.size()) + " bytes after " +
                                        std::to_string(kMaxPatternMs) + " ms and " + std::to_string(kPatternUsOfAByte) +
                                        " us for each byte");
    const int rc = pcre2_match(code_->regex.get(), subject, text.size(), at, PCRE2_NO_UTF_CHECK, match.get(), context.get());
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0)
      throw Error(ErrorKind::input, source_ + ": the split pattern failed at byte " + std::to_string(at) + " of a text of " +
                                        std::to_string(text.size()) + " bytes: " + pcre2_message(rc));
    // \K can make a match empty or move its start backwards in spite of the check at construction.
    if (span[0] < at || span[1] <= span[0]) throw Error(ErrorKind::input, source_ + ": the split pattern matched the empty string");
    if (span[0] > at) words.push_back(text.substr(at, span[0] - at));
    words.push_back(text.substr(span[0], span[1] - span[0]));
    at = span[1];
  }
  if (at < text.size()) words.push_back(text.substr(at));
  return words;
}

}  // namespace pq
