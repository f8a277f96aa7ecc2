// The functions of rank_devices.h.
#include "app/rank_devices.h"

#include <fmt/format.h>

#include <algorithm>

namespace pq {

int device_of_rank(int local_rank, int visible) { return visible > 0 ? local_rank % visible : 0; }

int sharers(const std::vector<DeviceIdentity>& all, int rank) {
  const DeviceIdentity& mine = all[static_cast<size_t>(rank)];
  return mine == DeviceIdentity{} ? 1 : static_cast<int>(std::count(all.begin(), all.end(), mine));
}

std::string shared_device_problem(const std::vector<DeviceIdentity>& all, int rank) {
  const DeviceIdentity& mine = all[static_cast<size_t>(rank)];
  const auto first = std::find(all.begin(), all.end(), mine) - all.begin();
  if (mine == DeviceIdentity{} || first == rank) return {};
  return fmt::format("ranks {} and {} have one GPU; start fewer ranks, show each its own device, or say --share-device", first,
                     rank);
}

}  // namespace pq
