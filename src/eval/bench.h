// Measurements of pq-bench: decode, prefill, kernels and collectives, each beside the physical limit measured on the same ranks in
// the same run. Printing is left to bench_report.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "model/transformer.h"

namespace pq {

// One line of a report. Times are of the slowest rank; work and roofs are summed over ranks.
struct BenchRow {
  std::string name;             // "decode", "prefill 512", "linear 17408x5120, 1 token", "all_reduce 5120"
  std::vector<double> seconds;  // one entry a repetition, in order
  int64_t tokens = 0;           // a repetition processes; 0: not a rate of tokens
  int64_t bytes = 0;            // weight bytes a repetition must read, all ranks
  int64_t macs = 0;             // int8 multiply-adds a repetition must do, all ranks
  double median_seconds() const;
};

// What the ranks can do at most, all of them working at once.
struct Roofs {
  double read_bytes_per_second = 0;  // sum over ranks
  double macs_per_second = 0;        // sum over ranks
  std::string dot_instruction;
};

struct BenchReport {
  Roofs roofs;
  std::vector<BenchRow> rows;
  std::vector<int64_t> peak_rss_bytes;  // by rank, of the process so far
  std::vector<int64_t> planned_bytes;   // by rank; 0 where no plan applies
};

// Collective, as are all below. Values on every rank are those of rank 0.
Roofs measure_roofs(Communicator& comm);

// Weight bytes a decoded token must read on this rank, and multiply-adds a token costs on this rank (head included when `head`).
struct TokenCost {
  int64_t bytes = 0;
  int64_t macs = 0;
};
TokenCost token_cost(const ModelConfig& config, const WeightSource& source, int rank, int ranks, bool head);

// `steps` single-token steps after a prompt of `depth` tokens, one repetition a step, whole logits to rank 0.
BenchRow bench_decode(Transformer& model, Communicator& comm, int64_t depth, int64_t steps, TokenCost cost);

// A prompt of `tokens` tokens from an empty slot in steps of the batch, logits of the last row; `repetitions` times.
BenchRow bench_prefill(Transformer& model, Communicator& comm, int64_t tokens, int64_t repetitions, TokenCost cost);

// Every distinct matrix shape of the model's slice on this rank at 1, 2, 4 and 8 tokens a pass and at 128, weights cycled through
// at least `working_set_bytes` so that they come from memory.
std::vector<BenchRow> bench_kernels(const ModelConfig& config, WeightSource& source, Backend& backend, Communicator& comm,
                                    ActivationMode mode, int64_t working_set_bytes, int64_t repetitions);

// All-reduce of one residual row and of a batch of 256 of them.
std::vector<BenchRow> bench_comm(Communicator& comm, int64_t hidden, int64_t repetitions);

// Peak resident bytes of this process.
int64_t peak_rss_bytes();

}  // namespace pq
