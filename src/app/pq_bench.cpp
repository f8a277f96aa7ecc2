// pq-bench: how fast the ranks are, as fractions of what their memory and instructions allow. Weights are synthetic, of a named
// geometry, so that every size can be measured without a checkpoint.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>

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
  std::string device = "cpu";
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

BenchOptions parse(int argc, char** argv) {
  BenchOptions o;
  CLI::App app("Measures pq on synthetic weights of a named geometry, as fractions of measured limits.", "pq-bench");
  app.add_option("what", o.what, "decode, prefill, kernels or comm")
      ->required()
      ->check(CLI::IsMember({"decode", "prefill", "kernels", "comm"}));
  app.add_option("--geometry", o.geometry, "qwen3.5-27b, -9b, -4b, -2b or -0.8b")->capture_default_str();
  app.add_option("--layers", o.layers, "layers instead of the published number");
  app.add_option("--vocab", o.vocab, "vocabulary instead of the published one");
  app.add_option("--format", o.format, "pq2 to pq8, or bf16")->capture_default_str();
  app.add_option("--device", o.device, "cpu or reference")->capture_default_str();
  app.add_option("--activations", o.activations, "int8 or f32")->check(CLI::IsMember({"int8", "f32"}))->capture_default_str();
  app.add_option("-p,--prompt", o.prompt, "tokens of a prefill")->check(CLI::Range(1, 262144))->capture_default_str();
  app.add_option("-n,--steps", o.steps, "decode steps")->check(CLI::Range(1, 100000))->capture_default_str();
  app.add_option("-d,--depth", o.depth, "tokens before the first decode step")->check(CLI::Range(0, 262144))->capture_default_str();
  app.add_option("-r,--repetitions", o.repetitions, "repetitions of the other measurements")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("-b,--batch-size", o.batch, "tokens a step holds at most")->check(CLI::Range(1, 4096))->capture_default_str();
  app.add_option("--working-set", o.working_set_mib, "MiB of weights a kernel cycles through")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_flag("--json", o.json, "JSON on stdout");
  app.add_flag("--csv", o.csv, "CSV on stdout");
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    std::fputs(app.help().c_str(), stdout);
    o.what.clear();
  } catch (const CLI::ParseError& e) {
    throw Error(ErrorKind::usage, std::string(e.what()) + "; see pq-bench --help");
  }
  return o;
}

SyntheticSource make_source(const std::string& format) {
  if (format == "bf16") return SyntheticSource(WeightFormat::bf16, 0);
  if (format.size() == 3 && format.compare(0, 2, "pq") == 0 && format[2] >= '2' && format[2] <= '8')
    return SyntheticSource(WeightFormat::polar, format[2] - '0');
  throw Error(ErrorKind::usage, "--format is " + format + ", known are pq2 to pq8 and bf16");
}

std::vector<int64_t> gathered(Communicator& comm, int64_t value) {
  std::vector<int64_t> all(static_cast<size_t>(comm.size()));
  comm.all_gather(&value, sizeof value, all.data());
  return all;
}

int run(Session& session, int argc, char** argv) {
  BenchOptions o;
  session.agree("options", [&] { o = parse(argc, argv); });
  if (o.what.empty()) return 0;

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
    backend = make_backend(o.device);
    source = std::make_unique<SyntheticSource>(make_source(o.format));
    options.batch = o.batch;
    options.activations = o.activations == "f32" ? ActivationMode::f32 : ActivationMode::int8;
    options.context = (o.what == "decode" ? std::max<int64_t>(o.depth, 1) + o.steps : o.prompt);
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
