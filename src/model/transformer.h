// The forward pass of one rank: weights of its slice, state of its slots, and the step that turns tokens into logits. Reads top to
// bottom; talks to a Backend and a Communicator and knows neither devices nor MPI. What to run is decided by the engine.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "model/config.h"
#include "model/partition.h"
#include "store/weight_source.h"

namespace pq {

// One forward pass: token ids and the spans of sequences they belong to (kernels/backend.h). Rows whose logits are wanted are
// listed in `logit_rows`, ascending. Identical on every rank.
struct Step {
  std::vector<int32_t> tokens;
  std::vector<Span> spans;
  std::vector<int32_t> logit_rows;
};

class Transformer {
 public:
  // Loads this rank's slice; host_embedding as load_weights has it; `progress` (may be empty) is called with the bytes loaded so
  // far. Collective only in that every rank loads its own part; wrap it in Session::agree.
  Transformer(const ModelConfig& config, const RuntimeOptions& options, Backend& backend, Communicator& comm, WeightSource& source,
              const std::function<void(int64_t)>& progress, bool host_embedding = false);
  ~Transformer();
  Transformer(const Transformer&) = delete;
  Transformer& operator=(const Transformer&) = delete;

  // Runs the step on every rank (collective). Rank 0 receives the logits: `consume(row_index, logits)` is called for each entry of
  // logit_rows in order, logits [vocab] fp32 valid during the call. Other ranks pass an empty function.
  // Throws ErrorKind::usage when the step exceeds the batch, the context or the slots.
  void run(const Step& step, const std::function<void(int64_t, const float*)>& consume);

  const ModelConfig& config() const;
  const RuntimeOptions& options() const;
  // Bytes held in backend buffers, to compare with the plan.
  int64_t allocated_bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A step as bytes for Session::broadcast_message, and back; throws ErrorKind::internal when malformed.
std::vector<uint8_t> serialize_step(const Step& step);
Step parse_step(const std::vector<uint8_t>& bytes);

}  // namespace pq
