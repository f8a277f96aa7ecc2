// Reports in words and in JSON.
#include "eval/perplexity_report.h"

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/strict_json.h"

namespace pq {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kNllFormat = "pq-nll";

std::string plus_minus(double value, double error, int digits) {
  return std::isnan(error) ? fmt::format("{:.{}f} ± n/a", value, digits)
                           : fmt::format("{:.{}f} ± {:.{}f}", value, digits, error, digits);
}

std::string string_field(const nlohmann::json& document, const char* key, const std::string& path) {
  if (!document.contains(key) || !document[key].is_string())
    throw Error(ErrorKind::input,
                fmt::format("{}: \"{}\" is missing or no string; write the file with pq-ppl --nll-out", path, key));
  return document[key].get<std::string>();
}

}  // namespace

std::string tokens_sha256(const std::vector<int32_t>& tokens) {
  static_assert(std::endian::native == std::endian::little);
  return sha256_hex(tokens.data(), static_cast<int64_t>(tokens.size() * sizeof(int32_t)));
}

std::string report_text(const PerplexityReport& report) {
  const PerplexityResult& r = report.result;
  std::string text;
  text += fmt::format("perplexity   {}   ({})\n", plus_minus(r.perplexity, r.perplexity_error, 4), report.protocol);
  text += fmt::format("mean NLL     {}   by window ± {}\n", plus_minus(r.by_token.mean, r.by_token.standard_error, 5),
                      std::isnan(r.error_by_window) ? "n/a" : fmt::format("{:.5f}", r.error_by_window));
  if (report.difference)
    text += fmt::format("difference   {}   paired, against {}\n",
                        plus_minus(report.difference->mean, report.difference->standard_error, 5), report.base);
  text += fmt::format("scored       {} tokens in {} windows, {} evaluated\n", r.nll.size(), r.windows, r.tokens_evaluated);
  text += fmt::format("text         {}: {} bytes, {} tokens\n", report.text, report.text_bytes, report.text_tokens);
  text += fmt::format("text sha256  {}\n", report.text_sha256);
  text += fmt::format("ids sha256   {}\n", report.tokens_sha256);
  text += fmt::format("model        {}; matrices {:.3f} bits per weight, {:.1f} MB in all\n", report.model, report.bits_per_weight,
                      static_cast<double>(report.model_bytes) / 1e6);
  text += fmt::format("recipe       {}\n", report.recipe);
  text += fmt::format("run          {} rank{}, {}, activations {}, KV {}\n", report.ranks, report.ranks == 1 ? "" : "s",
                      report.backend, report.activations, report.kv_type);
  text += fmt::format("speed        {:.1f} s, {:.0f} tokens/s\n", report.seconds,
                      report.seconds > 0 ? static_cast<double>(r.tokens_evaluated) / report.seconds : 0.0);
  return text;
}

std::string report_json(const PerplexityReport& report) {
  const PerplexityResult& r = report.result;
  Json json;
  json["protocol"] = report.protocol;
  json["perplexity"] = r.perplexity;
  json["perplexity_error"] = r.perplexity_error;
  json["mean_nll"] = r.by_token.mean;
  json["mean_nll_error"] = r.by_token.standard_error;
  json["mean_nll_error_by_window"] = r.error_by_window;
  if (report.difference) {
    json["difference"] = report.difference->mean;
    json["difference_error"] = report.difference->standard_error;
    json["difference_base"] = report.base;
  }
  json["windows"] = r.windows;
  json["scored_tokens"] = r.nll.size();
  json["evaluated_tokens"] = r.tokens_evaluated;
  json["text"] = report.text;
  json["text_bytes"] = report.text_bytes;
  json["text_sha256"] = report.text_sha256;
  json["text_tokens"] = report.text_tokens;
  json["tokens_sha256"] = report.tokens_sha256;
  json["model"] = report.model;
  json["recipe"] = report.recipe;
  json["bits_per_weight"] = report.bits_per_weight;
  json["model_bytes"] = report.model_bytes;
  json["backend"] = report.backend;
  json["activations"] = report.activations;
  json["kv_type"] = report.kv_type;
  json["ranks"] = report.ranks;
  json["seconds"] = report.seconds;
  json["tokens_per_second"] = report.seconds > 0 ? static_cast<double>(r.tokens_evaluated) / report.seconds : 0.0;
  // A path need not be UTF-8.
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

void write_nll_file(const std::string& path, const NllFile& file) {
  Json json;
  json["format"] = kNllFormat;
  json["version"] = 1;
  json["protocol"] = file.protocol;
  json["tokens_sha256"] = file.tokens_sha256;
  json["model"] = file.model;
  json["nll"] = file.nll;
  write_file_atomically(path, json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
}

NllFile read_nll_file(const std::string& path) {
  const nlohmann::json json = parse_strict_json(read_text_file(path, kMaxNllFileBytes), path, kMaxNllValues);
  if (!json.is_object() || string_field(json, "format", path) != kNllFormat)
    throw Error(ErrorKind::input, fmt::format("{} is no file of likelihoods; write one with pq-ppl --nll-out", path));
  NllFile file;
  file.protocol = string_field(json, "protocol", path);
  file.tokens_sha256 = string_field(json, "tokens_sha256", path);
  file.model = string_field(json, "model", path);
  if (!json.contains("nll") || !json["nll"].is_array()) throw Error(ErrorKind::input, fmt::format("{}: \"nll\" is no array", path));
  for (const auto& value : json["nll"]) {
    if (!value.is_number())
      throw Error(ErrorKind::input, fmt::format("{}: entry {} of \"nll\" is no number", path, file.nll.size()));
    file.nll.push_back(value.get<double>());
  }
  return file;
}

void check_pairable(const NllFile& base, const std::string& protocol, const std::string& tokens_sha256) {
  const auto same = [](const char* what, const std::string& theirs, const std::string& ours) {
    if (theirs != ours)
      throw Error(ErrorKind::input, fmt::format("the runs cannot be paired: {} is {} there and {} here", what, theirs, ours));
  };
  same("the protocol", base.protocol, protocol);
  same("the hash of the token ids", base.tokens_sha256, tokens_sha256);
}

}  // namespace pq
