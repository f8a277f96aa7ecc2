// UTF-8 as bytes that may be wrong, and text of others made fit for a line on a terminal. Normal forms are left to text/unicode.h.
#pragma once

#include <cstddef>
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

// `text` with '?' for each character that is no print on a terminal: bytes that are no UTF-8, the controls C0, DEL and C1 (which
// begin escape sequences), line and paragraph separators, and the controls of writing direction, which make a line read otherwise
// than it is.
std::string printable(std::string_view text);

// What a message may quote of a name or text of others: printable(), and of more than `limit` characters the first `limit` and
// "...".
std::string shown(std::string_view text, size_t limit = 80);

}  // namespace pq
