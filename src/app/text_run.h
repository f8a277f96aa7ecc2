// Token streams as text on stdout: generates on rank 0, shows characters as soon as they are whole, keeps the numbers. Where
// prompts come from is left to pq_run.cpp and chat.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "app/model_loading.h"
#include "app/rank_memory.h"
#include "base/hash.h"
#include "engine/generator.h"
#include "text/tokenizer.h"

namespace pq {

struct TextRunOptions {
  int64_t max_tokens = -1;
  bool json = false;         // one object a generation instead of the text
  bool logits_hash = false;  // hash the logits of every position
};

class TextRun {
 public:
  // `memory` goes into the JSON objects. References outlive the run.
  TextRun(Generator& generator, const Tokenizer& tokenizer, Sampler& sampler, std::vector<int32_t> stop_ids,
          const TextRunOptions& options, const Model& model, std::vector<RankMemory> memory);

  // Generates from `prompt`, until a signal asks for a stop (base/signals.h), and writes the text and a newline, or the object, to
  // stdout. `opening` is shown first; it belongs to the prompt. Returns the generated text.
  std::string generate(const std::vector<int32_t>& prompt, const std::string& opening);

  // The sums over all generations so far, for stderr: "prefill 12 tokens 345.6 tok/s, decode ..., stopped at ...".
  std::string summary() const;
  // 16 hexadecimal digits over all logits so far; empty unless asked for.
  std::string hash_text() const;

 private:
  void write_json(const GenerationResult& result, const std::string& text) const;

  Generator& generator_;
  const Tokenizer& tokenizer_;
  Sampler& sampler_;
  const std::vector<int32_t> stop_ids_;
  const TextRunOptions options_;
  const Model& model_;
  const std::vector<RankMemory> memory_;
  Xxh3Stream hash_;
  GenerationResult total_;
};

}  // namespace pq
