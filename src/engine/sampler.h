// From logits to the next token. Steps, in the order of Hugging Face transformers (llama.cpp applies the temperature last):
// penalties, temperature, top-k, top-p, min-p, one uniform draw. Runs on rank 0 only; the model is left to the generator.
#pragma once

#include <cstdint>
#include <vector>

#include "base/random.h"

namespace pq {

// The defaults change nothing: greedy, no filter, no penalty.
struct SamplingOptions {
  double temperature = 0;        // >= 0; 0 takes the most likely token and ignores the filters
  int64_t top_k = 0;             // >= 0; the k most likely stay; 0: all
  double top_p = 1;              // (0, 1]; the fewest most likely tokens whose probabilities reach top_p stay
  double min_p = 0;              // [0, 1); tokens less likely than min_p times the most likely one go
  double repeat_penalty = 1;     // > 0; logits of tokens in the window: divided when positive, else multiplied (arXiv 1909.05858)
  double presence_penalty = 0;   // subtracted once from the logit of a token in the window
  double frequency_penalty = 0;  // subtracted for each time it occurs there
  int64_t penalty_last_n = 64;   // the window: this many last tokens of the sequence, prompt included; -1: all of them
  uint64_t seed = 0;
};

// Throws ErrorKind::usage naming the flag and its value when an option is out of its range.
void check(const SamplingOptions& options);

struct Candidate {
  int32_t id;
  double probability;
};

// Ties go to the lowest id. The n-th draw depends on the seed, n and the distribution only.
class Sampler {
 public:
  // `vocab`: ids at or above it (padding rows of the head, without a token) are never chosen.
  Sampler(const SamplingOptions& options, int64_t vocab);

  // The next token. logits [at least vocab]; `sequence` is the text so far, for the penalties. Uses one draw unless greedy.
  // Throws ErrorKind::internal when a logit is NaN or +infinity, or all are -infinity.
  int32_t sample(const float* logits, const std::vector<int32_t>& sequence);

  // What sample draws from when the temperature is not 0: tokens that remain, probabilities adding up to 1; most likely first when
  // top-k or top-p is in use, else by id.
  std::vector<Candidate> distribution(const float* logits, const std::vector<int32_t>& sequence);

 private:
  void penalise(const float* logits, const std::vector<int32_t>& sequence);
  void keep_top_k();
  void keep_top_p();

  SamplingOptions options_;
  int64_t vocab_;
  Random random_;
  std::vector<float> logits_;          // [vocab], after penalties
  std::vector<Candidate> candidates_;  // probability holds exp((logit - greatest) / temperature) until the end
};

}  // namespace pq
