// The memory that loading took on each rank, beside its plan, and what is said when a device has less than the plan counted on. The
// plan itself is model/partition.h's.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "app/model_loading.h"
#include "comm/session.h"

namespace pq {

// What load_model came to on one rank.
struct RankMemory {
  int64_t planned_bytes = 0;
  int64_t weight_bytes = 0;
  int64_t allocated_bytes = 0;  // weights, state and workspace
  int64_t resident_bytes = 0;   // of the process, at its peak so far
  int64_t device_bytes = 0;     // in buffers of the GPU; 0 on the CPU
  int64_t device_taken = 0;     // of the GPU, by whatever process
  int64_t largest_context = 0;  // of the plan
};

// Of this rank; the model is loaded.
RankMemory rank_memory(const Model& model);

// "rank 0: ...", one line; on a GPU with what of it is taken and the largest context that would have fitted.
std::string memory_text(size_t rank, const RankMemory& memory);

// Collective. All ranks' memory on every rank, in rank order.
std::vector<RankMemory> gather_memory(Session& session, const Model& model);
// memory_text for each rank, and the time and rate of loading; by rank 0 to stderr.
void log_memory(const std::vector<RankMemory>& memory, double load_seconds);

// The line for a model whose weights did not load because of `why`, though the plan fitted: with the plan, what there is of the
// device now that they are gone again, and the largest context that fits that. `why` alone when it is not kNoDeviceMemory.
std::string exhausted_text(const std::string& why, const Model& model, int rank, int ranks);

}  // namespace pq
