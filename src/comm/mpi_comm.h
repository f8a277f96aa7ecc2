// Collectives over MPI, host memory to host memory. The sum is pq's own recursive doubling, because MPI_Allreduce may add in any
// order; the rest maps to MPI calls cut into pieces that an int can count. Life of MPI is left to session.h.
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

// Duplicates `parent` (collective) so that its messages meet nobody else's; frees the copy on destruction unless MPI has been
// finalised. all_reduce_sum throws ErrorKind::usage when size() is not a power of two. Buffers of one call must not overlap.
// `piece_bytes` (at least 4) is smaller than the default only in tests.
std::unique_ptr<Communicator> make_mpi_communicator(MPI_Comm parent, int64_t piece_bytes = kMpiPieceBytes);

}  // namespace pq
