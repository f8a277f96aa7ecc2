// Communicators that need no MPI: one rank alone, and ranks as threads of one process. The thread form is for tests and debuggers:
// it checks that ranks agree on what they call, and is not tuned.
#include "comm/communicator.h"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "base/error.h"
#include "comm/tree_sum.h"

namespace pq {
namespace {

class SelfCommunicator : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::string name() const override { return "self"; }
  void all_reduce_sum(float*, int64_t) override {}
  void all_gather(const void* data, int64_t bytes, void* out) override { copy(data, bytes, out); }
  void gather(const void* data, int64_t bytes, void* out) override { copy(data, bytes, out); }
  void broadcast(void*, int64_t) override {}
  void barrier() override {}

 private:
  static void copy(const void* data, int64_t bytes, void* out) {
    if (bytes > 0) std::memcpy(out, data, static_cast<size_t>(bytes));
  }
};

enum class Operation : int { all_reduce_sum, all_gather, gather, broadcast, barrier };

struct Call {
  Operation operation = Operation::barrier;
  int64_t count = 0;
  const void* in = nullptr;
  void* out = nullptr;
};

// Thrown into ranks that wait for one that failed; told apart from errors of their own.
struct WokenUp : Error {
  using Error::Error;
};

class ThreadTeam {
 public:
  explicit ThreadTeam(int size) : size_(size), calls_(static_cast<size_t>(size)) {}

  int size() const { return size_; }
  const Call& call(int rank) const { return calls_[static_cast<size_t>(rank)]; }

  // Publishes this rank's call and returns when every rank has published the same one; the calls stay until every rank waits again.
  void enter(int rank, const Call& call) {
    calls_[static_cast<size_t>(rank)] = call;
    wait();
    for (const Call& other : calls_) {
      if (other.operation != call.operation || other.count != call.count) {
        throw Error(ErrorKind::internal, "ranks called different collectives: operation " +
                                             std::to_string(static_cast<int>(call.operation)) + " with count " +
                                             std::to_string(call.count) + " on rank " + std::to_string(rank) + ", operation " +
                                             std::to_string(static_cast<int>(other.operation)) + " with count " +
                                             std::to_string(other.count) + " on another");
      }
    }
  }

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const int64_t generation = generation_;
    if (++arrived_ == size_) {
      arrived_ = 0;
      ++generation_;
      changed_.notify_all();
      return;
    }
    changed_.wait(lock, [&] { return generation_ != generation || gone_ >= 0; });
    if (generation_ == generation) {
      throw WokenUp(ErrorKind::peer, "rank " + std::to_string(gone_) + " failed or ended while others waited for it");
    }
  }

  // After this no barrier can complete.
  void leave(int rank) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (gone_ < 0) gone_ = rank;
    changed_.notify_all();
  }

 private:
  const int size_;
  std::vector<Call> calls_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrived_ = 0;
  int64_t generation_ = 0;
  int gone_ = -1;
};

class ThreadCommunicator : public Communicator {
 public:
  ThreadCommunicator(ThreadTeam* team, int rank) : team_(team), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return team_->size(); }
  std::string name() const override { return "threads"; }

  void all_reduce_sum(float* data, int64_t count) override {
    const int64_t ranks = size();
    if ((ranks & (ranks - 1)) != 0 || ranks > kMaxTreeInputs) {
      throw Error(ErrorKind::usage, "sums need a power of two of ranks, at most " + std::to_string(kMaxTreeInputs) + ", not " +
                                        std::to_string(ranks));
    }
    team_->enter(rank_, {Operation::all_reduce_sum, count, nullptr, data});
    // Each rank reduces its share of the elements in the buffers of all ranks.
    std::vector<float*> buffers;
    buffers.reserve(static_cast<size_t>(ranks));
    for (int rank = 0; rank < size(); ++rank) buffers.push_back(static_cast<float*>(team_->call(rank).out));
    if (ranks > 1) tree_sum(buffers.data(), size(), count * rank_ / ranks, count * (rank_ + 1) / ranks);
    team_->wait();
  }

  void all_gather(const void* data, int64_t bytes, void* out) override {
    team_->enter(rank_, {Operation::all_gather, bytes, data, out});
    concatenate(bytes, out);
    team_->wait();
  }

  void gather(const void* data, int64_t bytes, void* out) override {
    team_->enter(rank_, {Operation::gather, bytes, data, out});
    if (rank_ == 0) concatenate(bytes, out);
    team_->wait();
  }

  void broadcast(void* data, int64_t bytes) override {
    team_->enter(rank_, {Operation::broadcast, bytes, data, data});
    if (rank_ != 0 && bytes > 0) std::memcpy(data, team_->call(0).in, static_cast<size_t>(bytes));
    team_->wait();
  }

  void barrier() override {
    team_->enter(rank_, {});
    team_->wait();
  }

 private:
  void concatenate(int64_t bytes, void* out) const {
    if (bytes == 0) return;
    for (int other = 0; other < size(); ++other) {
      std::memcpy(static_cast<char*>(out) + other * bytes, team_->call(other).in, static_cast<size_t>(bytes));
    }
  }

  ThreadTeam* team_;
  const int rank_;
};

}  // namespace

std::unique_ptr<Communicator> make_self_communicator() { return std::make_unique<SelfCommunicator>(); }

void run_threads(int ranks, const std::function<void(Communicator&)>& body) {
  if (ranks < 1) throw Error(ErrorKind::usage, "threads need at least one rank, not " + std::to_string(ranks));
  ThreadTeam team(ranks);
  std::vector<std::exception_ptr> errors(static_cast<size_t>(ranks));
  std::vector<char> woken(static_cast<size_t>(ranks), 0);
  std::exception_ptr start_error;
  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(ranks));
  try {
    for (int rank = 0; rank < ranks; ++rank) {
      threads.emplace_back([&, rank] {
        try {
          ThreadCommunicator comm(&team, rank);
          body(comm);
        } catch (const WokenUp&) {
          errors[static_cast<size_t>(rank)] = std::current_exception();
          woken[static_cast<size_t>(rank)] = 1;
        } catch (...) {
          errors[static_cast<size_t>(rank)] = std::current_exception();
        }
        team.leave(rank);
      });
    }
  } catch (...) {
    start_error = std::current_exception();
    team.leave(static_cast<int>(threads.size()));
  }
  for (std::thread& thread : threads) thread.join();
  if (start_error) std::rethrow_exception(start_error);
  for (const char secondary : {0, 1}) {
    for (int rank = 0; rank < ranks; ++rank) {
      if (errors[static_cast<size_t>(rank)] && woken[static_cast<size_t>(rank)] == secondary) {
        std::rethrow_exception(errors[static_cast<size_t>(rank)]);
      }
    }
  }
}

}  // namespace pq
