// Stands in for NCCL's header under emulation: the part of its interface that src/comm/nccl_*.cpp use, with NVIDIA's names. Ranks
// are threads of this process. nccl.cpp has what the functions do, and what they are told to do wrong.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

enum ncclResult_t {
  ncclSuccess = 0,
  ncclUnhandledCudaError = 1,
  ncclSystemError = 2,
  ncclInternalError = 3,
  ncclInvalidArgument = 4,
  ncclInvalidUsage = 5,
  ncclRemoteError = 6,
  ncclInProgress = 7,
};
enum ncclDataType_t { ncclFloat32 = 7 };
enum ncclRedOp_t { ncclSum = 0 };
struct ncclUniqueId {
  char internal[128];
};
struct simt_nccl;
using ncclComm_t = simt_nccl*;
struct ncclConfig_t {
  int blocking;
};
#define NCCL_CONFIG_INITIALIZER \
  { 1 }

ncclResult_t ncclGetVersion(int* version);
ncclResult_t ncclGetUniqueId(ncclUniqueId* id);
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t* config);
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state);
ncclResult_t ncclCommAbort(ncclComm_t comm);
ncclResult_t ncclCommFinalize(ncclComm_t comm);
ncclResult_t ncclCommDestroy(ncclComm_t comm);
ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm,
                           cudaStream_t stream);
ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t type, ncclComm_t comm, cudaStream_t stream);
const char* ncclGetErrorString(ncclResult_t result);
const char* ncclGetLastError(ncclComm_t comm);

namespace simt {

// What the library does from now on, for all ranks.
struct NcclFaults {
  bool missing = true;        // there is none
  bool asynchronous = false;  // an error that only polling tells
  bool unending = false;      // calls stay in progress for ever
  int polls = 0;              // of a call, that find it in progress
  bool stuck = false;         // sums wait for a rank that never comes; the stream is busy until the communicator is aborted
};
void set_nccl(const NcclFaults& faults);

// Since the last set_nccl.
struct NcclCalls {
  int64_t recorded = 0;   // sums that graphs hold now
  int64_t destroyed = 0;  // communicators ended in order
  int64_t aborted = 0;
  int64_t endless = 0;  // of both, those that a graph held: NCCL never returns from them
};
NcclCalls nccl_calls();

}  // namespace simt
