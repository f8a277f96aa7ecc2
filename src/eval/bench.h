// Measurements of pq-bench: decode, prefill, kernels, collectives, loading and encoding, each beside the physical limits measured
// on the same ranks in the same run. Printing is left to bench_report.h.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/sum_choice.h"
#include "eval/step_trace.h"
#include "kernels/backend.h"
#include "model/transformer.h"
#include "model/weights.h"
#include "store/policy.h"

namespace pq {

// One line of a report. Times are of the slowest rank; work is summed over ranks.
struct BenchRow {
  std::string name;  // "decode at depth 0", "prefill 512", "4 times 5120x8704 pq5 in 4 units, 1 token", "all_reduce 5120 fp32"
  std::vector<double> seconds;  // one entry a repetition, in order
  int64_t tokens = 0;           // a repetition processes; 0: not a rate of tokens
  int64_t bytes = 0;            // weight bytes a repetition must read, all ranks
  int64_t macs = 0;             // int8 multiply-adds a repetition must do, all ranks
  int64_t weights = 0;          // a repetition encodes, all ranks
  std::vector<double> read;     // bytes/s that RoofMeter read around each repetition; or empty
  std::vector<double> dot;      // multiply-adds/s around each repetition; or empty
  double relative_error = 0;    // of the encoded weights: sum of squared differences over sum of squares
  double share = 0;             // of a step that an operation is part of; 0: none
  double median_seconds() const;
  // Medians over the repetitions of the rate at which `bytes` were read and `macs` done, as fractions of what the machine gave at
  // that moment; 0 where it was not metered. What a shared machine gives can halve within seconds: a roof measured once says
  // little.
  double read_fraction() const;
  double dot_fraction() const;
};

// What the ranks can do at most, all of them working at once: the work of all over the time of the slowest, best pass of several.
struct Roofs {
  double read_bytes_per_second = 0;
  int pattern = 0;           // of ReadRoof that was best
  std::string read_pattern;  // its name
  double macs_per_second = 0;
  std::string dot_instruction;
  bool device = false;  // of devices: memory copied, both directions counted, timed on their streams
};

// What one rank takes of its device.
struct DeviceBytes {
  int64_t buffers = 0;  // at most, of what its backend hands out; 0: there is no device
  int64_t taken = 0;    // of the device after the measurements, by whatever process: contexts and code too
};

struct BenchReport {
  int ranks = 1;
  int threads = 1;           // a rank
  int64_t weights = 0;       // of the model; 0 where there is none
  int64_t weight_bytes = 0;  // that the model takes, every tensor counted once
  Roofs before;              // the measurements
  Roofs after;
  int64_t metered_bytes = 0;  // a rank, by RoofMeter; 0 where nothing was metered
  std::vector<BenchRow> rows;
  std::vector<int64_t> peak_rss_bytes;    // by rank
  std::vector<int64_t> planned_bytes;     // by rank, of the memory where the model is; 0 where no plan applies
  std::vector<DeviceBytes> device_bytes;  // by rank
  std::vector<std::string> remarks;       // one line each: what could not be measured, and why
  // The better of before and after, each by itself.
  Roofs roofs() const;
};

// Collective, as are all below; values are the same on every rank. Each rank works where `backend` does (RankRoofs in
// eval/roofs.h), on the host with the threads of `options`. Moves `bytes` of memory of each rank, which it returns; as many as must
// come from memory and not from a cache.
Roofs measure_roofs(Communicator& comm, const BackendOptions& options, Backend& backend, int64_t bytes);

// The limits of the moment, of all ranks together: one pass over `bytes` of memory of each rank in the best pattern of `roofs`, and
// a train of dot products. Of devices, what `roofs` says: they keep their speed, and their memory is for the model.
class RoofMeter {
 public:
  // Collective. Holds the memory, which is to exceed the caches; the other arguments as measure_roofs.
  RoofMeter(Communicator& comm, const BackendOptions& options, Backend& backend, const Roofs& roofs, int64_t bytes);
  ~RoofMeter();
  // Collective: bytes/s.
  double read();
  // Collective: multiply-adds/s.
  double dot();
  // That this rank holds.
  int64_t bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Weight bytes a decoded token must read on this rank, and multiply-adds a token costs on this rank (head included when `head`).
struct TokenCost {
  int64_t bytes = 0;
  int64_t macs = 0;
};
TokenCost token_cost(const ModelConfig& config, const WeightSource& source, int rank, int ranks, bool head);

// For each number of sequences, `steps` steps of one token of each after prompts of `depth` tokens, one repetition a step, whole
// logits to rank 0. Steps of the rows take turns, so that a disturbance of the machine meets all. A model has as many slots as the
// largest number, and a context of max(depth, 1) + steps * sequences.size().
std::vector<BenchRow> bench_decode(Transformer& model, Communicator& comm, RoofMeter* meter, int64_t depth,
                                   const std::vector<int64_t>& sequences, int64_t steps, TokenCost cost);

// A prompt of `tokens` tokens from an empty slot in steps of the batch, logits of the last row; `repetitions` times.
BenchRow bench_prefill(Transformer& model, Communicator& comm, RoofMeter* meter, int64_t tokens, int64_t repetitions,
                       TokenCost cost);

// The products of a step with 1, 2, 4, 8 and `batch` tokens a pass. First every different product by itself (rows, columns, units
// and format; of the slice of this rank), then those that read one input and that a step takes in one call, matrices copied until
// they fill `working_set_bytes` so that they come from memory. Then all products of a step in order, by the calls of a step. At
// last rows of the embedding, for one token and for `batch`.
std::vector<BenchRow> bench_kernels(const Weights& weights, Backend& backend, Communicator& comm, RoofMeter* meter,
                                    ActivationMode mode, int64_t batch, int64_t working_set_bytes, int64_t repetitions);

// The operations of a step that are no products, on the slice of one rank of `slices`: norm, convolution, gated delta rule, its
// norm, these three in one operation, the input of attention, attention, each with one token at the given depths and with `batch`.
// States and caches of as many sequences as `working_set_bytes` hold take turns.
std::vector<BenchRow> bench_sequence(const ModelConfig& config, const RuntimeOptions& options, int slices, Backend& backend,
                                     Communicator& comm, RoofMeter* meter, const std::vector<int64_t>& depths,
                                     int64_t working_set_bytes, int64_t repetitions);

// A barrier, and all-reduce in host memory of one residual row and of a batch of 256 of them.
std::vector<BenchRow> bench_comm(Communicator& comm, int64_t hidden, int64_t repetitions);

// All-reduce in device memory of 1, 4, 16, 64 and 256 residual rows by each way that `requested` leaves open (comm/sum_choice.h),
// and sums that are one launch with the norm and its coded form, of the rows of which a way has such a thing. Ways that are
// impossible here become remarks.
std::vector<BenchRow> bench_device_comm(Backend& backend, Communicator& comm, const std::string& requested, const MakeSum& make,
                                        int64_t hidden, int64_t repetitions, std::vector<std::string>* remarks);

// Steps as bench_decode has them, of one sequence, taken apart: `model` runs on the traced backend and communicator
// (eval/step_trace.h). One row a kind of operation, in the order of their first use, and the whole step at the end; operations are
// launched one by one, so that the whole is slower than a step that is not traced.
std::vector<BenchRow> bench_breakdown(Transformer& model, StepTrace& trace, Communicator& comm, int64_t depth, int64_t steps);

// Each rank's slice from `source` into backend memory: the first time, and `repetitions` times more. `weight_bytes` are this
// rank's.
std::vector<BenchRow> bench_load(const ModelConfig& config, Backend& backend, Communicator& comm, RoofMeter* meter,
                                 WeightSource& source, int64_t weight_bytes, int64_t repetitions);

// Every rank encodes normal weights at each number of inputs that a matrix of `config` has, polar formats with and without scale
// search. `encoding` is polar or int4.
std::vector<BenchRow> bench_encode(const ModelConfig& config, const Encoding& encoding, Backend& backend, Communicator& comm,
                                   int64_t repetitions);

}  // namespace pq
