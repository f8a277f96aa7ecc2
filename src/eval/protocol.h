// Perplexity protocols by name: which windows of a text are evaluated and which of their tokens count. A perplexity means something
// only with its protocol, so the printed name carries every departure from it. Running the model is left to perplexity.h.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pq {

// Tokens [first_token, first_token + length) of the text, evaluated as one sequence from position 0. Token i of the window counts
// for i in [first_scored, length); it is predicted by the logits of token i - 1, so first_scored >= 1.
struct Window {
  int64_t first_token = 0;
  int64_t length = 0;
  int64_t first_scored = 1;

  int64_t scored() const { return length - first_scored; }
};

// Sources, by name:
//   gptq-2048      windows of 2048 without overlap, 2047 tokens scored in each, the remainder dropped (GPTQ, AWQ, QuIP papers);
//   llamacpp-512   windows of 512 without overlap, tokens 257..511 scored (predictors 256..510), the remainder dropped
//                  (llama-perplexity; no first token is replaced, because Qwen adds no BOS);
//   llamacpp-4096  the same with 4096;
//   hf-stride-512  windows of 2048 that start every 512 tokens; every token but the first is scored once, with at least 1536 tokens
//                  before it after the first window; the last window may be short (Hugging Face's guide to perplexity);
//   polarquant     the method's own (its author's notebook): text cut at 150,000 characters, windows of 2048 that start every 512
//                  tokens, the last 512 tokens scored, at most 30 windows, a window only where at least one token follows it.
struct Protocol {
  std::string name;  // as asked for, with overrides: "gptq-2048 (window 512, at most 8 windows)"
  int64_t window = 0;
  int64_t stride = 0;          // distance between the starts of windows
  int64_t first_scored = 1;    // in a window; rolling windows have their own
  bool rolling = false;        // the first window counts from its second token; the last window may be short
  int64_t tokens_after = 0;    // that must follow a window
  int64_t max_windows = 0;     // 0: as many as fit
  int64_t max_characters = 0;  // code points of the text that are used; 0: all
};

// The names above, in that order.
const std::vector<std::string>& protocol_names();

// window 0 and max_windows 0 mean the protocol's own. Another window length keeps the protocol's proportions: llamacpp scores the
// second half, polarquant the last quarter with starts every quarter; hf-stride-512 keeps its stride. Throws ErrorKind::usage for
// an unknown name or a window the protocol cannot have.
Protocol make_protocol(const std::string& name, int64_t window, int64_t max_windows);

// The part of `text` (UTF-8) that the protocol uses; never cuts a character.
std::string_view protocol_text(const Protocol& protocol, std::string_view text);

// Windows of a text of `tokens` tokens, in order. Throws ErrorKind::input with both counts when there is not even one.
std::vector<Window> make_windows(const Protocol& protocol, int64_t tokens);

}  // namespace pq
