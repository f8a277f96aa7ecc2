// pq-ppl: perplexity of a text by a named protocol. Measuring stands in eval/; this file parses, prepares the text on rank 0, lets
// the ranks run and prints the report.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "app/model_loading.h"
#include "app/rank_memory.h"
#include "app/options.h"
#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/log.h"
#include "comm/session.h"
#include "engine/step_loop.h"
#include "eval/logits_file.h"
#include "eval/perplexity.h"
#include "eval/perplexity_report.h"
#include "eval/protocol.h"
#include "store/store_reader.h"
#include "text/tokenizer.h"

namespace pq {
namespace {

struct PplOptions {
  ModelFlags model;
  JobOptions job;
  std::string text;
  std::string protocol = "gptq-2048";
  int64_t windows = 0;
  std::string logits_out;
  std::string nll_out;
  std::string compare_nll;
  bool json = false;
};

// The text to print instead of running, if any.
std::optional<std::string> parse(int argc, char** argv, PplOptions* o) {
  const auto app = make_command_line("pq-ppl", "-m DIR -f FILE [--protocol NAME]",
                                     "Perplexity of a text; every rank holds a slice of the model, rank 0 reports.");
  std::string names;
  for (const std::string& name : protocol_names()) names += (names.empty() ? "" : ", ") + name;
  app->option_defaults()->group("Measuring");
  app->add_option("-f,--file", o->text, "text, used as it stands in the file")->type_name("FILE")->required();
  app->add_option("--protocol", o->protocol, names)->type_name("NAME")->capture_default_str();
  app->add_option("--windows", o->windows, "measure the first N windows only; the name then says so")->type_name("N");
  app->add_option("--nll-out", o->nll_out, "write the likelihood of every scored token, for --compare-nll")->type_name("FILE");
  app->add_option("--compare-nll", o->compare_nll, "paired difference to the run that wrote FILE")->type_name("FILE");
  app->add_option("--logits-out", o->logits_out, "write all rows of logits to an HDF5 file")->type_name("FILE");
  app->add_flag("--json", o->json, "one JSON object on stdout");
  add_job_flags(app.get(), &o->job);
  add_model_flags(app.get(), &o->model);
  app->get_option("--ctx-size")->description("window length instead of the protocol's; the name then says so (also --ctx)");
  return parse_command_line(app.get(), argc, argv, {{"--ctx", "--ctx-size"}});
}

// What rank 0 measures.
struct Work {
  std::string text_sha256;
  int64_t text_bytes = 0;
  std::vector<int32_t> tokens;
  std::string tokens_sha256;
  std::vector<Window> windows;
  std::unique_ptr<LogitsFile> logits;
  std::optional<NllFile> base;
};

// Throws ErrorKind::io now rather than at the end of a long run.
void check_writable(const std::string& path) {
  const std::string temporary = path + ".tmp";
  File::create(temporary);
  ::unlink(temporary.c_str());
}

Work prepare(const PplOptions& o, const Protocol& protocol, const Model& model) {
  Work work;
  const std::string content = read_text_file(o.text, kMaxTextBytes);
  const std::string_view text = protocol_text(protocol, content);
  work.text_bytes = static_cast<int64_t>(text.size());
  work.text_sha256 = sha256_hex(text.data(), work.text_bytes);
  work.tokens = load_tokenizer(model.path).encode(text);
  work.tokens_sha256 = tokens_sha256(work.tokens);
  try {
    work.windows = make_windows(protocol, static_cast<int64_t>(work.tokens.size()));
  } catch (const Error& error) {
    throw Error(error.kind(), o.text + ": " + error.what());
  }
  if (!o.compare_nll.empty()) {
    work.base = read_nll_file(o.compare_nll);
    check_pairable(*work.base, protocol.name, work.tokens_sha256);
  }
  if (!o.nll_out.empty()) check_writable(o.nll_out);
  if (!o.logits_out.empty())
    work.logits = std::make_unique<LogitsFile>(
        o.logits_out, LogitsFileInfo{protocol.name, work.text_sha256, work.tokens_sha256, model.source->description()}, work.tokens,
        work.windows, model.config.vocab);
  return work;
}

PerplexityResult measure(Session& session, const Model& model, const Work& work) {
  PerplexityOptions options;
  options.vocab = model.config.vocab;
  options.batch = model.runtime.batch;
  options.all_rows = work.logits != nullptr;
  if (work.logits) options.on_row = [&](const EvaluatedRow& row) { work.logits->append(row); };
  int64_t positions = 0;
  for (const Window& window : work.windows) positions += window.length;
  ProgressBar bar("measuring", positions, "tokens");
  options.progress = [&](int64_t done) { bar.set(done); };
  StepLeader leader(session, *model.transformer);
  return measure_perplexity(work.tokens, work.windows, options, leader.runner());
}

PerplexityReport make_report(const PplOptions& o, const Protocol& protocol, const Model& model, const Work& work, int ranks) {
  PerplexityReport report;
  report.protocol = protocol.name;
  report.text = o.text;
  report.text_bytes = work.text_bytes;
  report.text_sha256 = work.text_sha256;
  report.text_tokens = static_cast<int64_t>(work.tokens.size());
  report.tokens_sha256 = work.tokens_sha256;
  report.model = model.source->description();
  const auto* store = dynamic_cast<const StoreReader*>(model.source.get());
  report.recipe = store ? store->manifest().recipe : make_recipe(o.model.recipe).text();
  report.bits_per_weight = bits_per_weight(model.config, *model.source);
  for (const TensorSpec& spec : tensor_specs(model.config)) report.model_bytes += model.source->info(spec).bytes;
  report.backend = model.backend->name();
  report.activations = model.runtime.activations == ActivationMode::int8 ? "int8" : "f32";
  report.kv_type = kv_type_name(model.runtime.kv_type);
  report.ranks = ranks;
  return report;
}

int run(Session& session, int argc, char** argv) {
  PplOptions o;
  Protocol protocol;
  std::optional<std::string> help;
  session.agree("options", [&] {
    help = parse(argc, argv, &o);
    if (help) return;
    protocol = make_protocol(o.protocol, o.model.context_given ? o.model.context : 0, o.windows);
    o.model.context = protocol.window;
    o.model.context_given = true;
  });
  if (help) {
    if (session.rank() == 0) std::fputs(help->c_str(), stdout);
    return 0;
  }
  session.configure(o.job);
  Model model = open_model(session, o.model);
  Work work;
  session.agree("the text", [&] {
    if (session.rank() == 0) work = prepare(o, protocol, model);
  });
  load_model(session, &model);
  log_memory(gather_memory(session, model), model.load_seconds);
  if (session.rank() != 0) {
    follow_steps(session, *model.transformer);
    return 0;
  }
  PerplexityReport report = make_report(o, protocol, model, work, session.ranks());
  const auto start = std::chrono::steady_clock::now();
  report.result = measure(session, model, work);
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (work.base) {
    report.difference = paired_difference(report.result.nll, work.base->nll);
    report.base = work.base->model;
  }
  if (work.logits) work.logits->finish();
  if (!o.nll_out.empty()) write_nll_file(o.nll_out, {protocol.name, work.tokens_sha256, report.model, report.result.nll});
  std::fputs((o.json ? report_json(report) : report_text(report)).c_str(), stdout);
  return 0;
}

}  // namespace
}  // namespace pq

int main(int argc, char** argv) {
  return pq::run_program("pq-ppl", argc, argv, [&](pq::Session& session) { return pq::run(session, argc, argv); });
}
