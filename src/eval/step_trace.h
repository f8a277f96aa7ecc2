// Where the time of a step goes, by kind of operation: a backend and a communicator that pass everything on and note when each
// operation has ended, on the stream of a device or by the clock of the host. Steps then run operation by operation: what a backend
// offers beside its operations, memory of the host excepted, is hidden. The table is left to bench.h.
#pragma once

#include <array>
#include <chrono>
#include <memory>
#include <vector>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "kernels/device_measure.h"

namespace pq {

enum class StepKind : int { embedding, norms, rotation, products, delta_rule, attention, sums, head, copies };
// What a report calls them.
inline constexpr std::array<const char*, 9> kStepKinds = {"embedding", "norms", "rotation", "products", "delta rule",
                                                          "attention", "sums",  "head",     "copies"};

class StepTrace {
 public:
  // Outlived by `backend`, on which operations run.
  explicit StepTrace(Backend& backend) : device_(dynamic_cast<DeviceMeasure*>(&backend)) {}

  void begin();
  // What was done since the last call was of this kind. Nothing before begin() and after end().
  void ended(StepKind kind);
  // Waits for the device. Seconds by kind.
  std::array<double, kStepKinds.size()> end();

 private:
  DeviceMeasure* device_;
  bool on_ = false;
  std::vector<StepKind> kinds_;
  std::vector<std::chrono::steady_clock::time_point> times_;  // of the host; one more than kinds
};

// vocab_rows: rows of a matrix that is the head.
std::unique_ptr<Backend> make_traced_backend(Backend& backend, StepTrace& trace, int64_t vocab_rows);
std::unique_ptr<Communicator> make_traced_communicator(Communicator& comm, StepTrace& trace);

}  // namespace pq
