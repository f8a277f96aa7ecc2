// pq-bench: how fast the ranks are, as fractions of what their memory and instructions allow. Weights are those of a store, or
// random ones of a named geometry, so that every size can be measured without a checkpoint.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>

#include "app/model_loading.h"
#include "app/options.h"
#include "base/activity.h"
#include "base/error.h"
#include "base/process.h"
#include "comm/session.h"
#include "eval/bench.h"
#include "eval/bench_report.h"
#include "eval/step_trace.h"
#include "eval/synthetic_source.h"
#include "kernels/device_measure.h"
#include "model/geometry.h"
#include "model/state.h"

namespace pq {
namespace {

struct BenchOptions {
  std::string what;
  ModelFlags model;
  JobOptions job;
  std::string geometry = "qwen3.5-27b";
  int64_t layers = 0;
  int64_t vocab = 0;
  std::vector<int64_t> prompts = {512};
  std::vector<int64_t> sequences = {1};
  int64_t steps = 32;
  int64_t depth = 0;
  int64_t context = 0;  // 0: what the measurement needs
  int64_t repetitions = 5;
  int64_t working_set_mib = 1024;
  int slices = 0;  // of the ranks that are started
  bool breakdown = false;
  bool json = false;
  bool csv = false;
};

// The text to print instead of running, if any.
std::optional<std::string> parse(int argc, char** argv, BenchOptions* o) {
  const auto app = make_command_line("pq-bench", "WHAT [FLAGS]      mpirun -np N pq-bench WHAT ...",
                                     "Speed, as fractions of what these ranks can do at most.");
  app->option_defaults()->group("Measuring");
  app->add_option("WHAT", o->what, "decode, prefill, kernels, comm, load or quantize")
      ->type_name("")
      ->required()
      ->check(CLI::IsMember({"decode", "prefill", "kernels", "comm", "load", "quantize"}));
  app->add_option("-p,--prompt", o->prompts, "tokens of a prefill; or several, as in 512,4096 [512]")
      ->type_name("N,...")
      ->delimiter(',')
      ->check(CLI::Range(1, 262144));
  app->add_option("-n,--steps", o->steps, "decode steps")->type_name("N")->check(CLI::Range(1, 100000))->capture_default_str();
  app->add_option("--slice-of", o->slices, "kernels, one rank: the slice that the first of N ranks would have")
      ->type_name("N")
      ->check(CLI::Range(1, 8));
  app->add_flag("--breakdown", o->breakdown, "decode: the time of a step by kind of operation");
  app->add_option("-d,--depth", o->depth, "tokens before the first decode step; kernels: that attention sees")
      ->type_name("N")
      ->check(CLI::Range(0, 262144))
      ->capture_default_str();
  app->add_option("-c,--ctx-size", o->context, "positions a sequence may take, at least those measured [those]")
      ->type_name("N")
      ->check(CLI::Range(1, 262144));
  app->add_option("--parallel", o->sequences, "sequences that decode in one step; or several, as in 1,4 [1]")
      ->type_name("N,...")
      ->delimiter(',')
      ->check(CLI::Range(1, 256));
  app->add_option("-r,--repetitions", o->repetitions, "of the other measurements")
      ->type_name("N")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app->add_option("--working-set", o->working_set_mib, "MiB a rank that a kernel cycles through; half of it for roofs")
      ->type_name("N")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app->option_defaults()->group("Model");
  auto* stored = app->add_option("-m,--model", o->model.model, "store or checkpoint, instead of random weights")->type_name("DIR");
  app->add_option("--geometry", o->geometry, fmt::format("{}", fmt::join(geometry_names(), ", ")))
      ->type_name("NAME")
      ->capture_default_str()
      ->excludes(stored);
  app->add_option("--layers", o->layers, "instead of the published number")
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->excludes(stored);
  app->add_option("--vocab", o->vocab, "instead of the published one")
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->excludes(stored);
  app->add_option("--format", o->model.recipe.format, "of every large matrix: pq2 .. pq8, bf16; quantize: int4, int4a too [pq5]")
      ->type_name("NAME");
  app->add_option("-b,--batch-size", o->model.batch, "tokens a step holds at most")
      ->type_name("N")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  add_size_flag(app.get(), "--memory", &o->model.memory_bytes, "of a GPU, the most a rank may take");
  add_activations_flag(app.get(), &o->model.activations);
  add_backend_flags(app.get(), &o->model.backend);
  add_prefill_flag(app.get(), &o->model.backend);
  app->option_defaults()->group("Other");
  add_job_flags(app.get(), &o->job);
  app->add_flag("--json", o->json, "JSON on standard output");
  app->add_flag("--csv", o->csv, "CSV on standard output");
  auto text = parse_command_line(app.get(), argc, argv);
  if (text) return text;
  if (o->what == "load" && o->model.model.empty()) throw Error(ErrorKind::usage, "load needs -m, the store or checkpoint to read");
  if (o->what == "quantize" && !o->model.model.empty())
    throw Error(ErrorKind::usage, "quantize encodes random weights of a --geometry; leave out -m");
  if (o->model.backend.prefill != "codes" && o->what != "prefill" && o->what != "decode" && o->what != "kernels")
    throw Error(ErrorKind::usage, "--prefill is for prefill, decode and kernels; leave it out");
  if (o->slices > 0 && (o->what != "kernels" || !o->model.model.empty()))
    throw Error(ErrorKind::usage, "--slice-of is for kernels with random weights; leave it out");
  if (o->breakdown && o->what != "decode") throw Error(ErrorKind::usage, "--breakdown is for decode; leave it out");
  return std::nullopt;
}

// Positions of a sequence: those that the measurement needs, or more.
int64_t context_of(const BenchOptions& o) {
  const int64_t needed = o.what == "decode" ? std::max<int64_t>(o.depth, 1) + o.steps * static_cast<int64_t>(o.sequences.size())
                                            : *std::max_element(o.prompts.begin(), o.prompts.end());
  if (o.context > 0 && o.context < needed)
    throw Error(ErrorKind::usage,
                fmt::format("-c {} is less than the {} positions that are measured; leave it out or give more", o.context, needed));
  return std::max(o.context, needed);
}

// Of which each rank measures one.
int slices_of(const BenchOptions& o, const Session& session) { return o.slices > 0 ? o.slices : session.ranks(); }

// As open_model, of random weights.
Model synthetic_model(Session& session, const BenchOptions& o) {
  Model model;
  Encoding encoding;
  session.agree("making the model", [&] {
    model.config = named_geometry(o.geometry, o.layers, o.vocab);
    model.path = o.geometry;
    make_rank_backend(o.model, session, &model);
    encoding = parse_encoding("--format", o.model.recipe.format);
    if (o.what == "quantize" && encoding.format != WeightFormat::polar && encoding.format != WeightFormat::int4)
      throw Error(ErrorKind::usage, o.model.recipe.format + " needs no encoder; choose pq2 to pq8, int4 or int4a");
  });
  share_devices(session, o.model.backend.share_device, &model);
  session.agree("planning the model", [&] {
    if (o.what == "comm" || o.what == "quantize") return;
    check_rank_count(model.config, slices_of(o, session));
    model.runtime = runtime_options(o.model, model.config);
    model.source =
        std::make_unique<SyntheticSource>(encoding.format, encoding.bits, dynamic_cast<DeviceMeasure*>(model.backend.get()));
    model.runtime.place = place_of(model);
    model.runtime.cublas = o.model.backend.prefill == "cublas";
    model.runtime.nccl = o.model.backend.allreduce == "auto" || o.model.backend.allreduce == "nccl";
    // Of a slice of more ranks than these there is no plan.
    if (o.slices == 0) plan_within(o.model, session, &model);
  });
  open_sums(session, o.model.backend, &model);
  return model;
}

std::vector<BenchRow> measure(const BenchOptions& o, Session& session, Model* model, const Weights& weights, StepTrace* trace,
                              RoofMeter* meter, std::vector<std::string>* remarks) {
  Communicator& comm = session.comm();
  if (o.what == "comm") {
    if (place_of(*model) == Place::host) return bench_comm(comm, model->config.hidden, o.repetitions);
    return bench_device_comm(*model->backend, comm, o.model.backend.allreduce, rank_sums(session, *model->backend),
                             model->config.hidden, o.repetitions, remarks);
  }
  if (o.what == "quantize")
    return bench_encode(model->config, parse_encoding("--format", o.model.recipe.format), *model->backend, comm, o.repetitions);
  if (o.what == "load")
    return bench_load(model->config, *model->backend, comm, meter, *model->source, model->plan.weights, o.repetitions);
  if (o.what == "kernels") {
    std::vector<BenchRow> rows = bench_kernels(weights, *model->backend, comm, meter, model->runtime.activations,
                                               model->runtime.batch, o.working_set_mib << 20, o.repetitions);
    const std::vector<int64_t> depths = o.depth > 0 ? std::vector<int64_t>{o.depth} : std::vector<int64_t>{1024, 8192};
    const std::vector<BenchRow> others = bench_sequence(model->config, model->runtime, slices_of(o, session), *model->backend, comm,
                                                        meter, depths, o.working_set_mib << 20, o.repetitions);
    rows.insert(rows.end(), others.begin(), others.end());
    return rows;
  }
  if (o.breakdown) return bench_breakdown(*model->transformer, *trace, comm, o.depth, o.steps);
  const TokenCost cost = token_cost(model->config, *model->source, comm.rank(), comm.size(), o.what == "decode");
  if (o.what == "decode") return bench_decode(*model->transformer, comm, meter, o.depth, o.sequences, o.steps, cost);
  std::vector<BenchRow> rows;
  for (const int64_t tokens : o.prompts)
    rows.push_back(bench_prefill(*model->transformer, comm, meter, tokens, o.repetitions, cost));
  return rows;
}

std::vector<int64_t> gathered(Communicator& comm, int64_t value) {
  std::vector<int64_t> all(static_cast<size_t>(comm.size()));
  comm.all_gather(&value, sizeof value, all.data());
  return all;
}

int run(Session& session, int argc, char** argv) {
  BenchOptions o;
  std::optional<std::string> text;
  session.agree("the command line", [&] {
    text = parse(argc, argv, &o);
    if (text) return;
    o.model.context = context_of(o);
    if (o.slices > 0 && session.ranks() > 1)
      throw Error(ErrorKind::usage, fmt::format("--slice-of is for one rank, and {} are started; leave it out", session.ranks()));
  });
  if (text) {
    if (session.rank() == 0) std::fputs(text->c_str(), stdout);
    return 0;
  }
  session.configure(o.job);
  o.model.context_given = true;
  o.model.parallel = *std::max_element(o.sequences.begin(), o.sequences.end());
  // A step of all sequences fits whatever -b says.
  o.model.batch = std::max(o.model.batch, o.model.parallel);
  if (o.model.recipe.format.empty()) o.model.recipe.format = "pq5";

  Communicator& comm = session.comm();
  // Outlive the model, which runs on them.
  std::unique_ptr<StepTrace> trace;
  std::unique_ptr<Backend> traced_backend;
  std::unique_ptr<Communicator> traced_comm;
  Model model = o.model.model.empty() ? synthetic_model(session, o) : open_model(session, o.model);
  Weights weights;
  const bool steps = o.what == "decode" || o.what == "prefill";
  const bool device = place_of(model) == Place::gpu;
  BenchReport report;
  const BackendOptions on =
      !device && o.model.backend.device != "reference" ? rank_backend_options(o.model.backend, session.cpus()) : BackendOptions{};
  report.ranks = comm.size();
  report.threads = on.threads;
  const int64_t roof_bytes = o.working_set_mib << 19;
  // The memory of a device is for the model alone once that is loaded. On the host the model comes first: peaks are taken around
  // the memory that the roofs read.
  if (device) report.before = measure_roofs(comm, on, *model.backend, roof_bytes);
  if (o.breakdown) {
    trace = std::make_unique<StepTrace>(*model.backend);
    traced_backend = make_traced_backend(*model.backend, *trace, local_shape(model.config, comm.size()).vocab_rows);
    traced_comm = make_traced_communicator(model.comm ? *model.comm : comm, *trace);
  }
  if (steps) load_model(session, &model, traced_backend.get(), traced_comm.get());
  if (o.what == "kernels") {
    session.agree("loading the weights", [&] {
      weights = load_weights(model.config, *model.backend, *model.source, comm.rank(), slices_of(o, session), nullptr);
    });
  }

  const int64_t loaded = peak_resident_bytes();
  // What is timed reports when a repetition ends, and the steps of a model.
  enter_phase(Phase::measure);
  if (!device) report.before = measure_roofs(comm, on, *model.backend, roof_bytes);
  std::optional<RoofMeter> meter;
  if (o.what != "comm" && o.what != "quantize") meter.emplace(comm, on, *model.backend, report.before, roof_bytes / 4);
  report.metered_bytes = meter ? meter->bytes() : 0;
  const bool anew = try_reset_peak_resident();
  report.rows = measure(o, session, &model, weights, trace.get(), meter ? &*meter : nullptr, &report.remarks);
  const int64_t peak = std::max(loaded, proc_bytes("/proc/self/status", anew ? "VmHWM" : "VmRSS") - report.metered_bytes);
  meter.reset();
  enter_phase(Phase::measure);
  const auto* memory = dynamic_cast<const DeviceMeasure*>(model.backend.get());
  const DeviceBytes mine = memory ? DeviceBytes{memory->peak_bytes(), memory->taken_bytes()} : DeviceBytes{};
  report.device_bytes.resize(static_cast<size_t>(comm.size()));
  comm.all_gather(&mine, sizeof mine, report.device_bytes.data());
  if (device) {
    model.transformer.reset();
    weights = {};
  }
  report.after = measure_roofs(comm, on, *model.backend, roof_bytes);
  report.peak_rss_bytes = gathered(comm, peak);
  report.planned_bytes = gathered(comm, steps ? model.plan.total() : 0);
  if (comm.rank() != 0) return 0;
  std::string weights_text = o.model.recipe.format;
  if (model.source) {
    weights_text = model.source->description();
    for (const TensorSpec& spec : tensor_specs(model.config)) {
      report.weights += spec.rows * spec.cols;
      report.weight_bytes += model.source->info(spec).bytes;
    }
  }
  std::string ranks_text = fmt::format("{} ranks", comm.size());
  if (o.slices > 0) ranks_text = fmt::format("rank 0 of {} alone", o.slices);
  const std::string title = fmt::format("pq-bench {}: {} ({} layers, vocabulary {}), {}, {}, {}", o.what, model.path,
                                        model.config.layers, model.config.vocab, weights_text, ranks_text, model.backend->name());
  const ReportFormat format = o.json ? ReportFormat::json : o.csv ? ReportFormat::csv : ReportFormat::markdown;
  std::fputs(format_report(report, title, format).c_str(), stdout);
  return 0;
}

}  // namespace
}  // namespace pq

int main(int argc, char** argv) {
  return pq::run_program("pq-bench", argc, argv, [&](pq::Session& session) { return pq::run(session, argc, argv); });
}
