// The rules of chat_template.h.
#include "text/chat_template.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "base/utf8.h"
#include "text/unicode.h"

namespace pq {
namespace {

constexpr std::string_view kThinkOpen = "<think>";
constexpr std::string_view kThinkClose = "</think>";
constexpr std::string_view kToolResponseOpen = "<tool_response>";
constexpr std::string_view kToolResponseClose = "</tool_response>";

constexpr std::string_view kThinkingTemplateSha256 = "a4aee8afcf2e0711942cf848899be66016f8d14a889ff9ede07bca099c28f715";
constexpr std::string_view kPlainTemplateSha256 = "273d8e0e683b885071fb17e08d71e5f2a5ddfb5309756181681de4f5a1822d80";

// str.isspace of Python, by which Jinja trims: White_Space and the four separators of ASCII.
bool is_python_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_space_unit(std::string_view unit) {
  const Utf8Unit found = next_utf8(unit);
  return found.kind == Utf8Unit::Kind::valid && static_cast<size_t>(found.bytes) == unit.size() &&
         is_python_space(decode_utf8(unit));
}

std::string_view trim(std::string_view text) {
  while (!text.empty()) {
    const size_t bytes = next_utf8(text).bytes;
    if (!is_space_unit(text.substr(0, bytes))) break;
    text.remove_prefix(bytes);
  }
  while (!text.empty()) {
    size_t start = text.size() - 1;
    while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
    if (!is_space_unit(text.substr(start))) break;
    text.remove_suffix(text.size() - start);
  }
  return text;
}

std::string_view without_leading_newlines(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
  return text;
}

bool is_tool_response(std::string_view content) {
  return content.starts_with(kToolResponseOpen) && content.ends_with(kToolResponseClose);
}

// Returns the index of the last user message that is a query.
size_t check_messages(const std::vector<ChatMessage>& messages) {
  if (messages.empty()) throw Error(ErrorKind::input, "the chat has no messages");
  std::optional<size_t> last_query;
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    const std::string where = "message " + std::to_string(i + 1) + " of " + std::to_string(messages.size());
    if (role == "tool") throw Error(ErrorKind::input, where + " has the role 'tool'; tool calls are not supported");
    if (role != "system" && role != "user" && role != "assistant")
      throw Error(ErrorKind::input, where + " has the role " + in_quotes(role) + "; roles are system, user and assistant");
    if (role == "system" && i > 0) throw Error(ErrorKind::input, where + " is a system message; only the first may be");
    if (role == "user" && !is_tool_response(trim(messages[i].content))) last_query = i;
  }
  if (!last_query) throw Error(ErrorKind::input, "the chat has no user message to answer");
  return *last_query;
}

class Prompt {
 public:
  void control(std::string_view text) { add(text, true); }
  void plain(std::string_view text) { add(text, false); }
  std::vector<Segment> take() { return std::move(segments_); }

 private:
  void add(std::string_view text, bool is_control) {
    if (text.empty()) return;
    if (segments_.empty() || segments_.back().is_control != is_control) segments_.push_back({"", is_control});
    segments_.back().text += text;
  }
  std::vector<Segment> segments_;
};

void add_assistant(const ChatMessage& message, bool keeps_reasoning, Prompt* prompt) {
  std::string_view content = trim(message.content);
  std::string_view reasoning;
  if (message.reasoning) {
    reasoning = *message.reasoning;
  } else if (const size_t first = content.find(kThinkClose); first != std::string_view::npos) {
    // The template takes the reasoning before the first closer and the answer after the last; text between them is dropped.
    reasoning = content.substr(0, first);
    if (const size_t open = reasoning.rfind(kThinkOpen); open != std::string_view::npos)
      reasoning.remove_prefix(open + kThinkOpen.size());
    content = without_leading_newlines(content.substr(content.rfind(kThinkClose) + kThinkClose.size()));
  }
  prompt->control("<|im_start|>assistant\n");
  if (keeps_reasoning) {
    prompt->control("<think>\n");
    prompt->plain(trim(reasoning));
    prompt->control("\n</think>\n\n");
  }
  prompt->plain(content);
  prompt->control("<|im_end|>\n");
}

}  // namespace

ChatFormat detect_chat_format(std::string_view template_text, const std::string& source) {
  const bool off_when_false = template_text.find("enable_thinking is false") != std::string_view::npos;
  const bool on_when_true = template_text.find("enable_thinking is true") != std::string_view::npos;
  if (off_when_false == on_when_true)
    throw Error(ErrorKind::input, source + (off_when_false ? " asks both" : " asks neither") +
                                      " whether enable_thinking is false or is true; it is no Qwen3.5 chat template");
  const std::string digest = sha256_hex(template_text.data(), static_cast<int64_t>(template_text.size()));
  return {.thinks_by_default = off_when_false, .is_published = digest == kThinkingTemplateSha256 || digest == kPlainTemplateSha256};
}

bool starts_in_reasoning(const ChatFormat& format, const ChatOptions& options) {
  return options.thinking.value_or(format.thinks_by_default);
}

std::vector<Segment> render_chat(const std::vector<ChatMessage>& messages, const ChatFormat& format, const ChatOptions& options) {
  const size_t last_query = check_messages(messages);
  Prompt prompt;
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    if (message.role == "assistant") {
      add_assistant(message, i > last_query, &prompt);
      continue;
    }
    prompt.control("<|im_start|>" + message.role + "\n");
    prompt.plain(trim(message.content));
    prompt.control("<|im_end|>\n");
  }
  if (options.add_generation_prompt) {
    prompt.control("<|im_start|>assistant\n");
    prompt.control(starts_in_reasoning(format, options) ? "<think>\n" : "<think>\n\n</think>\n\n");
  }
  return prompt.take();
}

std::string joined_text(const std::vector<Segment>& segments) {
  std::string text;
  for (const Segment& segment : segments) text += segment.text;
  return text;
}

SplitAnswer split_answer(std::string_view text, bool in_reasoning) {
  const std::string_view opened = trim(text);
  const bool opens_itself = opened.starts_with(kThinkOpen);
  if (!in_reasoning && !opens_itself) return {.reasoning = "", .answer = std::string(text)};
  if (opens_itself) text = opened.substr(kThinkOpen.size());
  const size_t close = text.find(kThinkClose);
  if (close == std::string_view::npos) return {.reasoning = std::string(trim(text)), .answer = "", .reasoning_is_complete = false};
  return {.reasoning = std::string(trim(text.substr(0, close))),
          .answer = std::string(without_leading_newlines(text.substr(close + kThinkClose.size())))};
}

}  // namespace pq
