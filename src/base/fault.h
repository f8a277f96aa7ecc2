// Faults on demand, for tests through the real binaries: PQ_FAULT names what happens to which rank where; tests/failure/README.md
// has the grammar. PQ_FAULT_MARK names a file that is made at that moment. Nothing but a load of one flag when the variable is not
// set.
#pragma once

#include <atomic>

#include "base/activity.h"

namespace pq {

extern std::atomic<bool> fault_armed;
inline bool fault_is_armed() { return fault_armed.load(std::memory_order_relaxed); }

// Reads PQ_FAULT for this rank. Throws ErrorKind::usage when it is set and means nothing.
void arm_fault(int rank);

// Called on every report of an activity while armed; acts once.
void act_on_fault(const Activity& activity);

}  // namespace pq
