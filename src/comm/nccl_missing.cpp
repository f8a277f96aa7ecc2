// In place of nccl_comm.cpp where the build has no nccl.h.
#include "base/error.h"
#include "comm/nccl_comm.h"

namespace pq {

std::unique_ptr<DeviceSum> make_nccl_sum(const NcclDevice&, const RankExchange&, double) {
  throw Error(ErrorKind::environment, "this build has no NCCL: nccl.h was not found");
}

}  // namespace pq
