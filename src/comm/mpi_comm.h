// Collectives between MPI ranks, host memory to host memory: through shared memory inside a node, by MPI calls cut into pieces that
// an int can count between nodes. Sums are pq's own, because MPI_Allreduce may add in any order. Life of MPI is left to session.h.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <memory>

#include "comm/communicator.h"

namespace pq {

// Throws ErrorKind::peer with MPI's text for `code` when `result` is not MPI_SUCCESS: "MPI_Send: MPI_ERR_TRUNCATE: ...".
void check_mpi(int result, const char* call);

// The largest piece handed to one MPI call.
inline constexpr int64_t kMpiPieceBytes = int64_t{1} << 30;

// The defaults are smaller only in tests.
struct MpiOptions {
  int64_t piece_bytes = kMpiPieceBytes;      // at least 4
  int64_t window_bytes = kWindowPieceBytes;  // rounded up to pages; 0: no shared memory, MPI for everything
  int node = 0;                              // ranks with different numbers count as on different nodes
};

// Duplicates `parent` (collective) so that its messages meet nobody else's; frees the copy on destruction unless MPI has been
// finalised. Shared memory is used when every node holds the same number of ranks, more than one and next to each other in rank
// order; name() says "mpi, shared window" or, with several nodes, "mpi, shared window in each of N nodes", else "mpi".
// all_reduce_sum throws ErrorKind::usage when size() is not a power of two. Buffers of one call must not overlap.
std::unique_ptr<Communicator> make_mpi_communicator(MPI_Comm parent, const MpiOptions& options = {});

}  // namespace pq
