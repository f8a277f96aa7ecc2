// The recordings of step_graphs.h.
#include <algorithm>
#include <utility>

#include "kernels/cuda/device.h"
#include "kernels/cuda/step_graphs.h"
#include "kernels/device_memory.h"

namespace pq::cuda {
namespace {

// 0 when the runtime does not say.
int64_t free_memory() {
  size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) cudaGetLastError();
  return static_cast<int64_t>(free);
}

}  // namespace

std::string StepGraphs::run(const StepKey& key, int64_t bucket, const std::function<void()>& body) {
  if (impossible_) {
    body();
    return {};
  }
  auto entry = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.key == key && e.bucket == bucket; });
  if (entry == entries_.end()) {
    if (entries_.size() == kStepGraphs) {
      entry = std::min_element(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) { return a.used < b.used; });
      if (entry->graph != nullptr) cudaGraphExecDestroy(entry->graph);
      entries_.erase(entry);
    }
    entries_.push_back({.key = key, .bucket = bucket, .graph = nullptr, .used = ++runs_});
    // Scratch grows and tables are made the first time, which nothing recorded may do.
    body();
    return {};
  }
  entry->used = ++runs_;
  if (entry->graph == nullptr) {
    std::string problem;
    entry->graph = record(body, &problem);
    if (entry->graph == nullptr) {
      impossible_ = true;
      forget();
      body();
      return "steps run launch by launch, not as CUDA graphs: " + problem;
    }
  }
  check(cudaGraphLaunch(entry->graph, stream_), "cudaGraphLaunch");
  if (taken_ <= kDeviceGraphBytes || std::exchange(said_, true)) return {};
  return "recorded steps take " + std::to_string(taken_ / 1'000'000) + " MB of the device, more than the " +
         std::to_string(kDeviceGraphBytes / 1'000'000) + " planned for them";
}

cudaGraphExec_t StepGraphs::record(const std::function<void()>& body, std::string* problem) {
  // Other threads of the process are not kept from allocating.
  if (const cudaError_t result = cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal); result != cudaSuccess) {
    cudaGetLastError();
    *problem = cudaGetErrorString(result);
    return nullptr;
  }
  recording_ = true;
  try {
    body();
  } catch (const std::exception& error) {
    *problem = error.what();
  }
  recording_ = false;
  cudaGraph_t graph = nullptr;
  cudaError_t result = cudaStreamEndCapture(stream_, &graph);
  cudaGraphExec_t executable = nullptr;
  if (result == cudaSuccess && problem->empty()) {
    const int64_t before = free_memory();
    result = cudaGraphInstantiate(&executable, graph, 0);
    if (result == cudaSuccess) result = cudaGraphUpload(executable, stream_);
    taken_ += std::max<int64_t>(0, before - free_memory());
  }
  if (graph != nullptr) cudaGraphDestroy(graph);
  if (result != cudaSuccess) {
    cudaGetLastError();
    if (executable != nullptr) cudaGraphExecDestroy(std::exchange(executable, nullptr));
    if (problem->empty()) *problem = cudaGetErrorString(result);
  }
  return executable;
}

void StepGraphs::forget() {
  for (Entry& entry : entries_) {
    if (entry.graph != nullptr) cudaGraphExecDestroy(entry.graph);
    entry.graph = nullptr;
  }
}

}  // namespace pq::cuda
