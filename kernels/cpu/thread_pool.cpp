// The loop of thread_pool.h over one atomic word, with a short spin before threads sleep on a futex.
#include "kernels/cpu/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <string>
#include <system_error>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/error.h"

namespace pq {
namespace {

// About 50 us on processors whose pause takes 140 cycles: longer than the pause between two operations of a step.
constexpr int kSpins = 1000;

constexpr uint64_t kIndexMask = 0xffffffffu;

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

// Advice: a CPU that was taken away since the plan was made is no reason to stop.
void pin_to(pthread_t thread, int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(thread, sizeof set, &set);
}

}  // namespace

ThreadPool::ThreadPool(int threads, const std::vector<int>& pin, bool spin) : spins_(spin ? kSpins : 0) {
  require(threads >= 1, "a thread pool needs a thread");
  require(pin.empty() || pin.size() == static_cast<size_t>(threads), "a pinned thread pool needs a CPU a thread");
  if (!pin.empty()) pin_to(pthread_self(), pin.front());
  try {
    for (int worker = 1; worker < threads; ++worker) {
      workers_.emplace_back([this, worker] { worker_main(worker); });
      if (!pin.empty()) pin_to(workers_.back().native_handle(), pin[static_cast<size_t>(worker)]);
    }
  } catch (const std::system_error& error) {
    stop_ = true;
    bell_.fetch_add(1);
    bell_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    throw Error(ErrorKind::environment, "thread " + std::to_string(workers_.size() + 1) + " of " + std::to_string(threads) +
                                            " cannot be started (" + error.what() + "); ask for fewer with -t");
  }
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  bell_.fetch_add(1);
  bell_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int64_t count, Call call, const void* body) {
  if (count <= 0) return;
  require(static_cast<uint64_t>(count) <= kIndexMask, "a parallel loop of 2^32 indices or more");
  call_ = call;
  body_ = body;
  count_ = count;
  failure_ = nullptr;
  left_.store(count, std::memory_order_relaxed);
  const uint64_t loop = (offered_.load(std::memory_order_relaxed) >> 32) + 1;
  offered_.store(loop << 32 | static_cast<uint64_t>(count), std::memory_order_release);
  bell_.fetch_add(1);
  bell_.notify_all();
  take_part(0);
  for (int spin = 0; left_.load(std::memory_order_acquire) != 0; ++spin) {
    if (spin < spins_) {
      pause();
      continue;
    }
    const int64_t left = left_.load(std::memory_order_acquire);
    if (left != 0) left_.wait(left, std::memory_order_acquire);
  }
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void ThreadPool::take_part(int worker) {
  uint64_t offered = offered_.load(std::memory_order_acquire);
  while ((offered & kIndexMask) != 0) {
    if (!offered_.compare_exchange_weak(offered, offered - 1, std::memory_order_acquire)) continue;
    const int64_t index = count_ - static_cast<int64_t>(offered & kIndexMask);
    try {
      call_(body_, index, worker);
    } catch (...) {
      const std::lock_guard lock(failure_mutex_);
      if (!failure_ || index < failed_index_) {
        failure_ = std::current_exception();
        failed_index_ = index;
      }
    }
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_one();
    offered = offered_.load(std::memory_order_acquire);
  }
}

void ThreadPool::worker_main(int worker) {
  for (;;) {
    const uint32_t bell = bell_.load();
    if (stop_) return;
    take_part(worker);
    int spin = 0;
    while (spin < spins_ && bell_.load(std::memory_order_relaxed) == bell) {
      pause();
      ++spin;
    }
    bell_.wait(bell);
  }
}

}  // namespace pq
