// How a step reaches every rank: rank 0 decides and broadcasts, the other ranks follow until told to stop. What to run is decided
// by the callers (generator, perplexity).
#pragma once

#include <cstdint>
#include <functional>

#include "comm/session.h"
#include "model/transformer.h"

namespace pq {

// Runs a step and hands over the wanted rows of logits in order, as Transformer::run on rank 0.
using StepRunner = std::function<void(const Step& step, const std::function<void(int64_t, const float*)>& consume)>;

// Rank 0's end. The destructor releases the followers, unless an exception is on its way: the job is then about to be aborted.
class StepLeader {
 public:
  // Both outlive the leader. Every other rank is in, or will call, follow_steps.
  StepLeader(Session& session, Transformer& model);
  ~StepLeader();
  StepLeader(const StepLeader&) = delete;
  StepLeader& operator=(const StepLeader&) = delete;

  void run(const Step& step, const std::function<void(int64_t, const float*)>& consume);
  // run, as a function; valid as long as the leader.
  StepRunner runner();

 private:
  Session& session_;
  Transformer& model_;
  const int exceptions_;
};

// The other ranks: runs the steps of rank 0's leader, sleeping between them, and returns when it ends.
void follow_steps(Session& session, Transformer& model);

}  // namespace pq
