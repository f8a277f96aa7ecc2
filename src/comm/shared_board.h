// Puts the board of base/activity.h into memory that the ranks of a node share. What is written there is left to the ranks.
#pragma once

#include <mpi.h>

namespace pq {

// Collective over `node`. True when every rank of it now reports to one board; where shared memory is refused, or the ranks do not
// see each other's processes (containers), each keeps its own.
bool share_job_board(MPI_Comm node);

}  // namespace pq
