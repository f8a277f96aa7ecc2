// A chat on stdin and stdout: one line a turn, the history in the format of the model, commands that begin with a slash. Generation
// and output are left to text_run.h, the format to text/chat_template.h.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "app/text_run.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace pq {

struct ChatSettings {
  ChatFormat format;
  std::string system;            // empty: none
  std::optional<bool> thinking;  // empty: the default of the format
  bool interactive = false;      // a prompt is shown on stderr before each turn
};

// Reads DIRECTORY/chat_template.jinja; without the file, the published format with thinking.
ChatFormat load_chat_format(const std::string& directory);

class Chat {
 public:
  // References outlive the chat.
  Chat(const ChatSettings& settings, const Tokenizer& tokenizer, TextRun& run);

  // One turn: shows what the model says to `message` and adds both to the history. A message that does not fit the context is
  // refused with a line on stderr when interactive, else by the Error; the history stays as it was.
  void say(const std::string& message);

  // Turns from stdin until its end, /exit or a signal that asks for a stop. Empty lines are passed over.
  //   /reset  forgets the history    /think on|off  reasoning in later turns    /exit  ends
  void loop();

 private:
  bool command(const std::string& line);

  ChatSettings settings_;
  const Tokenizer& tokenizer_;
  TextRun& run_;
  std::vector<ChatMessage> messages_;
};

// The tokens of a chat with one message.
std::vector<int32_t> first_turn_tokens(const ChatSettings& settings, const Tokenizer& tokenizer, const std::string& message);

}  // namespace pq
