// The text run of text_run.h.
#include "app/text_run.h"

#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/activity.h"
#include "base/signals.h"
#include "text/utf8_stream.h"

namespace pq {
namespace {

double rate(int64_t count, double seconds) { return seconds > 0 ? static_cast<double>(count) / seconds : 0; }

}  // namespace

TextRun::TextRun(Generator& generator, const Tokenizer& tokenizer, Sampler& sampler, std::vector<int32_t> stop_ids,
                 const TextRunOptions& options, const Model& model, std::vector<RankMemory> memory)
    : generator_(generator),
      tokenizer_(tokenizer),
      sampler_(sampler),
      stop_ids_(std::move(stop_ids)),
      options_(options),
      model_(model),
      memory_(std::move(memory)) {}

std::string TextRun::generate(const std::vector<int32_t>& prompt, const std::string& opening) {
  Utf8Stream stream;
  std::string text;
  const auto show = [&](const std::string& piece) {
    if (options_.json || piece.empty()) return;
    const IdleScope for_the_reader;
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
  };
  GenerationRequest request{.prompt = prompt, .max_tokens = options_.max_tokens, .stop_ids = stop_ids_};
  request.on_token = [&](int32_t id) {
    if (tokenizer_.is_special(id)) return true;
    const std::string piece = stream.push(tokenizer_.token_bytes(id));
    text += piece;
    show(piece);
    return true;
  };
  take_interrupt();  // one that came too late for the turn before
  request.should_stop = [] { return stop_signal() != 0 || take_interrupt(); };
  if (options_.logits_hash) {
    request.on_logits = [&](int64_t, const float* logits) {
      hash_.update(logits, static_cast<int64_t>(sizeof(float)) * model_.config.vocab);
    };
  }
  show(opening);
  const GenerationResult result = generator_.generate(request, sampler_);
  const std::string tail = stream.finish();
  text += tail;
  show(tail + "\n");
  if (options_.json) write_json(result, text);

  total_.reason = result.reason;
  total_.reused_tokens += result.reused_tokens;
  total_.prefill_tokens += result.prefill_tokens;
  total_.prefill_seconds += result.prefill_seconds;
  total_.decode_tokens += result.decode_tokens;
  total_.decode_seconds += result.decode_seconds;
  return text;
}

std::string TextRun::summary() const {
  const std::string reused = total_.reused_tokens > 0 ? fmt::format(" ({} more were held)", total_.reused_tokens) : "";
  return fmt::format("prefill {} tokens{} {:.1f} tok/s, decode {} tokens {:.1f} tok/s, stopped at {}", total_.prefill_tokens,
                     reused, rate(total_.prefill_tokens, total_.prefill_seconds), total_.decode_tokens,
                     rate(total_.decode_tokens, total_.decode_seconds),
                     stop_reason_text(total_.reason, options_.max_tokens, model_.runtime.context));
}

std::string TextRun::hash_text() const { return options_.logits_hash ? hex64(hash_.digest()) : ""; }

void TextRun::write_json(const GenerationResult& result, const std::string& text) const {
  nlohmann::ordered_json json;
  json["text"] = text;
  json["tokens"] = result.tokens;
  json["stop_reason"] = stop_reason_name(result.reason);
  json["prefill"] = {{"tokens", result.prefill_tokens},
                     {"reused_tokens", result.reused_tokens},
                     {"seconds", result.prefill_seconds},
                     {"tokens_per_second", rate(result.prefill_tokens, result.prefill_seconds)}};
  json["decode"] = {{"tokens", result.decode_tokens},
                    {"seconds", result.decode_seconds},
                    {"tokens_per_second", rate(result.decode_tokens, result.decode_seconds)}};
  if (options_.logits_hash) json["logits_hash"] = hash_text();
  json["ranks"] = memory_.size();
  json["load_seconds"] = model_.load_seconds;
  json["memory"] = nlohmann::ordered_json::array();
  for (const RankMemory& rank : memory_) {
    json["memory"].push_back({{"planned_bytes", rank.planned_bytes},
                              {"weight_bytes", rank.weight_bytes},
                              {"allocated_bytes", rank.allocated_bytes},
                              {"resident_bytes", rank.resident_bytes}});
    if (rank.device_bytes == 0) continue;
    json["memory"].back()["device_bytes"] = rank.device_bytes;
    json["memory"].back()["device_taken_bytes"] = rank.device_taken;
  }
  const std::string line = json.dump() + "\n";
  const IdleScope for_the_reader;
  std::fwrite(line.data(), 1, line.size(), stdout);
  std::fflush(stdout);
}

}  // namespace pq
