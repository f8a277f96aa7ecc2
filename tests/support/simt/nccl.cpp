// The emulated NCCL: communicators that do not block, sums that meet in host memory. A sum recorded into a graph holds its
// communicator until the graph is destroyed, as NCCL's do; ending one before that is counted, where the library would not return.
#include <nccl.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "comm/nccl_library.h"

namespace {

std::mutex mutex;
std::condition_variable changed;
simt::NcclFaults faults;
simt::NcclCalls calls;

// The ranks of one id. A call is complete when all have left their values, and over when all have read them.
struct Group {
  int ranks = 0;
  int arrived = 0;
  int leaving = 0;
  bool aborted = false;
  std::vector<std::vector<float>> values;
};

}  // namespace

struct simt_nccl {
  std::shared_ptr<Group> group;
  int rank = 0;
  int polls = 0;  // to come that find a call in progress
  // Sums in graphs; outlives the communicator that is ended too early.
  std::shared_ptr<std::atomic<int64_t>> recorded = std::make_shared<std::atomic<int64_t>>(0);
};

namespace {

std::map<uint64_t, std::shared_ptr<Group>>& groups() {
  static std::map<uint64_t, std::shared_ptr<Group>> all;
  return all;
}

// All ranks' values, [ranks][count]; nothing once a rank has aborted.
std::vector<std::vector<float>> exchange(Group& group, int rank, const float* from, size_t count) {
  std::unique_lock<std::mutex> lock(mutex);
  changed.wait(lock, [&] { return group.leaving == 0 || group.aborted; });
  group.values[static_cast<size_t>(rank)].assign(from, from + count);
  if (++group.arrived == group.ranks) {
    group.arrived = 0;
    group.leaving = group.ranks;
  }
  changed.notify_all();
  changed.wait(lock, [&] { return group.leaving > 0 || group.aborted; });
  if (group.aborted) return {};
  const std::vector<std::vector<float>> all = group.values;
  --group.leaving;
  changed.notify_all();
  return all;
}

ncclResult_t submit(ncclComm_t comm, cudaStream_t stream, const float* from, size_t count,
                    std::function<void(const std::vector<std::vector<float>>&)> place) {
  simt::NcclFaults now;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    now = faults;
  }
  if (now.unending) return ncclInProgress;
  const std::shared_ptr<Group> group = comm->group;
  const int rank = comm->rank;
  std::shared_ptr<void> held;
  if (stream->capturing) {
    ++*comm->recorded;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      ++calls.recorded;
    }
    held = std::shared_ptr<void>(nullptr, [recorded = comm->recorded](void*) {
      --*recorded;
      const std::lock_guard<std::mutex> lock(mutex);
      --calls.recorded;
    });
  }
  simt::submit(stream, [=] {
    (void)held;
    bool stuck = false;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      stuck = faults.stuck;
    }
    if (stuck) {
      stream->busy = [group] {
        const std::lock_guard<std::mutex> lock(mutex);
        return !group->aborted;
      };
      return;
    }
    const auto all = exchange(*group, rank, from, count);
    if (!all.empty()) place(all);
  });
  comm->polls = now.polls;
  return now.polls > 0 ? ncclInProgress : ncclSuccess;
}

void end(ncclComm_t comm, bool abort) {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    ++(abort ? calls.aborted : calls.destroyed);
    calls.endless += *comm->recorded > 0 ? 1 : 0;
    comm->group->aborted |= abort;
    changed.notify_all();
  }
  delete comm;
}

}  // namespace

ncclResult_t ncclGetVersion(int* version) {
  *version = 22800;
  return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static std::atomic<uint64_t> last{0};
  const uint64_t value = ++last;
  *id = {};
  std::memcpy(id->internal, &value, sizeof value);
  return ncclSuccess;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t* config) {
  // A communicator that blocks waits for ranks that are gone.
  if (config->blocking != 0) return ncclInvalidUsage;
  uint64_t value = 0;
  std::memcpy(&value, id.internal, sizeof value);
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<Group>& group = groups()[value];
  if (group == nullptr) group = std::make_shared<Group>();
  group->ranks = ranks;
  group->values.resize(static_cast<size_t>(ranks));
  *comm = new simt_nccl{.group = group, .rank = rank};
  return ncclInProgress;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  const std::lock_guard<std::mutex> lock(mutex);
  const bool unfinished = faults.unending || comm->polls > 0;
  if (comm->polls > 0) --comm->polls;
  *state = faults.asynchronous ? ncclRemoteError : unfinished ? ncclInProgress : ncclSuccess;
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  end(comm, true);
  return ncclSuccess;
}
ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  const std::lock_guard<std::mutex> lock(mutex);
  return comm->group->aborted ? ncclRemoteError : ncclInProgress;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  end(comm, false);
  return ncclSuccess;
}
ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t, ncclRedOp_t, ncclComm_t comm,
                           cudaStream_t stream) {
  return submit(comm, stream, static_cast<const float*>(from), count, [to, count](const auto& all) {
    // From the last rank on: no order is promised.
    for (size_t i = 0; i < count; ++i) {
      float sum = 0.0f;
      for (size_t r = all.size(); r-- > 0;) sum += all[r][i];
      static_cast<float*>(to)[i] = sum;
    }
  });
}
ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t, ncclComm_t comm, cudaStream_t stream) {
  return submit(comm, stream, static_cast<const float*>(from), count, [to, count](const auto& all) {
    for (size_t r = 0; r < all.size(); ++r) std::memcpy(static_cast<float*>(to) + r * count, all[r].data(), 4 * count);
  });
}
const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclRemoteError ? "remote process exited or there was a network error" : "internal error";
}
const char* ncclGetLastError(ncclComm_t) { return "socket closed\nby peer"; }

namespace simt {

void set_nccl(const NcclFaults& next) {
  const std::lock_guard<std::mutex> lock(mutex);
  faults = next;
  const int64_t recorded = calls.recorded;
  calls = {.recorded = recorded};
}
NcclCalls nccl_calls() {
  const std::lock_guard<std::mutex> lock(mutex);
  return calls;
}

}  // namespace simt

namespace pq {

const NcclLibrary& nccl_library() {
  static const NcclLibrary there{ncclGetVersion, ncclGetUniqueId,    ncclCommInitRankConfig, ncclCommGetAsyncError,
                                 ncclCommAbort,  ncclCommFinalize,   ncclCommDestroy,        ncclAllReduce,
                                 ncclAllGather,  ncclGetErrorString, ncclGetLastError,       {}};
  static const NcclLibrary gone{.problem = "libnccl.so.2: no such file"};
  const std::lock_guard<std::mutex> lock(mutex);
  return faults.missing ? gone : there;
}

}  // namespace pq
