// pq-bench: how fast the ranks are, as fractions of what their memory and instructions allow. Weights are synthetic, of a named
// geometry, so that every size can be measured without a checkpoint.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <optional>

#include "app/model_loading.h"
#include "app/options.h"
#include "base/error.h"
#include "base/log.h"
#include "comm/session.h"
#include "eval/bench.h"
#include "eval/bench_report.h"
#include "eval/synthetic_source.h"
#include "model/geometry.h"

namespace pq {
namespace {

struct BenchOptions {
  std::string what;
  std::string geometry = "qwen3.5-27b";
  std::string format = "pq5";
  BackendFlags backend;
  std::string activations = "int8";
  int64_t layers = 0;
  int64_t vocab = 0;
  int64_t prompt = 512;
  int64_t steps = 32;
  int64_t depth = 0;
  int64_t repetitions = 5;
  int64_t batch = 256;
  int64_t working_set_mib = 1024;
  bool json = false;
  bool csv = false;
};

// The text to print instead of running, if any.
std::optional<std::string> parse(int argc, char** argv, BenchOptions* o) {
  const auto app =
      make_command_line("pq-bench", "WHAT [FLAGS]      mpirun -np N pq-bench WHAT ...",
                        "Speed on synthetic weights of a published size, as fractions of what these ranks can do at most.");
  app->option_defaults()->group("Measuring");
  app->add_option("WHAT", o->what, "decode, prefill, kernels or comm")
      ->type_name("")
      ->required()
      ->check(CLI::IsMember({"decode", "prefill", "kernels", "comm"}));
  app->add_option("-p,--prompt", o->prompt, "tokens of a prefill")
      ->type_name("N")
      ->check(CLI::Range(1, 262144))
      ->capture_default_str();
  app->add_option("-n,--steps", o->steps, "decode steps")->type_name("N")->check(CLI::Range(1, 100000))->capture_default_str();
  app->add_option("-d,--depth", o->depth, "tokens before the first decode step")
      ->type_name("N")
      ->check(CLI::Range(0, 262144))
      ->capture_default_str();
  app->add_option("-r,--repetitions", o->repetitions, "of the other measurements")
      ->type_name("N")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app->add_option("--working-set", o->working_set_mib, "MiB of weights a kernel cycles through")
      ->type_name("N")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app->option_defaults()->group("Model");
  app->add_option("--geometry", o->geometry, fmt::format("{}", fmt::join(geometry_names(), ", ")))
      ->type_name("NAME")
      ->capture_default_str();
  app->add_option("--layers", o->layers, "instead of the published number")->type_name("N")->check(CLI::PositiveNumber);
  app->add_option("--vocab", o->vocab, "instead of the published one")->type_name("N")->check(CLI::PositiveNumber);
  app->add_option("--format", o->format, "of every large matrix: pq2 .. pq8, bf16")->type_name("NAME")->capture_default_str();
  app->add_option("-b,--batch-size", o->batch, "tokens a step holds at most")
      ->type_name("N")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  add_activations_flag(app.get(), &o->activations);
  add_backend_flags(app.get(), &o->backend);
  app->option_defaults()->group("Other");
  app->add_flag("--json", o->json, "JSON on standard output");
  app->add_flag("--csv", o->csv, "CSV on standard output");
  return parse_command_line(app.get(), argc, argv);
}

SyntheticSource make_source(const std::string& format) {
  const Encoding encoding = parse_encoding("--format", format);
  return SyntheticSource(encoding.format, encoding.bits);
}

std::vector<int64_t> gathered(Communicator& comm, int64_t value) {
  std::vector<int64_t> all(static_cast<size_t>(comm.size()));
  comm.all_gather(&value, sizeof value, all.data());
  return all;
}

int run(Session& session, int argc, char** argv) {
  BenchOptions o;
  std::optional<std::string> text;
  session.agree("the command line", [&] { text = parse(argc, argv, &o); });
  if (text) {
    if (session.rank() == 0) std::fputs(text->c_str(), stdout);
    return 0;
  }

  Communicator& comm = session.comm();
  ModelConfig config;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<SyntheticSource> source;
  std::unique_ptr<Transformer> model;
  RuntimeOptions options;
  BenchReport report;
  int64_t planned = 0;
  session.agree("load", [&] {
    config = named_geometry(o.geometry, o.layers, o.vocab);
    if (o.what != "comm") check_rank_count(config, comm.size());
    backend = make_rank_backend(o.backend, session.cpus());
    source = std::make_unique<SyntheticSource>(make_source(o.format));
    options.batch = o.batch;
    options.activations = o.activations == "f32" ? ActivationMode::f32 : ActivationMode::int8;
    options.context = (o.what == "decode" ? std::max<int64_t>(o.depth, 1) + o.steps : o.prompt);
    if (options.context > config.max_position) {
      throw Error(ErrorKind::usage, fmt::format("{} positions exceed the {} the model is made for; lower -d, -n or -p",
                                                options.context, config.max_position));
    }
    if (o.what == "decode" || o.what == "prefill") {
      log_once(fmt::format("making {} layers of {} as {} on {} ranks", config.layers, o.geometry, o.format, comm.size()));
      model = std::make_unique<Transformer>(config, options, *backend, comm, *source, nullptr);
      planned = plan_memory(config, options, comm.rank(), comm.size(), weight_bytes(config, *source, comm.rank(), comm.size()), 0)
                    .total();
    }
  });
  // Before the roofs, whose test memory is not the model's.
  const int64_t resident = peak_rss_bytes();
  report.roofs = measure_roofs(comm);
  const TokenCost body = token_cost(config, *source, comm.rank(), comm.size(), false);
  const TokenCost whole = token_cost(config, *source, comm.rank(), comm.size(), true);
  if (o.what == "decode") report.rows.push_back(bench_decode(*model, comm, o.depth, o.steps, whole));
  if (o.what == "prefill") report.rows.push_back(bench_prefill(*model, comm, o.prompt, o.repetitions, body));
  if (o.what == "kernels")
    report.rows = bench_kernels(config, *source, *backend, comm, options.activations, o.working_set_mib << 20, o.repetitions);
  if (o.what == "comm") report.rows = bench_comm(comm, config.hidden, o.repetitions);
  report.peak_rss_bytes = gathered(comm, model ? resident : peak_rss_bytes());
  report.planned_bytes = gathered(comm, planned);
  if (comm.rank() != 0) return 0;
  const std::string title = fmt::format("pq-bench {}: {} ({} layers, vocabulary {}), {}, {} ranks, {}", o.what, o.geometry,
                                        config.layers, config.vocab, o.format, comm.size(), backend->name());
  const ReportFormat format = o.json ? ReportFormat::json : o.csv ? ReportFormat::csv : ReportFormat::markdown;
  std::fputs(format_report(report, title, format).c_str(), stdout);
  return 0;
}

}  // namespace
}  // namespace pq

int main(int argc, char** argv) {
  return pq::run_program("pq-bench", argc, argv, [&](pq::Session& session) { return pq::run(session, argc, argv); });
}
