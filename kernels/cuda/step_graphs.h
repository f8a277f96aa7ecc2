// Steps as CUDA graphs: what one step launches is recorded the second time a step of its key runs, and replayed from then on. What
// the recorded launches read of a step, its ids and spans, stands in a place of the device that never changes (cuda_backend.h).
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace pq::cuda {

// Recordings kept; the one that was not used for the longest time makes room.
inline constexpr size_t kStepGraphs = 24;

class StepGraphs {
 public:
  // stream: made before the first run.
  explicit StepGraphs(const cudaStream_t& stream) : stream_(stream) {}
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;
  ~StepGraphs() { forget(); }

  // body issues the step on the stream. bucket: position_bucket of its spans. Returns a line for the log when steps cannot be
  // recorded, once; they then run as they are. Another, once, when recordings take more memory than is planned for them
  // (kDeviceGraphBytes): no fewer are kept for that, because ranks whose recordings hold a sum by NCCL must record alike.
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

  const cudaStream_t& stream_;
  std::vector<Entry> entries_;
  uint64_t runs_ = 0;
  // Device memory by which recordings have grown; the driver may keep what was a destroyed one's for the next.
  int64_t taken_ = 0;
  bool said_ = false;
  bool recording_ = false;
  bool impossible_ = false;
};

}  // namespace pq::cuda
