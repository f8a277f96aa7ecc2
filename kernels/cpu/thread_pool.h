// The threads of one rank: a loop over independent indices, shared out as they are free. What is independent, and that results do
// not depend on who computed them, is left to the callers.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace pq {

class ThreadPool {
 public:
  // `threads` >= 1 counts the caller, who takes part in every loop. pin: one CPU a thread, the caller's first; empty leaves them to
  // the system. Threads without work sleep, after some tens of microseconds when `spin`. Throws ErrorKind::environment when a
  // thread cannot be started.
  ThreadPool(int threads, const std::vector<int>& pin, bool spin);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // body(index, worker) for every index in [0, count), count < 2^32, in any order; worker in [0, threads()) is not shared at one
  // time. Returns when all have ended, then rethrows the exception of the lowest index that threw. Called by one thread at a time,
  // and not from a body.
  template <typename Body>
  void parallel_for(int64_t count, const Body& body) {
    if (workers_.empty() || count == 1) {
      for (int64_t i = 0; i < count; ++i) body(i, 0);
      return;
    }
    run(count, [](const void* self, int64_t index, int worker) { (*static_cast<const Body*>(self))(index, worker); }, &body);
  }

 private:
  using Call = void (*)(const void* body, int64_t index, int worker);

  void run(int64_t count, Call call, const void* body);
  // Works until the loop has no index left to take.
  void take_part(int worker);
  void worker_main(int worker);

  // The loop: set before its indices are offered, and stable while one that was taken has not ended.
  Call call_ = nullptr;
  const void* body_ = nullptr;
  int64_t count_ = 0;

  // Upper half: number of the loop; lower half: indices not taken yet. One word, so that a thread that slept through a loop cannot
  // take an index of it.
  alignas(64) std::atomic<uint64_t> offered_{0};
  alignas(64) std::atomic<int64_t> left_{0};  // indices that have not ended
  alignas(64) std::atomic<uint32_t> bell_{0};
  std::atomic<bool> stop_{false};
  const int spins_;

  std::mutex failure_mutex_;
  int64_t failed_index_ = 0;
  std::exception_ptr failure_;

  std::vector<std::thread> workers_;
};

}  // namespace pq
