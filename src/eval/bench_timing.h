// How every measurement of bench.h is timed: after a barrier, by the slowest rank, because a step ends when all ranks have.
#pragma once

#include <algorithm>
#include <chrono>
#include <numeric>
#include <vector>

#include "comm/communicator.h"

namespace pq {

// Seconds of `work` on the slowest rank; the same value on every rank.
template <typename Work>
double timed(Communicator& comm, const Work& work) {
  comm.barrier();
  const auto start = std::chrono::steady_clock::now();
  work();
  const double mine = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::vector<double> all(static_cast<size_t>(comm.size()));
  comm.all_gather(&mine, sizeof mine, all.data());
  return *std::max_element(all.begin(), all.end());
}

template <typename T>
T sum_over_ranks(Communicator& comm, T value) {
  std::vector<T> all(static_cast<size_t>(comm.size()));
  comm.all_gather(&value, sizeof value, all.data());
  return std::accumulate(all.begin(), all.end(), T{});
}

}  // namespace pq
