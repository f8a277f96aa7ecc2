// UTF-8 scanning by the table of well-formed sequences (Unicode 15, table 3-7).
#include "base/utf8.h"

namespace pq {
namespace {

bool is_print(char32_t c) {
  if (c < 0x20 || (c >= 0x7F && c < 0xA0)) return false;
  // Separators of lines and paragraphs, then marks, embeddings, overrides and isolates of direction.
  if (c == 0x2028 || c == 0x2029) return false;
  return c != 0x061C && c != 0x200E && c != 0x200F && !(c >= 0x202A && c <= 0x202E) && !(c >= 0x2066 && c <= 0x2069);
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

std::string printable(std::string_view text) { return shown(text, text.size()); }

std::string shown(std::string_view text, size_t limit) {
  std::string out;
  size_t characters = 0;
  for (size_t at = 0; at < text.size(); ++characters) {
    if (characters == limit) return out + "...";
    const Utf8Unit unit = next_utf8(text.substr(at));
    const std::string_view bytes = text.substr(at, static_cast<size_t>(unit.bytes));
    if (unit.kind == Utf8Unit::Kind::valid && is_print(decode_utf8(bytes)))
      out += bytes;
    else
      out += '?';
    at += bytes.size();
  }
  return out;
}

}  // namespace pq
