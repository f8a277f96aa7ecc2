// The table of protocols and the arithmetic of windows.
#include "eval/protocol.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace pq {
namespace {

constexpr int64_t kPolarQuantCharacters = 150000;
constexpr int64_t kPolarQuantWindows = 30;

std::string joined_names() {
  std::string text;
  for (const std::string& name : protocol_names()) text += (text.empty() ? "" : ", ") + name;
  return text;
}

[[noreturn]] void refuse_window(const std::string& name, int64_t window, const char* condition) {
  throw Error(ErrorKind::usage,
              fmt::format("protocol {} cannot have windows of {} tokens: the length must be {}", name, window, condition));
}

}  // namespace

const std::vector<std::string>& protocol_names() {
  static const std::vector<std::string> names = {"gptq-2048", "llamacpp-512", "llamacpp-4096", "hf-stride-512", "polarquant"};
  return names;
}

Protocol make_protocol(const std::string& name, int64_t window, int64_t max_windows) {
  if (window < 0 || max_windows < 0)
    throw Error(ErrorKind::usage, fmt::format("protocol {}: window length {} and number of windows {} cannot be negative", name,
                                              window, max_windows));
  Protocol protocol;
  int64_t own_window = 2048;
  int64_t own_windows = 0;
  if (name == "gptq-2048") {
    protocol.window = window > 0 ? window : own_window;
    if (protocol.window < 2) refuse_window(name, window, "at least 2");
    protocol.stride = protocol.window;
  } else if (name == "llamacpp-512" || name == "llamacpp-4096") {
    own_window = name == "llamacpp-512" ? 512 : 4096;
    protocol.window = window > 0 ? window : own_window;
    if (protocol.window < 4) refuse_window(name, window, "at least 4");
    protocol.stride = protocol.window;
    protocol.first_scored = protocol.window / 2 + 1;
  } else if (name == "hf-stride-512") {
    protocol.window = window > 0 ? window : own_window;
    protocol.stride = 512;
    if (protocol.window <= protocol.stride) refuse_window(name, window, "above its stride of 512");
    protocol.rolling = true;
  } else if (name == "polarquant") {
    protocol.window = window > 0 ? window : own_window;
    if (protocol.window < 4 || protocol.window % 4 != 0) refuse_window(name, window, "a multiple of 4");
    own_windows = kPolarQuantWindows;
    protocol.stride = protocol.window / 4;
    protocol.first_scored = protocol.window - protocol.stride;
    protocol.tokens_after = 1;
    protocol.max_characters = kPolarQuantCharacters;
  } else {
    throw Error(ErrorKind::usage, fmt::format("unknown protocol '{}'; there are {}", name, joined_names()));
  }
  protocol.max_windows = max_windows > 0 ? max_windows : own_windows;

  std::string overrides;
  if (protocol.window != own_window) overrides = fmt::format("window {}", protocol.window);
  if (protocol.max_windows != own_windows)
    overrides += fmt::format("{}at most {} windows", overrides.empty() ? "" : ", ", protocol.max_windows);
  protocol.name = overrides.empty() ? name : fmt::format("{} ({})", name, overrides);
  return protocol;
}

std::string_view protocol_text(const Protocol& protocol, std::string_view text) {
  if (protocol.max_characters == 0) return text;
  int64_t characters = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool continuation = (static_cast<unsigned char>(text[i]) & 0xc0u) == 0x80u;
    if (!continuation && ++characters > protocol.max_characters) return text.substr(0, i);
  }
  return text;
}

std::vector<Window> make_windows(const Protocol& protocol, int64_t tokens) {
  std::vector<Window> windows;
  const auto full = [&protocol](size_t count) {
    return protocol.max_windows > 0 && static_cast<int64_t>(count) >= protocol.max_windows;
  };
  if (protocol.rolling) {
    int64_t scored_end = 1;
    for (int64_t first = 0; scored_end < tokens && !full(windows.size()); first += protocol.stride) {
      const int64_t end = std::min(first + protocol.window, tokens);
      windows.push_back({first, end - first, std::max<int64_t>(1, scored_end - first)});
      scored_end = end;
    }
    if (windows.empty())
      throw Error(ErrorKind::input, fmt::format("the text has {} tokens, {} needs at least 2", tokens, protocol.name));
    return windows;
  }
  for (int64_t first = 0; first + protocol.window + protocol.tokens_after <= tokens && !full(windows.size());
       first += protocol.stride)
    windows.push_back({first, protocol.window, protocol.first_scored});
  if (windows.empty())
    throw Error(ErrorKind::input,
                fmt::format("the text has {} tokens, {} needs at least {}; give a longer text or a shorter window", tokens,
                            protocol.name, protocol.window + protocol.tokens_after));
  return windows;
}

}  // namespace pq
