// Which way ranks with GPUs add their values: tried at start with values whose sum is known, timed, and chosen by all ranks alike.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "kernels/device_sum.h"

namespace pq {

// The ways, the preferred one of equals first: "p2p", "host", "nccl", and "mpi", which passes values through the host and is always
// there.
inline constexpr const char* kSumMethods[] = {"p2p", "host", "nccl", "mpi"};

// What came of trying one way, on all ranks together.
struct SumProbe {
  std::string method;
  std::string problem;     // why it is impossible; empty: it ran
  int64_t wrong_sums = 0;  // of `checked_sums`
  int64_t checked_sums = 0;
  int64_t wrong_norms = 0;    // of `checked_norms`: sums fused with a norm (DeviceSum::try_sum_and_norm)
  int64_t checked_norms = 0;  // 0 where the way has none
  double us = 0;  // of the sum of one token's residual, the slowest rank's, outside graphs: what the host does for it counts
};

struct SumChoice {
  std::string method;
  std::vector<std::string> remarks;  // one line each: what was left out although it was there
};

// requested: "auto" takes the fastest that is possible and right, fused or not; a time within 5 % of the best is as good. A name
// takes that way, and throws ErrorKind::environment with the reason when it is impossible or adds wrongly. ErrorKind::usage for
// other names.
SumChoice choose_sum(const std::string& requested, const std::vector<SumProbe>& probes);

using MakeSum = std::function<std::unique_ptr<DeviceSum>(const std::string& method, double time_limit_seconds)>;

// Collective. Tries the ways that `requested` leaves open, against sums that are known; what they fuse with a norm, against
// backend.rms_norm of the known sum, bit for bit. residual: values of one token's sum. The result is the same on all ranks.
std::vector<SumProbe> probe_sums(Backend& backend, Communicator& comm, const std::string& requested, int64_t residual,
                                 const MakeSum& make);

// `host`, but for sums, which go through `sum`. Both outlive it.
std::unique_ptr<Communicator> make_device_communicator(Communicator& host, DeviceSum& sum);

}  // namespace pq
