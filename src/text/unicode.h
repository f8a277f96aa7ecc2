// The NFC normal form. UTF-8 itself is left to base/utf8.h, classes of characters to pre_tokenizer.h.
#pragma once

#include <string>
#include <string_view>

namespace pq {

// Canonical composition (NFC) by the tables of libutf8proc. Time O(n log n) for any input.
// REQUIRES: `text` is valid UTF-8.
std::string normalize_nfc(std::string_view text);

// `text` in single quotes for an error message, as shown() makes it.
std::string in_quotes(std::string_view text);

}  // namespace pq
