// UTF-8 scanning by the table of well-formed sequences (Unicode 15, table 3-7) and NFC on top of libutf8proc.
#include "text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "base/error.h"

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

Utf8Unit next_utf8(std::string_view text) {
  using Kind = Utf8Unit::Kind;
  const auto lead = static_cast<unsigned char>(text[0]);
  if (lead < 0x80) return {Kind::valid, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Kind::invalid, 1};
  const int length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte excludes overlong forms, surrogates and values above U+10FFFF.
  unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (int i = 1; i < length; ++i) {
    if (static_cast<size_t>(i) >= text.size()) return {Kind::incomplete, i};
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte < low || byte > high) return {Kind::invalid, i};
    low = 0x80;
    high = 0xBF;
  }
  return {Kind::valid, length};
}

char32_t decode_utf8(std::string_view unit) {
  const auto byte = [&](size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(unit[i])); };
  switch (unit.size()) {
    case 1:
      return byte(0);
    case 2:
      return (byte(0) & 0x1F) << 6 | (byte(1) & 0x3F);
    case 3:
      return (byte(0) & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    default:
      return (byte(0) & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
  }
}

void append_utf8(char32_t c, std::string* out) {
  const auto put = [out](char32_t byte) { out->push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6);
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Utf8Unit unit = next_utf8(text.substr(at));
    out += unit.kind == Utf8Unit::Kind::valid ? text.substr(at, unit.bytes) : kReplacementCharacter;
    at += unit.bytes;
  }
  return out;
}

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

std::string in_quotes(std::string_view text) {
  constexpr size_t kShownBytes = 40;
  std::string out = "'";
  for (size_t at = 0; at < text.size() && at < kShownBytes;) {
    const Utf8Unit unit = next_utf8(text.substr(at));
    const auto byte = static_cast<unsigned char>(text[at]);
    if (unit.kind != Utf8Unit::Kind::valid || byte < 0x20 || byte == 0x7F)
      out += '?';
    else
      out += text.substr(at, unit.bytes);
    at += unit.bytes;
  }
  return out += text.size() > kShownBytes ? "...'" : "'";
}

}  // namespace pq
