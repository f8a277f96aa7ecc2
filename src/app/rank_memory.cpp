// The lines of rank_memory.h.
#include "app/rank_memory.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "base/process.h"
#include "kernels/device_measure.h"
#include "kernels/device_memory.h"

namespace pq {

RankMemory rank_memory(const Model& model) {
  RankMemory memory{.planned_bytes = model.plan.total(),
                    .weight_bytes = model.plan.weights,
                    .allocated_bytes = model.transformer->allocated_bytes(),
                    .resident_bytes = peak_resident_bytes(),
                    .largest_context = model.plan.largest_context};
  if (const auto* device = dynamic_cast<const DeviceMeasure*>(model.backend.get())) {
    memory.device_bytes = device->held_bytes();
    memory.device_taken = device->taken_bytes();
  }
  return memory;
}

std::string memory_text(size_t rank, const RankMemory& m) {
  const std::string device = m.device_bytes == 0
                                 ? ""
                                 : fmt::format(", on the GPU {} in buffers, {} taken in all; -c {} would fit",
                                               bytes_text(m.device_bytes), bytes_text(m.device_taken), m.largest_context);
  return fmt::format("rank {}: {} weights, {} state and workspace; planned {}{}, resident {}", rank, bytes_text(m.weight_bytes),
                     bytes_text(m.allocated_bytes - m.weight_bytes), bytes_text(m.planned_bytes), device,
                     bytes_text(m.resident_bytes));
}

std::vector<RankMemory> gather_memory(Session& session, const Model& model) {
  const RankMemory mine = rank_memory(model);
  std::vector<RankMemory> all(static_cast<size_t>(session.ranks()));
  session.comm().all_gather(&mine, sizeof mine, all.data());
  return all;
}

void log_memory(const std::vector<RankMemory>& memory, double load_seconds) {
  int64_t weights = 0;
  for (size_t rank = 0; rank < memory.size(); ++rank) {
    log_once(memory_text(rank, memory[rank]));
    weights += memory[rank].weight_bytes;
  }
  log_once(fmt::format("loaded {} in {:.2f} s, {:.2f} GB/s", bytes_text(weights), load_seconds,
                       static_cast<double>(weights) / 1e9 / std::max(load_seconds, 1e-9)));
}

std::string exhausted_text(const std::string& why, const Model& model, int rank, int ranks) {
  const auto* device = dynamic_cast<const DeviceMeasure*>(model.backend.get());
  if (device == nullptr || why.rfind(kNoDeviceMemory, 0) != 0) return why;
  int64_t there = device_room(device->held_bytes() + device->free_bytes(), model.runtime.cublas);
  if (model.memory_limit > 0) there = std::min(there, model.memory_limit);
  const int64_t largest = plan_rank(model.config, model.runtime, *model.source, rank, ranks, there).largest_context;
  // The plan may fit what there is and memory be in pieces all the same.
  const int64_t advised = std::min(largest, model.runtime.context - 1);
  const std::string way_out = advised > 0 ? fmt::format("a context that fits is -c {} at most", advised)
                                          : std::string("not even one position fits: use a smaller batch (-b)");
  return fmt::format("{}; the plan is {} a rank ({}), there are {} now: {}", why, bytes_text(model.plan.total()),
                     plan_text(model.plan), bytes_text(there), way_out);
}

}  // namespace pq
