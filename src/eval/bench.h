// Measurements of pq-bench: decode, prefill, kernels, collectives, loading and encoding, each beside the physical limits measured
// on the same ranks in the same run. Printing is left to bench_report.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/communicator.h"
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
  double relative_error = 0;    // of the encoded weights: sum of squared differences over sum of squares
  double median_seconds() const;
};

// What the ranks can do at most, all of them working at once: the work of all over the time of the slowest, best pass of several.
struct Roofs {
  double read_bytes_per_second = 0;
  std::string read_pattern;  // that was best
  double macs_per_second = 0;
  std::string dot_instruction;
};

struct BenchReport {
  int ranks = 1;
  int threads = 1;           // a rank
  int64_t weights = 0;       // of the model; 0 where there is none
  int64_t weight_bytes = 0;  // that the model takes, every tensor counted once
  Roofs before;              // the measurements
  Roofs after;
  std::vector<BenchRow> rows;
  std::vector<int64_t> peak_rss_bytes;  // by rank
  std::vector<int64_t> planned_bytes;   // by rank; 0 where no plan applies
  // The better of before and after, each by itself.
  Roofs roofs() const;
};

// Collective, as are all below; values are the same on every rank. Each rank works with the threads of `options`; `backend` names
// the instruction set whose dot product is measured (DotRoof in eval/roofs.h). Reads `bytes` of memory of each rank, which it
// returns; as many as must come from memory and not from a cache.
Roofs measure_roofs(Communicator& comm, const BackendOptions& options, const std::string& backend, int64_t bytes);

// Weight bytes a decoded token must read on this rank, and multiply-adds a token costs on this rank (head included when `head`).
struct TokenCost {
  int64_t bytes = 0;
  int64_t macs = 0;
};
TokenCost token_cost(const ModelConfig& config, const WeightSource& source, int rank, int ranks, bool head);

// For each number of sequences, `steps` steps of one token of each after prompts of `depth` tokens, one repetition a step, whole
// logits to rank 0. Steps of the rows take turns, so that a disturbance of the machine meets all. A model has as many slots as the
// largest number, and a context of max(depth, 1) + steps * sequences.size().
std::vector<BenchRow> bench_decode(Transformer& model, Communicator& comm, int64_t depth, const std::vector<int64_t>& sequences,
                                   int64_t steps, TokenCost cost);

// A prompt of `tokens` tokens from an empty slot in steps of the batch, logits of the last row; `repetitions` times.
BenchRow bench_prefill(Transformer& model, Communicator& comm, int64_t tokens, int64_t repetitions, TokenCost cost);

// The products of a step with 1, 2, 4, 8 and `batch` tokens a pass. First every different product by itself (rows, columns, units
// and format; of the slice of this rank), its matrices copied until they fill `working_set_bytes` so that they come from memory.
// Then all products of a step in order.
std::vector<BenchRow> bench_kernels(const Weights& weights, Backend& backend, Communicator& comm, ActivationMode mode,
                                    int64_t batch, int64_t working_set_bytes, int64_t repetitions);

// All-reduce of one residual row and of a batch of 256 of them.
std::vector<BenchRow> bench_comm(Communicator& comm, int64_t hidden, int64_t repetitions);

// Each rank's slice from `source` into backend memory: the first time, and `repetitions` times more. `weight_bytes` are this
// rank's.
std::vector<BenchRow> bench_load(const ModelConfig& config, Backend& backend, Communicator& comm, WeightSource& source,
                                 int64_t weight_bytes, int64_t repetitions);

// Every rank encodes normal weights at each number of inputs that a matrix of `config` has, polar formats with and without scale
// search. `encoding` is polar or int4.
std::vector<BenchRow> bench_encode(const ModelConfig& config, const Encoding& encoding, Backend& backend, Communicator& comm,
                                   int64_t repetitions);

}  // namespace pq
