// Which GPU a rank takes and who else has it: functions of what all ranks say. Opening the device and the exchange are left to
// model_loading.h.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace pq {

// The UUID of a rank's GPU; zeros on the CPU.
using DeviceIdentity = std::array<uint8_t, 16>;

// Index among the `visible` devices of a rank: its place on its node, modulo their number; 0 where none is visible.
int device_of_rank(int local_rank, int visible);

// Ranks, of all by rank, that have the GPU of `rank`, itself included; 1 on the CPU.
int sharers(const std::vector<DeviceIdentity>& all, int rank);

// Empty, or the line that names an earlier rank with the GPU of `rank`.
std::string shared_device_problem(const std::vector<DeviceIdentity>& all, int rank);

}  // namespace pq
