// What a perplexity run says of itself: the result with everything that decides whether it may be compared with another one, as
// text, as JSON, and as a file of likelihoods that a later run is paired with.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "eval/perplexity.h"

namespace pq {

struct PerplexityReport {
  std::string protocol;
  std::string text;         // path
  int64_t text_bytes = 0;   // that the protocol uses
  std::string text_sha256;  // of those bytes
  int64_t text_tokens = 0;
  std::string tokens_sha256;   // of the ids as little-endian int32
  std::string model;           // WeightSource::description
  std::string recipe;          // Recipe::text, of the store or of the quantisation while loading
  double bits_per_weight = 0;  // of the large matrices
  int64_t model_bytes = 0;     // of all weights as they are held, each counted once
  std::string backend;         // Backend::name
  std::string activations;
  std::string kv_type;
  int64_t ranks = 1;
  double seconds = 0;  // of the evaluation, without loading
  PerplexityResult result;
  std::optional<MeanEstimate> difference;  // NLL of this run minus that of `base`, paired
  std::string base;                        // model of the file it was compared with
};

// SHA-256 of token ids as little-endian int32.
std::string tokens_sha256(const std::vector<int32_t>& tokens);

// Lines for a terminal, and one JSON object; both end with a newline. NaN errors read "n/a" and null.
std::string report_text(const PerplexityReport& report);
std::string report_json(const PerplexityReport& report);

// The likelihoods of a run.
struct NllFile {
  std::string protocol;
  std::string tokens_sha256;
  std::string model;
  std::vector<double> nll;  // [tokens scored]
};

// JSON that gives back the same doubles; `path` is either the old or the new content.
void write_nll_file(const std::string& path, const NllFile& file);
// Throws ErrorKind::input naming path and defect.
NllFile read_nll_file(const std::string& path);

// Throws ErrorKind::input naming both values when a run by `protocol` over the ids of `tokens_sha256` cannot be paired with `base`.
void check_pairable(const NllFile& base, const std::string& protocol, const std::string& tokens_sha256);

}  // namespace pq
