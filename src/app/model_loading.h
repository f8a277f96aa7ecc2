// From flags to a model that can run: configuration, legal rank count, weights, memory plan, in that order, each refused before the
// next begins and by all ranks together. Tokenizer and text are left to the mains.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "app/options.h"
#include "app/rank_devices.h"
#include "comm/session.h"
#include "comm/sum_choice.h"
#include "kernels/backend.h"
#include "model/config.h"
#include "model/partition.h"
#include "model/transformer.h"
#include "store/weight_source.h"

namespace pq {

// The model one rank holds. Members depend on those above them.
struct Model {
  std::string path;
  ModelConfig config;
  RuntimeOptions runtime;
  MemoryPlan plan;
  DeviceIdentity device{};        // of backend
  int64_t device_free_bytes = 0;  // this rank's share of what it had free when all ranks had opened theirs
  int64_t memory_limit = 0;       // what the plan was held against; 0: nothing
  std::unique_ptr<Backend> backend;
  std::unique_ptr<DeviceSum> sum;      // between GPUs; null: values pass through the session's communicator
  std::unique_ptr<Communicator> comm;  // the session's with that sum; null without one
  std::unique_ptr<WeightSource> source;
  std::unique_ptr<Transformer> transformer;  // null until load_model
  double load_seconds = 0;
};

// Threads of this rank by the flags. Without -t as many as the rank has CPUs, each pinned to one; with fewer threads none is
// pinned.
BackendOptions rank_backend_options(const BackendFlags& flags, const std::vector<int>& cpus);

// The backend of this rank into model->backend, with what is known of its device. cpu: with those options; logs a line when -t
// exceeds the CPUs. cuda: on the visible device of device_of_rank; buffers may take what --memory leaves beside
// kDeviceContextBytes. auto: cuda where a device answers, else cpu, with a line that says why. Throws what
// make_backend throws, and ErrorKind::usage when --memory is less than the context.
void make_rank_backend(const ModelFlags& flags, const Session& session, Model* model);

// Collective, after make_rank_backend and before a plan. Throws ErrorKind::usage on all ranks when two of them took one GPU, unless
// `allowed`: then each plans with its part of what that GPU has free.
void share_devices(Session& session, bool allowed, Model* model);

// Of model->backend: gpu or host, for the plan.
Place place_of(const Model& model);

// Collective. Gives ranks with GPUs their way to add (--allreduce), tried and timed, and says on rank 0 which. Throws what
// choose_sum throws on all ranks, and ErrorKind::usage when a way of GPUs is asked for on a CPU.
void open_sums(Session& session, const BackendFlags& flags, Model* model);

// Makes the ways to add between GPUs, for all ranks together; `backend` and the session outlive it.
MakeSum rank_sums(Session& session, Backend& backend);

// The plan of model->source on this rank against --memory, or what this rank has free. Throws ErrorKind::environment with the items
// and the largest context when it does not fit.
void plan_within(const ModelFlags& flags, const Session& session, Model* model);

// The host's, cpu or reference, whatever GPU there is.
std::unique_ptr<Backend> make_encoder_backend(const BackendFlags& flags, const Session& session);

// Collective. Reads no weights. Throws on all ranks: ErrorKind::input for files that are not what they claim, ErrorKind::usage for
// a rank count or a context the model does not allow, ErrorKind::environment when the plan exceeds --memory or what the node has
// free for each of its ranks, with the items and the largest context that fits.
Model open_model(Session& session, const ModelFlags& flags);

// Collective. Loads this rank's slice, with a progress bar on rank 0. backend, comm: what the model runs on instead of its own,
// when given; they outlive it.
void load_model(Session& session, Model* model, Backend* backend = nullptr, Communicator* comm = nullptr);

// Options of the step from the flags. Throws ErrorKind::usage when the context exceeds the model's positions.
RuntimeOptions runtime_options(const ModelFlags& flags, const ModelConfig& config);

// "weights 8.63 GB, KV cache 134 MB, ...": every item that is not zero.
std::string plan_text(const MemoryPlan& plan);

// Over all large matrices, planes included.
double bits_per_weight(const ModelConfig& config, const WeightSource& source);

// "8 layers, hidden 128, 3.9 M weights".
std::string model_text(const ModelConfig& config);

}  // namespace pq
