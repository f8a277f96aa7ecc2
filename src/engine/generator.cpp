// The generator of generator.h.
#include "engine/generator.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/error.h"

namespace pq {
namespace {

class Stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace

Generator::Generator(StepRunner run, const RuntimeOptions& options, int64_t vocab)
    : run_(std::move(run)), options_(options), vocab_(vocab), logits_(static_cast<size_t>(vocab)) {}

GenerationResult Generator::generate(const GenerationRequest& request, Sampler& sampler) {
  const auto prompt_tokens = static_cast<int64_t>(request.prompt.size());
  if (prompt_tokens == 0) throw Error(ErrorKind::usage, "the prompt is empty; give at least one character");
  if (prompt_tokens > options_.context) {
    throw Error(ErrorKind::usage,
                fmt::format("the prompt has {} tokens but the context holds {}; shorten it or start with a larger -c",
                            prompt_tokens, options_.context));
  }
  // Until a step has succeeded the state is neither the old sequence nor the new one.
  std::vector<int32_t> held = std::exchange(held_, {});
  if (held.size() < request.prompt.size() && std::equal(held.begin(), held.end(), request.prompt.begin())) held_ = std::move(held);

  GenerationResult result;
  try {
    const Stopwatch prefill_time;
    result.reused_tokens = static_cast<int64_t>(held_.size());
    const auto stops = [&] { return request.should_stop && request.should_stop(); };
    bool stopped = stops();
    while (!stopped && held_.size() < request.prompt.size()) {
      const auto first = request.prompt.begin() + static_cast<ptrdiff_t>(held_.size());
      // Chunks end at multiples of the batch from the start of the sequence.
      const int64_t room = options_.batch - static_cast<int64_t>(held_.size()) % options_.batch;
      const int64_t count = std::min<int64_t>(room, request.prompt.end() - first);
      run({first, first + count}, request);
      stopped = stops();
    }
    result.prefill_tokens = static_cast<int64_t>(held_.size()) - result.reused_tokens;
    result.prefill_seconds = prefill_time.seconds();

    const Stopwatch decode_time;
    std::vector<int32_t> sequence = held_;
    for (;; stopped = stops()) {
      if (stopped) {
        result.reason = StopReason::interrupted;
        break;
      }
      if (request.max_tokens >= 0 && static_cast<int64_t>(result.tokens.size()) >= request.max_tokens) {
        result.reason = StopReason::max_tokens;
        break;
      }
      if (static_cast<int64_t>(sequence.size()) > static_cast<int64_t>(held_.size())) {
        if (static_cast<int64_t>(held_.size()) == options_.context) {
          result.reason = StopReason::context_full;
          break;
        }
        run({sequence.back()}, request);
        ++result.decode_tokens;
      }
      const int32_t token = sampler.sample(logits_.data(), sequence);
      if (std::find(request.stop_ids.begin(), request.stop_ids.end(), token) != request.stop_ids.end()) {
        result.reason = StopReason::stop_token;
        break;
      }
      result.tokens.push_back(token);
      sequence.push_back(token);
      if (request.on_token && !request.on_token(token)) {
        result.reason = StopReason::interrupted;
        break;
      }
    }
    result.decode_seconds = decode_time.seconds();
  } catch (...) {
    held_.clear();
    throw;
  }
  return result;
}

void Generator::run(const std::vector<int32_t>& tokens, const GenerationRequest& request) {
  const auto count = static_cast<int64_t>(tokens.size());
  const auto position = static_cast<int64_t>(held_.size());
  Step step;
  step.tokens = tokens;
  step.spans = {{.row = 0, .tokens = count, .position = position, .slot = 0}};
  for (int64_t row = request.on_logits ? 0 : count - 1; row < count; ++row) step.logit_rows.push_back(static_cast<int32_t>(row));
  run_(step, [&](int64_t row, const float* logits) {
    if (request.on_logits) request.on_logits(position + row, logits);
    if (row == count - 1) logits_.assign(logits, logits + vocab_);
  });
  held_.insert(held_.end(), tokens.begin(), tokens.end());
}

std::string stop_reason_text(StopReason reason, int64_t max_tokens, int64_t context) {
  switch (reason) {
    case StopReason::stop_token:
      return "the stop token";
    case StopReason::max_tokens:
      return fmt::format("the limit of {} tokens", max_tokens);
    case StopReason::context_full:
      return fmt::format("the context of {} tokens", context);
    case StopReason::interrupted:
      return "an interruption";
  }
  return "";
}

const char* stop_reason_name(StopReason reason) {
  switch (reason) {
    case StopReason::stop_token:
      return "stop";
    case StopReason::max_tokens:
      return "length";
    case StopReason::context_full:
      return "context";
    case StopReason::interrupted:
      return "interrupted";
  }
  return "";
}

}  // namespace pq
