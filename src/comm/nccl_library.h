// The functions of libnccl.so.2 by name: a library that is opened when it is asked for, so that neither the plugin nor a test needs
// it.
#pragma once

#include <nccl.h>

#include <string>

namespace pq {

struct NcclLibrary {
  decltype(&ncclGetVersion) get_version = nullptr;
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclCommInitRankConfig) init = nullptr;
  decltype(&ncclCommGetAsyncError) async_error = nullptr;
  decltype(&ncclCommAbort) abort = nullptr;
  decltype(&ncclCommFinalize) finalize = nullptr;
  decltype(&ncclCommDestroy) destroy = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclAllGather) all_gather = nullptr;
  decltype(&ncclGetErrorString) error_string = nullptr;
  decltype(&ncclGetLastError) last_error = nullptr;
  std::string problem;  // why there is no such library, or none of a version that does; empty: all functions are there
};

// Opened once in a process.
const NcclLibrary& nccl_library();

}  // namespace pq
