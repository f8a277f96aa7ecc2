// The chat of chat.h.
#include "app/chat.h"

#include <poll.h>
#include <unistd.h>

#include <cstdio>
#include <iostream>

#include "base/activity.h"
#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/signals.h"

namespace pq {
namespace {

constexpr const char* kCommands = "/reset forgets the chat, /think on|off switches reasoning, /exit ends";

std::vector<ChatMessage> opening_messages(const ChatSettings& settings) {
  std::vector<ChatMessage> messages;
  if (!settings.system.empty()) messages.push_back({.role = "system", .content = settings.system});
  return messages;
}

// Until there is something to read, or its end; false when a stop is asked for, which may be of another rank alone.
bool input_or_stop() {
  constexpr int kLook = 250;  // milliseconds
  pollfd input{STDIN_FILENO, POLLIN, 0};
  while (stop_signal() == 0) {
    if (::poll(&input, 1, kLook) > 0) return true;
  }
  return false;
}

}  // namespace

ChatFormat load_chat_format(const std::string& directory) {
  const std::string path = directory + "/chat_template.jinja";
  if (!path_exists(path)) return {};
  return detect_chat_format(read_text_file(path, kMaxTemplateBytes), path);
}

std::vector<int32_t> first_turn_tokens(const ChatSettings& settings, const Tokenizer& tokenizer, const std::string& message) {
  std::vector<ChatMessage> messages = opening_messages(settings);
  messages.push_back({.role = "user", .content = message});
  return tokenizer.encode(render_chat(messages, settings.format, {.thinking = settings.thinking}));
}

Chat::Chat(const ChatSettings& settings, const Tokenizer& tokenizer, TextRun& run)
    : settings_(settings), tokenizer_(tokenizer), run_(run), messages_(opening_messages(settings)) {}

void Chat::say(const std::string& message) {
  const ChatOptions options{.thinking = settings_.thinking};
  const bool reasons = starts_in_reasoning(settings_.format, options);
  messages_.push_back({.role = "user", .content = message});
  std::string text;
  const StopModeScope mode(settings_.interactive ? StopMode::answer : StopMode::finish);
  try {
    text = run_.generate(tokenizer_.encode(render_chat(messages_, settings_.format, options)), reasons ? "<think>\n" : "");
  } catch (const Error& error) {
    messages_.pop_back();
    if (!settings_.interactive || error.kind() != ErrorKind::usage) throw;
    log_line(error.what());
    return;
  }
  const SplitAnswer split = split_answer(text, reasons);
  messages_.push_back({.role = "assistant", .content = split.answer, .reasoning = split.reasoning});
}

void Chat::loop() {
  // Ctrl-C between an answer and the prompt means one of the two.
  const StopModeScope outer(settings_.interactive ? StopMode::prompt : StopMode::at_once);
  if (settings_.interactive) log_line(kCommands);
  // What a buffer held back, input_or_stop() would not see.
  std::setvbuf(stdin, nullptr, _IONBF, 0);
  for (std::string line;;) {
    if (settings_.interactive) std::fputs("> ", stderr);
    {
      const IdleScope for_a_message;
      const StopModeScope mode(settings_.interactive ? StopMode::prompt : StopMode::at_once);
      if (!input_or_stop()) return;
      if (!read_line(std::cin, "a line of standard input", kMaxTextBytes, &line)) break;
    }
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    if (line == "/exit") return;
    if (!command(line)) say(line);
    if (stop_signal() != 0) return;
  }
  if (settings_.interactive) std::fputs("\n", stderr);
}

bool Chat::command(const std::string& line) {
  if (line == "/reset") {
    messages_ = opening_messages(settings_);
  } else if (line == "/think on" || line == "/think off") {
    settings_.thinking = line == "/think on";
  } else if (line == "/think" || line == "/help") {
    log_line(kCommands);
  } else {
    return false;
  }
  return true;
}

}  // namespace pq
