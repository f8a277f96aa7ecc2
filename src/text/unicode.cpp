// NFC on top of libutf8proc.
#include "text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "base/utf8.h"

namespace pq {
namespace {

using CodePoints = std::vector<utf8proc_int32_t>;

// No character below U+0300 combines with the one before it or is reordered, so each of them starts afresh.
constexpr unsigned char kFirstLeadFromU0300 = 0xCC;

bool starts_afresh(char byte) {
  const auto value = static_cast<unsigned char>(byte);
  return value < 0x80 || (value >= 0xC0 && value < kFirstLeadFromU0300);
}

// utf8proc_map sorts marks by exchanging neighbours: quadratic in the length of a run of marks, which an attacker chooses.
// Here it only decomposes and composes, both linear; runs of marks are sorted by std::stable_sort.
void append_nfc(std::string_view text, CodePoints* scratch, std::string* out) {
  CodePoints& points = *scratch;
  points.clear();
  for (size_t at = 0; at < text.size();) {
    const int bytes = next_utf8(text.substr(at)).bytes;
    utf8proc_int32_t expansion[8];
    int boundary = 0;
    const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(decode_utf8(text.substr(at, bytes))), expansion, 8,
                                               UTF8PROC_DECOMPOSE, &boundary);
    require(count >= 0 && count <= 8, "canonical decomposition longer than 8 characters");
    points.insert(points.end(), expansion, expansion + count);
    at += bytes;
  }
  const auto ccc = [](utf8proc_int32_t point) { return utf8proc_get_property(point)->combining_class; };
  for (auto first = points.begin(); first != points.end();) {
    if (ccc(*first) == 0) {
      ++first;
      continue;
    }
    const auto last = std::find_if(first, points.end(), [&](auto point) { return ccc(point) == 0; });
    std::stable_sort(first, last, [&](auto a, auto b) { return ccc(a) < ccc(b); });
    first = last;
  }
  const auto count = utf8proc_normalize_utf32(points.data(), static_cast<utf8proc_ssize_t>(points.size()),
                                              static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  require(count >= 0, "canonical composition failed");
  for (utf8proc_ssize_t i = 0; i < count; ++i) append_utf8(static_cast<char32_t>(points[i]), out);
}

}  // namespace

std::string normalize_nfc(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  CodePoints scratch;
  size_t copied = 0;
  for (size_t at = 0; at < text.size(); ++at) {
    if (static_cast<unsigned char>(text[at]) < kFirstLeadFromU0300) continue;
    // The run to normalise goes from the last character that starts afresh to the next one.
    size_t first = at;
    while (first > copied && !starts_afresh(text[first])) --first;
    size_t last = at;
    while (last < text.size() && !starts_afresh(text[last])) ++last;
    out += text.substr(copied, first - copied);
    append_nfc(text.substr(first, last - first), &scratch, &out);
    copied = last;
    at = last - 1;
  }
  return out += text.substr(copied);
}

std::string in_quotes(std::string_view text) { return "'" + shown(text) + "'"; }

}  // namespace pq
