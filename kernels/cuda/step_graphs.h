// Steps as CUDA graphs: what one step launches is recorded the second time a step of its key runs, and replayed from then on. What
// the recorded launches read of a step, its ids and spans, stands in a place of the device that never changes (cuda_backend.h).
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace pq::cuda {

// Recordings kept, and those kept whatever they take; the one that was not used for the longest time makes room.
inline constexpr int64_t kStepGraphs = 24;
inline constexpr int64_t kFewestStepGraphs = 4;

class StepGraphs {
 public:
  // stream: made before the first run.
  explicit StepGraphs(const cudaStream_t& stream) : stream_(stream) {}
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;
  ~StepGraphs() { forget(); }

  // body issues the step on the stream. bucket: position_bucket of its spans. Returns a line for the log when steps cannot be
  // recorded, once; they then run as they are; and once when fewer than kStepGraphs are kept, so that they take no more memory than
  // is planned for them (kDeviceGraphBytes).
  std::string run(const StepKey& key, int64_t bucket, const std::function<void()>& body);

  // What recorded launches use has moved, or ends. A graph that runs is freed when it has run. Not while recording.
  void forget();
  bool recording() const { return recording_; }

 private:
  struct Entry {
    StepKey key;
    int64_t bucket = 0;
    cudaGraphExec_t graph = nullptr;
    uint64_t used = 0;
  };

  cudaGraphExec_t record(const std::function<void()>& body, std::string* problem);
  int64_t recorded() const;
  // So that one more may be made. Returns a line for the log, or nothing.
  std::string make_room();

  const cudaStream_t& stream_;
  std::vector<Entry> entries_;
  uint64_t runs_ = 0;
  // Device memory that recordings have taken, and the most that one did. The driver may keep what was a destroyed one's for the
  // next, so that only what they add is known.
  int64_t taken_ = 0;
  int64_t largest_ = 0;
  int64_t most_ = kStepGraphs;
  bool said_ = false;
  bool recording_ = false;
  bool impossible_ = false;
};

}  // namespace pq::cuda
