// The sums over ranks that the plugin offers, by name.
#pragma once

#include <memory>
#include <string>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/device_sum.h"

namespace pq::cuda {

// "nccl", "p2p" or "host". A sum that waits for longer than the limit for another rank gives up. Collective. Throws
// ErrorKind::environment where it is impossible here. The backend's waits watch the sum until it is gone.
std::unique_ptr<DeviceSum> make_sum(CudaBackend& backend, const std::string& method, const RankExchange& exchange,
                                    double time_limit_seconds);

}  // namespace pq::cuda
