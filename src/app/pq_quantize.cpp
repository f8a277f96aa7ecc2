// pq-quantize: a Hugging Face directory or a published PolarQuant checkpoint to a store, over ranks; or a store to a published
// checkpoint. The work stands in store/; this file parses, calls and reports.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "app/model_loading.h"
#include "app/options.h"
#include "base/error.h"
#include "base/log.h"
#include "base/signals.h"
#include "comm/session.h"
#include "kernels/backend.h"
#include "model/config.h"
#include "model/partition.h"
#include "store/export_polar.h"
#include "store/quantize_store.h"
#include "store/store_reader.h"

namespace pq {
namespace {

struct QuantizeOptions {
  std::string source;
  std::string destination;
  RecipeFlags recipe;
  std::string export_kind;
  BackendFlags backend;
  JobOptions job;
  bool force = false;
  bool json = false;
};

// The text to print instead of running, if any.
std::optional<std::string> parse(int argc, char** argv, QuantizeOptions* o) {
  const auto app = make_command_line("pq-quantize", "SRC DST [FLAGS]      mpirun -np N pq-quantize SRC DST ...",
                                     "Makes a store of a checkpoint: pq5 for every large matrix, small tensors as they are.\n"
                                     "Published PolarQuant codes are taken over unless --format or a rule says otherwise.\n"
                                     "After a kill the same command goes on where it stopped, with any number of ranks.");
  app->option_defaults()->group("Directories");
  app->add_option("SRC", o->source, "Hugging Face or PolarQuant checkpoint; a store with --export")->type_name("")->required();
  app->add_option("DST", o->destination, "to make")->type_name("")->required();
  add_recipe_flags(app.get(), &o->recipe);
  app->option_defaults()->group("Other");
  app->add_option("--export", o->export_kind, "polarquant: write SRC, a store, as a published checkpoint")
      ->type_name("KIND")
      ->check(CLI::IsMember({"polarquant"}));
  add_backend_flags(app.get(), &o->backend);
  add_job_flags(app.get(), &o->job);
  app->add_flag("--force", o->force, "replace a store that was made otherwise");
  app->add_flag("--json", o->json, "the report as JSON on standard output");
  auto text = parse_command_line(app.get(), argc, argv);
  if (text || o->export_kind.empty()) return text;
  for (const char* flag : {"--format", "--policy", "--table", "--no-scale-search", "--through"}) {
    if (app->count(flag) > 0)
      throw Error(ErrorKind::usage, fmt::format("{} codes a checkpoint, --export writes codes that exist", flag));
  }
  return text;
}

// --through without a matrix it applies to would say nothing.
void check_through(const Recipe& recipe, const std::vector<TensorSpec>& specs) {
  if (recipe.through_bits == 0) return;
  for (const TensorSpec& spec : specs)
    if (spec.matrix && recipe.policy.choose(spec.name).encoding.format != WeightFormat::polar) return;
  throw Error(ErrorKind::usage, "--through applies to formats other than pq; add --format int4, int4a or bf16");
}

std::string error_text(double relative) { return relative < 0 ? "as coded" : fmt::format("{:.6f}", relative); }

void print_report(const StoreReport& report, const std::string& destination) {
  for (const std::string& warning : report.warnings) log_once(warning);
  if (report.skipped_vision + report.skipped_mtp > 0)
    log_once(fmt::format("skipped {} vision and {} multi-token-prediction tensors", report.skipped_vision, report.skipped_mtp));
  const double gb = 1e9;
  int64_t peak = 0;
  for (const int64_t bytes : report.peak_rss_bytes) peak = std::max(peak, bytes);
  log_once(fmt::format("{:<26} {:>7} {:>14} {:>10} {:>9}", "class", "format", "weights", "MB", "error"));
  for (const ClassReport& c : report.classes)
    log_once(fmt::format("{:<26} {:>7} {:>14} {:>10.3f} {:>9}", c.name, c.format, c.weights, c.bytes / 1e6,
                         error_text(c.relative_error())));
  if (!report.worst.empty() && report.worst[0].relative_error() > 0) {
    std::string worst;
    for (size_t i = 0; i < std::min<size_t>(3, report.worst.size()); ++i)
      worst += fmt::format("{}{} {}", i ? ", " : "", report.worst[i].name, error_text(report.worst[i].relative_error()));
    log_once("worst: " + worst);
  }
  log_once(fmt::format("{}: {:.3f} bits per weight over {} matrix weights, {:.3f} GB in {} shards{}", destination,
                       report.bits_per_weight(), report.matrix_weights, report.store_bytes / gb, report.shards,
                       report.already_complete  ? ", already complete"
                       : report.shards_kept > 0 ? fmt::format(", {} found finished", report.shards_kept)
                                                : ""));
  log_once(fmt::format("{:.1f} s on {} ranks, peak memory of a rank {:.0f} MiB", report.seconds, report.peak_rss_bytes.size(),
                       peak / 1048576.0));
}

void print_json(const StoreReport& report) {
  const auto rows = [](const std::vector<ClassReport>& classes) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const ClassReport& c : classes) {
      nlohmann::ordered_json row = {{"name", c.name}, {"format", c.format}, {"weights", c.weights}, {"bytes", c.bytes}};
      row["relative_error"] = c.relative_error() < 0 ? nlohmann::ordered_json() : nlohmann::ordered_json(c.relative_error());
      list.push_back(row);
    }
    return list;
  };
  const nlohmann::ordered_json root = {{"source", report.source},
                                       {"recipe", report.recipe},
                                       {"bits_per_weight", report.bits_per_weight()},
                                       {"matrix_weights", report.matrix_weights},
                                       {"matrix_bytes", report.matrix_bytes},
                                       {"store_bytes", report.store_bytes},
                                       {"shards", report.shards},
                                       {"shards_found_finished", report.shards_kept},
                                       {"already_complete", report.already_complete},
                                       {"skipped_vision_tensors", report.skipped_vision},
                                       {"skipped_mtp_tensors", report.skipped_mtp},
                                       {"classes", rows(report.classes)},
                                       {"worst", rows(report.worst)},
                                       {"warnings", report.warnings},
                                       {"seconds", report.seconds},
                                       {"peak_rss_bytes", report.peak_rss_bytes}};
  std::fputs((root.dump(2) + "\n").c_str(), stdout);
}

void export_store(const QuantizeOptions& o, Session& session, const Agree& agree) {
  ExportJob job{.store = o.source, .destination = o.destination, .force = o.force};
  agree("options", [&] {
    if (!is_store(o.source)) throw Error(ErrorKind::input, o.source + " is no store; --export reads one (manifest.json)");
    job.specs = tensor_specs(load_model_config(o.source));
  });
  const ExportReport report = export_polarquant(job, session.comm(), agree);
  if (session.rank() != 0) return;
  log_once(fmt::format("{}: {} coded and {} kept tensors, {:.3f} GB in {} files", o.destination, report.coded, report.kept,
                       report.bytes / 1e9, report.files));
  if (!o.json) return;
  const nlohmann::ordered_json root = {
      {"files", report.files}, {"bytes", report.bytes}, {"coded", report.coded}, {"kept", report.kept}};
  std::fputs((root.dump(2) + "\n").c_str(), stdout);
}

int run(Session& session, int argc, char** argv) {
  const Agree agree = [&](const std::string& where, const std::function<void()>& work) { session.agree(where, work); };
  QuantizeOptions o;
  std::optional<std::string> text;
  agree("the command line", [&] { text = parse(argc, argv, &o); });
  if (text) {
    if (session.rank() == 0) std::fputs(text->c_str(), stdout);
    return 0;
  }
  session.configure(o.job);
  if (!o.export_kind.empty()) {
    export_store(o, session, agree);
    return 0;
  }
  StoreJob job;
  Model encoder;  // its backend and device alone
  agree("options", [&] {
    if (is_store(o.source))
      throw Error(ErrorKind::usage, o.source + " is a store already; add --export polarquant to write a published checkpoint");
    job = {.source = o.source, .destination = o.destination, .recipe = make_recipe(o.recipe), .force = o.force};
    job.specs = tensor_specs(load_model_config(o.source));
    check_through(job.recipe, job.specs);
    ModelFlags flags;
    flags.backend = o.backend;
    make_rank_backend(flags, session, &encoder);
  });
  share_devices(session, o.backend.share_device, &encoder);
  const StoreReport report = quantize_store(job, *encoder.backend, session.comm(), agree);
  if (report.stopped_by != 0) {
    if (session.rank() == 0) {
      say_last_words(fmt::format("stopped by {}: {} of {} shards are finished, the same command goes on from there",
                                 signal_name(report.stopped_by), report.shards_kept, report.shards));
    }
    session.end_together(stop_exit_code(report.stopped_by));
  }
  if (session.rank() != 0) return 0;
  print_report(report, o.destination);
  if (o.json) print_json(report);
  return 0;
}

}  // namespace
}  // namespace pq

int main(int argc, char** argv) {
  return pq::run_program("pq-quantize", argc, argv, [&](pq::Session& session) { return pq::run(session, argc, argv); });
}
