// The step loop of step_loop.h. An empty message ends it: a serialized step is never empty.
#include "engine/step_loop.h"

#include <exception>
#include <vector>

namespace pq {

StepLeader::StepLeader(Session& session, Transformer& model)
    : session_(session), model_(model), exceptions_(std::uncaught_exceptions()) {}

StepLeader::~StepLeader() {
  if (std::uncaught_exceptions() > exceptions_) return;
  std::vector<uint8_t> stop;
  session_.broadcast_message(&stop);
}

void StepLeader::run(const Step& step, const std::function<void(int64_t, const float*)>& consume) {
  if (session_.ranks() > 1) {
    std::vector<uint8_t> message = serialize_step(step);
    session_.broadcast_message(&message);
  }
  model_.run(step, consume);
}

StepRunner StepLeader::runner() {
  return [this](const Step& step, const std::function<void(int64_t, const float*)>& consume) { run(step, consume); };
}

void follow_steps(Session& session, Transformer& model) {
  std::vector<uint8_t> message;
  for (;;) {
    session.broadcast_message(&message);
    if (message.empty()) return;
    model.run(parse_step(message), {});
  }
}

}  // namespace pq
