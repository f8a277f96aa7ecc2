// UTF-8 as bytes that may be wrong, and the NFC normal form. Classes of characters are left to pre_tokenizer.h.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace pq {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// What stands at the start of a byte string.
//   valid       one well-formed character of `bytes` bytes
//   invalid     `bytes` bytes (1 to 3) that no continuation can make well-formed: the "maximal subpart" of Unicode 3.9,
//               which decoders replace by one U+FFFD
//   incomplete  the string ends inside a character that further bytes could complete; `bytes` is all that is left
struct Utf8Unit {
  enum class Kind { valid, invalid, incomplete };
  Kind kind;
  int bytes;
};

// REQUIRES: `text` is not empty.
Utf8Unit next_utf8(std::string_view text);

// The character of a valid unit: text.substr(0, unit.bytes).
char32_t decode_utf8(std::string_view unit);

// Appends `code_point` as UTF-8. REQUIRES: at most U+10FFFF and no surrogate.
void append_utf8(char32_t code_point, std::string* out);

// `text` with each invalid or incomplete unit replaced by U+FFFD, as Python's decode("utf-8", "replace") does.
std::string replace_invalid_utf8(std::string_view text);

// Canonical composition (NFC) by the tables of libutf8proc. Time O(n log n) for any input.
// REQUIRES: `text` is valid UTF-8.
std::string normalize_nfc(std::string_view text);

// `text` in single quotes for an error message: at most 40 bytes of it, control characters and invalid bytes as '?'.
std::string in_quotes(std::string_view text);

}  // namespace pq
