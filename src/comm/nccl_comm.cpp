// The NCCL sum of nccl_comm.h: a communicator that never blocks, polled for errors, aborted when ranks do not come.
#include "comm/nccl_comm.h"

#include <nccl.h>
#include <sched.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <string>
#include <vector>

#include "base/error.h"
#include "comm/nccl_library.h"

namespace pq {
namespace {

constexpr int64_t kGatherFloats = int64_t{1} << 20;
// Putting a sum on its way takes less, and a sleep takes longer: it would count in the trial of a sum (comm/sum_choice.h), which
// graphs do not pay.
constexpr double kPolledSeconds = 200e-6;

const NcclLibrary& nccl() { return nccl_library(); }

class NcclSum : public DeviceSum {
 public:
  NcclSum(const NcclDevice& device, const RankExchange& exchange, double time_limit_seconds)
      : device_(device), rank_(exchange.rank), ranks_(exchange.ranks), limit_seconds_(time_limit_seconds) {
    // The id of rank 0 and whether every rank can go on, before anybody waits inside NCCL.
    struct Start {
      ncclUniqueId id;
      char ready;
    };
    Start mine{};
    std::string problem = nccl().problem;
    if (problem.empty()) {
      try {
        if (exchange.rank == 0) call(nccl().get_unique_id(&mine.id), "ncclGetUniqueId");
        if (ranks_ > 2) gathered_ = device_.allocate(4 * kGatherFloats * ranks_);
      } catch (const Error& error) {
        problem = error.what();
      }
    }
    mine.ready = problem.empty() ? 1 : 0;
    std::vector<Start> all(static_cast<size_t>(ranks_));
    exchange.all_gather(&mine, sizeof mine, all.data());
    if (!problem.empty()) throw Error(ErrorKind::environment, problem);
    for (size_t r = 0; r < all.size(); ++r) {
      if (all[r].ready == 0) throw Error(ErrorKind::environment, "rank " + std::to_string(r) + " has no NCCL");
    }
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    try {
      call(nccl().init(&comm_, ranks_, all[0].id, rank_, &config), "ncclCommInitRankConfig");
      wait_until_ready("ncclCommInitRankConfig");
    } catch (...) {
      NcclSum::abort();
      throw;
    }
  }
  NcclSum(const NcclSum&) = delete;
  NcclSum& operator=(const NcclSum&) = delete;
  ~NcclSum() override {
    if (comm_ == nullptr) return;
    // NCCL ends a communicator when no graph holds a sum of it. One that runs is freed when it has run, which an abort makes it do:
    // waiting for it here would be waiting for a rank that does not come.
    device_.forget_graphs();
    // Orderly where all is well; the others may be gone.
    try {
      call(nccl().finalize(comm_), "ncclCommFinalize");
      wait_until_ready("ncclCommFinalize");
      nccl().destroy(comm_);
    } catch (const Error&) {
      NcclSum::abort();
    }
  }

  std::string name() const override { return "nccl"; }

  void all_reduce_sum(float* data, int64_t count) override {
    require(comm_ != nullptr, "a sum by NCCL after it was aborted");
    const auto stream = static_cast<cudaStream_t>(device_.stream);
    if (ranks_ == 2) {
      if (count > 0)
        run(nccl().all_reduce(data, data, static_cast<size_t>(count), ncclFloat32, ncclSum, comm_, stream), "ncclAllReduce");
      return;
    }
    for (int64_t first = 0; first < count; first += kGatherFloats) {
      const int64_t length = count - first < kGatherFloats ? count - first : kGatherFloats;
      float* parts = gathered_.as<float>();
      run(nccl().all_gather(data + first, parts, static_cast<size_t>(length), ncclFloat32, comm_, stream), "ncclAllGather");
      device_.add_ranks(data + first, parts, ranks_, length);
    }
  }

  void check() override {
    if (comm_ == nullptr) throw Error(ErrorKind::peer, "NCCL was aborted");
    ncclResult_t state = ncclSuccess;
    const ncclResult_t result = nccl().async_error(comm_, &state);
    if (result == ncclSuccess && (state == ncclSuccess || state == ncclInProgress)) return;
    const std::string why = text(result != ncclSuccess ? result : state, "a sum over ranks");
    abort();
    throw Error(ErrorKind::peer, why);
  }

  void abort() override {
    // What is being recorded waits for nobody, and holds the communicator until it ends, as an error or not.
    if (comm_ == nullptr || !device_.forget_graphs()) return;
    nccl().abort(comm_);
    comm_ = nullptr;
  }

 private:
  std::string text(ncclResult_t result, const char* what) const {
    std::string message = std::string("NCCL: ") + what + " on rank " + std::to_string(rank_) + ": " + nccl().error_string(result);
    const char* detail = nccl().last_error(comm_);
    if (detail != nullptr && *detail != '\0') message += " (" + std::string(detail) + ")";
    // One line, whatever the library puts into it.
    for (char& c : message) c = c == '\n' ? ' ' : c;
    return message;
  }

  void call(ncclResult_t result, const char* what) const {
    if (result == ncclSuccess || result == ncclInProgress) return;
    const bool refused = result == ncclInvalidUsage || result == ncclInvalidArgument;
    throw Error(refused ? ErrorKind::environment : ErrorKind::peer, text(result, what));
  }

  // A communicator that does not block may still be at work when a call returns.
  void run(ncclResult_t result, const char* what) {
    call(result, what);
    if (result == ncclInProgress) wait_until_ready(what);
  }

  void wait_until_ready(const char* what) {
    const auto start = std::chrono::steady_clock::now();
    for (;;) {
      ncclResult_t state = ncclInProgress;
      call(nccl().async_error(comm_, &state), what);
      if (state == ncclSuccess) return;
      call(state, what);
      const double waited = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      if (waited > limit_seconds_) {
        NcclSum::abort();  // the constructor waits here too
        throw Error(ErrorKind::peer, std::string("NCCL: ") + what + " on rank " + std::to_string(rank_) + " did not end within " +
                                         std::to_string(static_cast<int64_t>(limit_seconds_)) + " s");
      }
      if (waited > kPolledSeconds)
        usleep(50);
      else
        sched_yield();
    }
  }

  const NcclDevice device_;
  const int rank_;
  const int ranks_;
  const double limit_seconds_;
  ncclComm_t comm_ = nullptr;
  Buffer gathered_;
};

}  // namespace

std::unique_ptr<DeviceSum> make_nccl_sum(const NcclDevice& device, const RankExchange& exchange, double time_limit_seconds) {
  return std::make_unique<NcclSum>(device, exchange, time_limit_seconds);
}

}  // namespace pq
