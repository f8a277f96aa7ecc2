// Windows to steps, rows of logits to statistics.
#include "eval/perplexity.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace pq {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Error of the mean of all tokens when windows, not tokens, are the independent samples (ratio estimator: windows may differ in
// size).
double clustered_error(const std::vector<double>& nll, const std::vector<Window>& windows, double mean) {
  if (windows.size() < 2) return kNaN;
  double squares = 0;
  size_t at = 0;
  for (const Window& window : windows) {
    double deviation = 0;
    for (int64_t i = 0; i < window.scored(); ++i) deviation += nll[at++] - mean;
    squares += deviation * deviation;
  }
  const double count = static_cast<double>(windows.size());
  return std::sqrt(squares * count / (count - 1)) / static_cast<double>(nll.size());
}

}  // namespace

double negative_log_likelihood(const float* logits, int64_t vocab, int32_t target) {
  const double largest = *std::max_element(logits, logits + vocab);
  double sum = 0;
  for (int64_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(logits[i]) - largest);
  // cppcheck-suppress invalidFunctionArg ; the largest logit alone makes the sum 1
  return std::log(sum) + largest - static_cast<double>(logits[target]);
}

MeanEstimate estimate_mean(const std::vector<double>& values) {
  MeanEstimate estimate{kNaN, kNaN};
  if (values.empty()) return estimate;
  const double count = static_cast<double>(values.size());
  double sum = 0;
  for (const double value : values) sum += value;
  estimate.mean = sum / count;
  if (values.size() < 2) return estimate;
  double squares = 0;
  for (const double value : values) squares += (value - estimate.mean) * (value - estimate.mean);
  estimate.standard_error = std::sqrt(squares / (count - 1) / count);
  return estimate;
}

MeanEstimate paired_difference(const std::vector<double>& candidate, const std::vector<double>& base) {
  if (candidate.size() != base.size())
    throw Error(ErrorKind::input, fmt::format("cannot pair {} scored tokens with {}: use the same text, protocol and tokenizer",
                                              candidate.size(), base.size()));
  std::vector<double> difference(candidate.size());
  for (size_t i = 0; i < candidate.size(); ++i) difference[i] = candidate[i] - base[i];
  return estimate_mean(difference);
}

PerplexityResult measure_perplexity(const std::vector<int32_t>& tokens, const std::vector<Window>& windows,
                                    const PerplexityOptions& options, const StepRunner& run) {
  require(options.vocab > 0 && options.batch > 0, "perplexity needs a vocabulary and a batch");
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= options.vocab)
      throw Error(ErrorKind::input,
                  fmt::format("token {} of the text has id {}, the model's vocabulary has {} rows; the tokenizer is not "
                              "this model's",
                              i, tokens[i], options.vocab));
  }
  PerplexityResult result;
  for (size_t w = 0; w < windows.size(); ++w) {
    const Window& window = windows[w];
    require(window.first_scored >= 1 && window.scored() >= 1 && window.first_token >= 0 &&
                window.first_token + window.length <= static_cast<int64_t>(tokens.size()),
            "perplexity window outside the text");
    const int32_t* ids = tokens.data() + window.first_token;
    // The last token of a window is only a target: nothing inside the window reads its logits.
    const int64_t positions = options.all_rows ? window.length : window.length - 1;
    for (int64_t start = 0; start < positions; start += options.batch) {
      const int64_t count = std::min(options.batch, positions - start);
      Step step;
      step.tokens.assign(ids + start, ids + start + count);
      step.spans.push_back({0, count, start, 0});
      for (int64_t row = 0; row < count; ++row)
        if (options.all_rows || start + row + 1 >= window.first_scored) step.logit_rows.push_back(static_cast<int32_t>(row));
      size_t next = 0;
      run(step, [&](int64_t, const float* logits) {
        require(next < step.logit_rows.size(), "more rows of logits than asked for");
        EvaluatedRow row;
        row.window = static_cast<int64_t>(w);
        row.position = start + step.logit_rows[next++];
        row.token = ids[row.position];
        row.scored = row.position + 1 >= window.first_scored && row.position + 1 < window.length;
        row.nll = kNaN;
        row.logits = logits;
        if (row.scored) {
          row.nll = negative_log_likelihood(logits, options.vocab, ids[row.position + 1]);
          if (!std::isfinite(row.nll))
            throw Error(ErrorKind::internal,
                        fmt::format("the likelihood at position {} of window {} is not finite", row.position, w));
          result.nll.push_back(row.nll);
        }
        if (options.on_row) options.on_row(row);
      });
      require(next == step.logit_rows.size(), "fewer rows of logits than asked for");
      result.tokens_evaluated += count;
      if (options.progress) options.progress(result.tokens_evaluated);
    }
  }
  result.windows = static_cast<int64_t>(windows.size());
  result.by_token = estimate_mean(result.nll);
  result.error_by_window = clustered_error(result.nll, windows, result.by_token.mean);
  result.perplexity = std::exp(result.by_token.mean);
  result.perplexity_error = result.perplexity * result.by_token.standard_error;
  return result;
}

}  // namespace pq
