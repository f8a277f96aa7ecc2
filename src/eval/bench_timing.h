// How every measurement of bench.h is timed: after a barrier, by the slowest rank, because a step ends when all ranks have.
#pragma once

#include <algorithm>
#include <chrono>
#include <numeric>
#include <vector>

#include "base/activity.h"
#include "comm/communicator.h"
#include "kernels/backend.h"
#include "kernels/device_measure.h"

namespace pq {

// Of a backend that works behind the caller's back, else null.
inline DeviceMeasure* device_of(Backend& backend) { return dynamic_cast<DeviceMeasure*>(&backend); }

// Seconds of `work`, which ends when it returns, on the slowest rank; the same value on every rank.
template <typename Work>
double timed(Communicator& comm, const Work& work) {
  comm.barrier();
  const auto start = std::chrono::steady_clock::now();
  work();
  beat();
  const double mine = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::vector<double> all(static_cast<size_t>(comm.size()));
  comm.all_gather(&mine, sizeof mine, all.data());
  return *std::max_element(all.begin(), all.end());
}

// The same of work that is put on the stream of a device and not waited for, by the device's own clock; of the host where `device`
// is null.
template <typename Work>
double timed_on(DeviceMeasure* device, Communicator& comm, const Work& work) {
  if (device == nullptr) return timed(comm, work);
  comm.barrier();
  device->mark();
  work();
  device->mark();
  const double mine = device->intervals().at(0);
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
