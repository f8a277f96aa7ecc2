// Perplexity of a text: windows run through a model in chunks, each token's negative log-likelihood from its row of logits, and the
// statistics of the result. Which windows is left to protocol.h, how a step reaches the ranks to the caller; other measures of the
// same rows (a file of logits, a divergence) hang on PerplexityOptions::on_row.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "engine/step_loop.h"
#include "eval/protocol.h"

namespace pq {

// One evaluated position. Valid during the call.
struct EvaluatedRow {
  int64_t window = 0;
  int64_t position = 0;           // in the window
  int32_t token = 0;              // at this position
  bool scored = false;            // the prediction of the next token counts
  double nll = 0;                 // of the next token, natural logarithm; NaN when not scored
  const float* logits = nullptr;  // [vocab]
};

struct PerplexityOptions {
  int64_t vocab = 0;  // columns of a row of logits; all of them take part in the softmax, padding rows of the vocabulary too, as in
                      // Hugging Face's loss
  int64_t batch = 0;  // tokens a step may hold
  bool all_rows = false;                            // hand every position of the windows to on_row, not just the scored ones
  std::function<void(const EvaluatedRow&)> on_row;  // may be empty
  std::function<void(int64_t)> progress;            // tokens evaluated so far; may be empty
};

// A mean and its standard error; the error is NaN where there are too few samples to have one.
struct MeanEstimate {
  double mean = 0;
  double standard_error = 0;
};

struct PerplexityResult {
  int64_t windows = 0;
  int64_t tokens_evaluated = 0;  // that went through the model
  std::vector<double> nll;       // [tokens scored], in the order of the windows
  MeanEstimate by_token;         // mean NLL; error as if tokens were independent
  double error_by_window = 0;    // error with windows as clusters: the honest one where tokens of a window depend on each other
  double perplexity = 0;         // exp(mean)
  double perplexity_error = 0;   // perplexity * by_token.standard_error (first order)
};

// -log softmax(logits)[target] with maximum and sum of exponentials in double. target in [0, vocab).
double negative_log_likelihood(const float* logits, int64_t vocab, int32_t target);

// Sample mean and sample standard deviation / sqrt(n).
MeanEstimate estimate_mean(const std::vector<double>& values);

// Mean of candidate[i] - base[i] and its error; the noise common to both cancels, so this separates models that their own errors do
// not. Throws ErrorKind::input when the lengths differ.
MeanEstimate paired_difference(const std::vector<double>& candidate, const std::vector<double>& base);

// Runs every window from position 0 of slot 0; memory does not grow with the logits. On rank 0 only.
// Throws ErrorKind::input naming the token and the vocabulary when an id lies outside it, ErrorKind::internal when a likelihood is
// not finite (window and position named).
PerplexityResult measure_perplexity(const std::vector<int32_t>& tokens, const std::vector<Window>& windows,
                                    const PerplexityOptions& options, const StepRunner& run);

}  // namespace pq
