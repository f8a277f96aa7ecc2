// The chat format of the Qwen3.5 family: messages to prompt text, generated text to reasoning and answer. The format is fixed
// and written out here; templates are not interpreted, only asked which default they carry. Tools are refused. Turning the
// text into ids is left to tokenizer.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace pq {

// role: "system" (first message only), "user" or "assistant".
// reasoning: of assistant messages; when absent it is taken out of `content` at "</think>".
struct ChatMessage {
  std::string role;
  std::string content;
  std::optional<std::string> reasoning = std::nullopt;
};

// What a checkpoint's template says about the format.
struct ChatFormat {
  bool thinks_by_default = true;
  // The template is one of the two published ones, byte for byte; otherwise its own wording is not honoured, only its default.
  bool is_published = false;
};

// add_generation_prompt: end with the opening of an assistant turn.
// thinking: overrides the default of the format.
struct ChatOptions {
  bool add_generation_prompt = true;
  std::optional<bool> thinking = std::nullopt;
};

struct SplitAnswer {
  std::string reasoning;
  std::string answer;
  bool reasoning_is_complete = true;  // false when the text ends before "</think>"
};

// Reads the text of a chat_template.jinja: thinking unless "enable_thinking is false" (27B, 9B, 4B), or not unless
// "enable_thinking is true" (2B, 0.8B). ErrorKind::input when it holds neither or both; `source` names the file.
ChatFormat detect_chat_format(std::string_view template_text, const std::string& source);

// Whether a generation prompt of these options leaves the model inside its reasoning.
bool starts_in_reasoning(const ChatFormat& format, const ChatOptions& options);

// The prompt in pieces: what the format says is control text, what the messages say is plain, so that a user's "<|im_end|>"
// stays text when the pieces go to Tokenizer::encode. Bodies lose surrounding white space; assistant messages before the last
// user message lose their reasoning, later ones always have a think block.
// ErrorKind::input for an unknown role, "tool", a system message that is not first, no messages, or no user message; a user
// message wrapped in <tool_response> does not count.
std::vector<Segment> render_chat(const std::vector<ChatMessage>& messages, const ChatFormat& format,
                                 const ChatOptions& options = {});

// The texts of the segments, joined.
std::string joined_text(const std::vector<Segment>& segments);

// Cuts a generated turn at the first "</think>": what precedes it is reasoning without an opening "<think>" and surrounding
// white space, what follows is the answer without leading newlines. in_reasoning says how the prompt ended; when it is
// false, text that does not open with "<think>" is all answer.
SplitAnswer split_answer(std::string_view text, bool in_reasoning);

}  // namespace pq
