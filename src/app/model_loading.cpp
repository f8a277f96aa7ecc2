// The loading of model_loading.h.
#include "app/model_loading.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>

#include "app/rank_memory.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/process.h"
#include "kernels/device_measure.h"
#include "kernels/device_memory.h"
#include "kernels/device_sum.h"
#include "kernels/plugin.h"
#include "store/open_weights.h"
#include "store/quantize_source.h"

namespace pq {
namespace {

// How long a step waits for the values of another rank: longer than the watchdog, which can name that rank.
double sum_limit_seconds(const JobOptions& options) {
  constexpr double kForEver = 1e9;
  return options.watchdog_seconds > 0 ? 1.5 * options.watchdog_seconds + 2 : kForEver;
}

void check_memory(const Model& model, const ModelFlags& flags, int64_t limit) {
  if (limit == 0 || model.plan.total() <= limit) return;
  const std::string allowed =
      limit == flags.memory_bytes
          ? "--memory allows " + bytes_text(limit)
          : (model.runtime.place == Place::gpu ? "this rank's GPU has " : "this rank's share of the free memory is ") +
                bytes_text(limit);
  const std::string way_out =
      model.plan.largest_context > 0
          ? fmt::format("the largest context that fits is -c {}", model.plan.largest_context)
          : std::string("not even one position fits: use more ranks, fewer bits (--format) or a smaller batch (-b)");
  throw Error(ErrorKind::environment, fmt::format("the model needs {} a rank ({}), but {}; {}", bytes_text(model.plan.total()),
                                                  plan_text(model.plan), allowed, way_out));
}

}  // namespace

RuntimeOptions runtime_options(const ModelFlags& flags, const ModelConfig& config) {
  RuntimeOptions runtime;
  runtime.context = flags.context;
  if (flags.context == 0 || !flags.context_given) {
    runtime.context = flags.context == 0 ? config.max_position : std::min(flags.context, config.max_position);
  }
  if (runtime.context > config.max_position) {
    throw Error(ErrorKind::usage,
                fmt::format("-c {} exceeds the {} positions the model is made for", runtime.context, config.max_position));
  }
  runtime.slots = flags.parallel;
  runtime.asked_batch = flags.batch;
  runtime.batch = std::min(flags.batch, runtime.context * runtime.slots);
  runtime.activations = activation_mode(flags);
  runtime.kv_type = kv_type(flags);
  return runtime;
}

BackendOptions rank_backend_options(const BackendFlags& flags, const std::vector<int>& cpus) {
  const int available = static_cast<int>(cpus.size());
  BackendOptions options;
  options.isa = flags.isa;
  options.threads = flags.threads > 0 ? flags.threads : std::max(1, available);
  options.spin = options.threads <= available;
  if (options.threads == available) options.pin = cpus;
  return options;
}

std::unique_ptr<Backend> make_encoder_backend(const BackendFlags& flags, const Session& session) {
  const int available = static_cast<int>(session.cpus().size());
  if (flags.threads > 1 && available > 0 && flags.threads > available)
    log_line(fmt::format("-t {} exceeds the {} CPUs of this rank; threads will wait for each other", flags.threads, available));
  return make_backend(flags.device == "reference" ? "reference" : "cpu", rank_backend_options(flags, session.cpus()));
}

void make_rank_backend(const ModelFlags& flags, const Session& session, Model* model) {
  const std::string& device = flags.backend.device;
  std::string reason;
  const int devices = device == "cuda" || device == "auto" ? cuda_device_count(&reason) : 0;
  if (device == "auto" && devices == 0) log_once("no GPU: " + reason + "; running on the CPU");
  const bool cublas = flags.backend.prefill == "cublas";
  if (device != "cuda" && devices == 0) {
    if (cublas) throw Error(ErrorKind::usage, "--prefill cublas is for GPUs; leave it out, or run with --device cuda");
    model->backend = make_encoder_backend(flags.backend, session);
    return;
  }
  const int64_t no_buffers = device_allowance_bytes(cublas);
  const int64_t least = no_buffers + device_fixed_bytes(cublas);
  if (flags.memory_bytes > 0 && flags.memory_bytes <= least) {
    throw Error(ErrorKind::usage, fmt::format("--memory {} is less than a CUDA context {}takes ({}); allow more, or run with {}",
                                              bytes_text(flags.memory_bytes), cublas ? "with cuBLAS " : "", bytes_text(least),
                                              cublas ? "--prefill codes" : "--device cpu"));
  }
  const int64_t for_buffers = flags.memory_bytes > 0 ? flags.memory_bytes - no_buffers : 0;
  model->backend = make_cuda_backend(device_of_rank(session.local_rank(), devices), for_buffers, cublas, model->device.data());
}

Place place_of(const Model& model) { return model.device == DeviceIdentity{} ? Place::host : Place::gpu; }

void plan_within(const ModelFlags& flags, const Session& session, Model* model) {
  int64_t limit = flags.memory_bytes;
  if (model->runtime.place == Place::gpu) {
    const int64_t room = device_room(model->device_free_bytes, model->runtime.cublas);
    limit = limit > 0 ? std::min(limit, room) : room;
  } else if (limit == 0) {
    limit = proc_bytes("/proc/meminfo", "MemAvailable") / session.local_ranks();
  }
  model->memory_limit = limit;
  model->plan = plan_rank(model->config, model->runtime, *model->source, session.rank(), session.ranks(), limit);
  check_memory(*model, flags, limit);
}

MakeSum rank_sums(Session& session, Backend& backend) {
  Communicator& comm = session.comm();
  const RankExchange exchange{
      .rank = session.rank(),
      .ranks = session.ranks(),
      .one_node = session.local_ranks() == session.ranks(),
      .all_gather = [&comm](const void* data, int64_t bytes, void* out) { comm.all_gather(data, bytes, out); }};
  return [exchange, &backend](const std::string& method, double limit) { return make_cuda_sum(backend, method, exchange, limit); };
}

void open_sums(Session& session, const BackendFlags& flags, Model* model) {
  const bool gpu = place_of(*model) == Place::gpu;
  session.agree("the way to add over ranks", [&] {
    if (!gpu && flags.allreduce != "auto" && flags.allreduce != "mpi")
      throw Error(ErrorKind::usage, "--allreduce " + flags.allreduce + " is for GPUs; leave it out, or run with --device cuda");
  });
  Communicator& comm = session.comm();
  const char mine = gpu ? 1 : 0;
  std::vector<char> all(static_cast<size_t>(session.ranks()));
  comm.all_gather(&mine, 1, all.data());
  if (session.ranks() == 1 || std::find(all.begin(), all.end(), 0) != all.end()) return;
  const MakeSum make = rank_sums(session, *model->backend);
  const std::vector<SumProbe> probes = probe_sums(*model->backend, comm, flags.allreduce, model->config.hidden, make);
  SumChoice choice;
  session.agree("the way to add over ranks", [&] { choice = choose_sum(flags.allreduce, probes); });
  for (const std::string& remark : choice.remarks) log_once(remark);
  std::string text = "GPUs add by " + choice.method;
  for (const SumProbe& probe : probes)
    text += probe.problem.empty() ? fmt::format("; {} {:.1f} us", probe.method, probe.us)
                                  : fmt::format("; no {}: {}", probe.method, probe.problem);
  log_once(text);
  if (choice.method == "mpi") return;
  std::exception_ptr failure;
  try {
    model->sum = make(choice.method, sum_limit_seconds(session.options()));
  } catch (...) {
    failure = std::current_exception();
  }
  session.agree("the way to add over ranks", [&] {
    if (failure) std::rethrow_exception(failure);
    model->comm = make_device_communicator(comm, *model->sum);
  });
}

void share_devices(Session& session, bool allowed, Model* model) {
  std::vector<DeviceIdentity> all(static_cast<size_t>(session.ranks()));
  session.comm().all_gather(model->device.data(), static_cast<int64_t>(sizeof model->device), all.data());
  session.agree("choosing devices", [&] {
    const std::string problem = allowed ? "" : shared_device_problem(all, session.rank());
    if (!problem.empty()) throw Error(ErrorKind::usage, problem);
    // All devices have been opened by now, and nothing is put on them yet.
    if (const auto* device = dynamic_cast<const DeviceMeasure*>(model->backend.get()))
      model->device_free_bytes = device->held_bytes() + device->free_bytes() / sharers(all, session.rank());
  });
}

Model open_model(Session& session, const ModelFlags& flags) {
  Model model;
  model.path = flags.model;
  session.agree("opening the model", [&] {
    if (!path_exists(flags.model)) throw Error(ErrorKind::input, flags.model + ": no such file or directory");
    if (!is_directory(flags.model))
      throw Error(ErrorKind::usage, flags.model + ": not a directory; -m names a store or a checkpoint");
    model.config = load_model_config(flags.model);
    check_rank_count(model.config, session.ranks());
    model.runtime = runtime_options(flags, model.config);
    make_rank_backend(flags, session, &model);
  });
  share_devices(session, flags.backend.share_device, &model);
  session.agree("opening the weights", [&] {
    model.runtime.place = place_of(model);
    model.runtime.cublas = flags.backend.prefill == "cublas";
    model.runtime.nccl = flags.backend.allreduce == "auto" || flags.backend.allreduce == "nccl";
    model.source = open_weights(flags.model, tensor_specs(model.config), make_recipe(flags.recipe), *model.backend);
    plan_within(flags, session, &model);
  });
  open_sums(session, flags.backend, &model);
  if (const auto* quantizing = dynamic_cast<const QuantizingSource*>(model.source.get())) {
    for (const std::string& warning : quantizing->warnings()) log_once(warning);
  }
  return model;
}

void load_model(Session& session, Model* model, Backend* backend, Communicator* comm) {
  const auto start = std::chrono::steady_clock::now();
  session.agree("loading the weights", [&] {
    ProgressBar bar("loading", model->plan.weights / 1'000'000, "MB");
    try {
      model->transformer = std::make_unique<Transformer>(
          model->config, model->runtime, backend ? *backend : *model->backend,
          comm          ? *comm
          : model->comm ? *model->comm
                        : session.comm(),
          *model->source, [&](int64_t bytes) { bar.set(std::min(bytes, model->plan.weights) / 1'000'000); },
          model->plan.host_embedding > 0);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::environment) throw;
      throw Error(error.kind(), exhausted_text(error.what(), *model, session.rank(), session.ranks()));
    }
  });
  model->load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string plan_text(const MemoryPlan& plan) {
  const std::pair<const char*, int64_t> items[] = {{"weights", plan.weights},         {"KV cache", plan.kv_cache},
                                                   {"delta state", plan.delta_state}, {"conv state", plan.conv_state},
                                                   {"workspace", plan.workspace},     {"communication", plan.communication},
                                                   {"graphs", plan.graphs},           {"process", plan.process}};
  std::string text;
  for (const auto& [name, bytes] : items) {
    if (bytes > 0) text += (text.empty() ? "" : ", ") + std::string(name) + " " + bytes_text(bytes);
  }
  if (plan.host_embedding > 0) text += "; the embedding in host memory " + bytes_text(plan.host_embedding);
  return text;
}

double bits_per_weight(const ModelConfig& config, const WeightSource& source) {
  int64_t bytes = 0;
  int64_t weights = 0;
  for (const TensorSpec& spec : tensor_specs(config)) {
    if (!spec.matrix) continue;
    bytes += source.info(spec).bytes;
    weights += spec.rows * spec.cols;
  }
  return 8.0 * static_cast<double>(bytes) / static_cast<double>(weights);
}

std::string model_text(const ModelConfig& config) {
  int64_t weights = 0;
  for (const TensorSpec& spec : tensor_specs(config)) weights += spec.rows * spec.cols;
  const double count = static_cast<double>(weights);
  const std::string size = count >= 1e9 ? fmt::format("{:.2f} G", count / 1e9) : fmt::format("{:.2f} M", count / 1e6);
  return fmt::format("{} layers, hidden {}, {} weights", config.layers, config.hidden, size);
}

}  // namespace pq
