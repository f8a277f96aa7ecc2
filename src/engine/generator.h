// One sequence of tokens: prefill in chunks, decode until something ends it, and what was held kept for the next prompt. Choosing
// tokens is left to sampler.h, text and chat format to the callers; how a step reaches the ranks to step_loop.h.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/sampler.h"
#include "engine/step_loop.h"
#include "model/partition.h"

namespace pq {

enum class StopReason { stop_token, max_tokens, context_full, interrupted };

struct GenerationRequest {
  std::vector<int32_t> prompt = {};    // at least one token
  int64_t max_tokens = -1;             // to generate; -1: until another reason; 0: prefill only
  std::vector<int32_t> stop_ids = {};  // end the generation and are not handed out
  // Called for each generated token; returning false ends the generation. May be empty.
  std::function<bool(int32_t)> on_token = {};
  // Asked before each step; true ends the generation as interrupted. May be empty.
  std::function<bool()> should_stop = {};
  // Called with the position and the logits of every token that goes through the model, in order. May be empty; when set, prefill
  // computes a row of logits for each prompt token.
  std::function<void(int64_t, const float*)> on_logits = {};
};

struct GenerationResult {
  std::vector<int32_t> tokens;  // without the stop token
  StopReason reason = StopReason::max_tokens;
  int64_t reused_tokens = 0;  // of the prompt, already held
  int64_t prefill_tokens = 0;
  double prefill_seconds = 0;
  int64_t decode_tokens = 0;  // steps of one token
  double decode_seconds = 0;  // with sampling
};

// On rank 0 only. Uses slot 0.
class Generator {
 public:
  // options and vocab (length of a row of logits): those of the model behind `run`.
  Generator(StepRunner run, const RuntimeOptions& options, int64_t vocab);

  // Runs the prompt and samples on. When the sequence held is a proper prefix of the prompt only the rest is run; any other prompt
  // starts from position 0, because a recurrent state cannot be rewound. An exception leaves nothing held.
  // Throws ErrorKind::usage when the prompt is empty or longer than the context (both numbers named).
  GenerationResult generate(const GenerationRequest& request, Sampler& sampler);

  // The tokens that the model's state stands for.
  const std::vector<int32_t>& held() const { return held_; }

 private:
  // Runs `tokens` at the end of the sequence held and keeps the logits of the last one.
  void run(const std::vector<int32_t>& tokens, const GenerationRequest& request);

  StepRunner run_;
  RuntimeOptions options_;
  int64_t vocab_;
  std::vector<int32_t> held_;
  std::vector<float> logits_;  // after held_.back()
};

// "the stop token", "the limit of N tokens", "the context of N tokens", "an interruption".
std::string stop_reason_text(StopReason reason, int64_t max_tokens, int64_t context);
// "stop", "length", "context", "interrupted": for machines.
const char* stop_reason_name(StopReason reason);

}  // namespace pq
