// The sampler of sampler.h.
#include "engine/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "base/error.h"

namespace pq {
namespace {

void check_range(bool ok, const char* flag, double value, const char* range) {
  if (!ok) throw Error(ErrorKind::usage, fmt::format("{} is {}, but must be {}", flag, value, range));
}

bool more_likely(const Candidate& a, const Candidate& b) {
  return a.probability != b.probability ? a.probability > b.probability : a.id < b.id;
}

double total(const std::vector<Candidate>& candidates) {
  double sum = 0;
  for (const Candidate& candidate : candidates) sum += candidate.probability;
  return sum;
}

}  // namespace

void check(const SamplingOptions& options) {
  check_range(options.temperature >= 0 && std::isfinite(options.temperature), "--temp", options.temperature, "0 or more");
  check_range(options.top_k >= 0, "--top-k", static_cast<double>(options.top_k), "0 (all) or more");
  check_range(options.top_p > 0 && options.top_p <= 1, "--top-p", options.top_p, "above 0 and at most 1");
  check_range(options.min_p >= 0 && options.min_p < 1, "--min-p", options.min_p, "0 or more and below 1");
  check_range(options.repeat_penalty > 0 && std::isfinite(options.repeat_penalty), "--repeat-penalty", options.repeat_penalty,
              "above 0 (1 is none)");
  check_range(std::isfinite(options.presence_penalty), "--presence-penalty", options.presence_penalty, "finite");
  check_range(std::isfinite(options.frequency_penalty), "--frequency-penalty", options.frequency_penalty, "finite");
  check_range(options.penalty_last_n >= -1, "--repeat-last-n", static_cast<double>(options.penalty_last_n), "-1 (all) or more");
}

Sampler::Sampler(const SamplingOptions& options, int64_t vocab) : options_(options), vocab_(vocab), random_(options.seed) {
  check(options);
  require(vocab > 0, "the sampler needs a vocabulary");
}

int32_t Sampler::sample(const float* logits, const std::vector<int32_t>& sequence) {
  if (options_.temperature == 0) {
    penalise(logits, sequence);
    return static_cast<int32_t>(std::max_element(logits_.begin(), logits_.end()) - logits_.begin());
  }
  const std::vector<Candidate> candidates = distribution(logits, sequence);
  const double target = random_.uniform();
  double reached = 0;
  int32_t chosen = candidates.front().id;
  for (const Candidate& candidate : candidates) {
    if (candidate.probability == 0) continue;
    chosen = candidate.id;
    reached += candidate.probability;
    if (reached > target) break;
  }
  return chosen;
}

std::vector<Candidate> Sampler::distribution(const float* logits, const std::vector<int32_t>& sequence) {
  penalise(logits, sequence);
  const double greatest = *std::max_element(logits_.begin(), logits_.end());
  const double temperature = options_.temperature > 0 ? options_.temperature : 1;
  candidates_.clear();
  for (int64_t id = 0; id < vocab_; ++id) {
    const double weight = std::exp((static_cast<double>(logits_[static_cast<size_t>(id)]) - greatest) / temperature);
    candidates_.push_back({static_cast<int32_t>(id), weight});
  }
  keep_top_k();
  keep_top_p();
  if (options_.min_p > 0) {
    // The most likely token has weight 1.
    std::erase_if(candidates_, [&](const Candidate& candidate) { return candidate.probability < options_.min_p; });
  }
  const double sum = total(candidates_);
  for (Candidate& candidate : candidates_) candidate.probability /= sum;
  return candidates_;
}

void Sampler::penalise(const float* logits, const std::vector<int32_t>& sequence) {
  logits_.assign(logits, logits + vocab_);
  bool any_finite = false;
  for (int64_t id = 0; id < vocab_; ++id) {
    const float logit = logits_[static_cast<size_t>(id)];
    if (std::isnan(logit) || logit == INFINITY) {
      throw Error(ErrorKind::internal, fmt::format("the logit of token {} is {}: the weights or a kernel are broken", id, logit));
    }
    any_finite = any_finite || logit > -INFINITY;
  }
  require(any_finite, "every logit is -infinity");
  if (options_.repeat_penalty == 1 && options_.presence_penalty == 0 && options_.frequency_penalty == 0) return;
  const auto length = static_cast<int64_t>(sequence.size());
  const int64_t window = options_.penalty_last_n < 0 ? length : std::min(options_.penalty_last_n, length);
  std::unordered_map<int32_t, int64_t> counts;
  for (int64_t i = length - window; i < length; ++i) ++counts[sequence[static_cast<size_t>(i)]];
  for (const auto& [id, count] : counts) {
    if (id < 0 || id >= vocab_) continue;
    float& logit = logits_[static_cast<size_t>(id)];
    const double repeated = logit > 0 ? logit / options_.repeat_penalty : logit * options_.repeat_penalty;
    logit = static_cast<float>(repeated - options_.presence_penalty - static_cast<double>(count) * options_.frequency_penalty);
  }
}

void Sampler::keep_top_k() {
  const auto k = static_cast<size_t>(options_.top_k);
  if (k == 0 || k >= candidates_.size()) return;
  std::partial_sort(candidates_.begin(), candidates_.begin() + options_.top_k, candidates_.end(), more_likely);
  candidates_.resize(k);
}

// Sorts only as many of the most likely as it takes to reach top_p of what top-k has left.
void Sampler::keep_top_p() {
  if (options_.top_p >= 1) return;
  const double target = options_.top_p * total(candidates_);
  double reached = 0;
  size_t sorted = 0;
  for (size_t kept = 0; kept < candidates_.size();) {
    if (kept == sorted) {
      sorted = std::min(candidates_.size(), std::max<size_t>(64, 4 * sorted));
      std::partial_sort(candidates_.begin() + static_cast<ptrdiff_t>(kept), candidates_.begin() + static_cast<ptrdiff_t>(sorted),
                        candidates_.end(), more_likely);
    }
    reached += candidates_[kept++].probability;
    if (reached >= target) {
      candidates_.resize(kept);
      return;
    }
  }
}

}  // namespace pq
