// The opening of nccl_library.h.
#include "comm/nccl_library.h"

#include <dlfcn.h>

#include <type_traits>

namespace pq {
namespace {

constexpr int kOldestNccl = 21400;  // the first with communicators that do not block

NcclLibrary open_nccl() {
  NcclLibrary nccl;
  // Never closed: its threads do not outlive being unloaded.
  void* library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    nccl.problem = dlerror();
    return nccl;
  }
  bool complete = true;
  const auto find = [&](auto* function, const char* name) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(dlsym(library, name));
    complete = complete && *function != nullptr;
  };
  find(&nccl.get_version, "ncclGetVersion");
  find(&nccl.get_unique_id, "ncclGetUniqueId");
  find(&nccl.init, "ncclCommInitRankConfig");
  find(&nccl.async_error, "ncclCommGetAsyncError");
  find(&nccl.abort, "ncclCommAbort");
  find(&nccl.finalize, "ncclCommFinalize");
  find(&nccl.destroy, "ncclCommDestroy");
  find(&nccl.all_reduce, "ncclAllReduce");
  find(&nccl.all_gather, "ncclAllGather");
  find(&nccl.error_string, "ncclGetErrorString");
  find(&nccl.last_error, "ncclGetLastError");
  int version = 0;
  if (nccl.get_version != nullptr) nccl.get_version(&version);
  if (!complete || version < kOldestNccl)
    nccl.problem = "libnccl.so.2 is of version " + std::to_string(version) + "; pq needs 21400 (2.14)";
  return nccl;
}

}  // namespace

const NcclLibrary& nccl_library() {
  static const NcclLibrary opened = open_nccl();
  return opened;
}

}  // namespace pq
