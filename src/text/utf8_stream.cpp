// Implementation of utf8_stream.h.
#include "text/utf8_stream.h"

#include "base/utf8.h"

namespace pq {

std::string Utf8Stream::push(std::string_view bytes) {
  held_ += bytes;
  std::string out;
  size_t at = 0;
  while (at < held_.size()) {
    const std::string_view rest = std::string_view(held_).substr(at);
    const Utf8Unit unit = next_utf8(rest);
    if (unit.kind == Utf8Unit::Kind::incomplete) break;
    out += unit.kind == Utf8Unit::Kind::valid ? rest.substr(0, unit.bytes) : kReplacementCharacter;
    at += unit.bytes;
  }
  held_.erase(0, at);
  return out;
}

std::string Utf8Stream::finish() {
  std::string out(held_.empty() ? std::string_view() : kReplacementCharacter);
  held_.clear();
  return out;
}

}  // namespace pq
