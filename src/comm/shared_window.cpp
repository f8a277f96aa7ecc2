// The window of shared_window.h. Waiting has three stages: a bounded spin, yielding the processor, sleeping on a futex.
#include "comm/shared_window.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <ctime>
#include <exception>
#include <memory>
#include <new>
#include <utility>

#include "comm/mpi_comm.h"

namespace pq {
namespace {

constexpr int64_t kPage = 4096;
// About 20 us. Ranks that compute the same share arrive within it.
constexpr int kSpins = 500;
// Longer than rank 0 takes to sample a token, so that a worker is awake when the next step comes.
constexpr auto kAwake = std::chrono::milliseconds(2);
// A sleeper is woken by the rank it waits for; it wakes by itself only to let `during_long_waits` look around.
constexpr int64_t kFirstSleepNs = 1'000'000;
constexpr int64_t kLongestSleepNs = 16'000'000;

bool reached(uint32_t published, uint32_t sequence) { return static_cast<int32_t>(published - sequence) >= 0; }

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Processors that the ranks of the node may run on, all together.
int processors(MPI_Comm node) {
  cpu_set_t mine, all;
  CPU_ZERO(&mine);
  CPU_ZERO(&all);
  sched_getaffinity(0, sizeof mine, &mine);
  check_mpi(MPI_Allreduce(&mine, &all, sizeof mine, MPI_BYTE, MPI_BOR, node), "MPI_Allreduce");
  return CPU_COUNT(&all);
}

// The first whole page of a rank's part. Every process maps the window at a page of its own, so all of them find the same bytes.
void* first_page(void* part) {
  size_t space = 2 * kPage;
  return std::align(kPage, kPage, part, space);
}

static_assert(std::atomic<uint32_t>::is_always_lock_free, "counters are shared between processes");

}  // namespace

std::unique_ptr<SharedWindow> SharedWindow::try_make(MPI_Comm node, int64_t piece_bytes,
                                                     std::function<void(int)> during_long_waits) {
  std::unique_ptr<SharedWindow> window(new SharedWindow(node, piece_bytes, std::move(during_long_waits)));
  int mine = window->allocate() ? 1 : 0, all = 0;
  check_mpi(MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_MIN, node), "MPI_Allreduce");
  if (all == 1) return window;
  // Freeing is collective, and some rank has nothing to free.
  window->window_ = MPI_WIN_NULL;
  return nullptr;
}

SharedWindow::SharedWindow(MPI_Comm node, int64_t piece_bytes, std::function<void(int)> during_long_waits)
    : node_(node), piece_bytes_((piece_bytes + kPage - 1) / kPage * kPage), during_long_waits_(std::move(during_long_waits)) {}

bool SharedWindow::allocate() {
  check_mpi(MPI_Comm_set_errhandler(node_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_mpi(MPI_Comm_rank(node_, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(node_, &size_), "MPI_Comm_size");
  // With more ranks than processors a spinning rank keeps the one it waits for from running.
  spins_ = size_ <= processors(node_) ? kSpins : 0;

  // Each rank's part on pages of its own, so that it lies in the memory next to the rank.
  MPI_Info info = MPI_INFO_NULL;
  check_mpi(MPI_Info_create(&info), "MPI_Info_create");
  check_mpi(MPI_Info_set(info, "alloc_shared_noncontig", "true"), "MPI_Info_set");
  // MPI aligns to 8 bytes only; one page more than is used makes room for the rest.
  const MPI_Aint bytes = 2 * kPage + 2 * piece_bytes_;
  void* base = nullptr;
  const int result = MPI_Win_allocate_shared(bytes, 1, info, node_, &base, &window_);
  MPI_Info_free(&info);
  if (result != MPI_SUCCESS) {
    window_ = MPI_WIN_NULL;
    return false;
  }
  // Loads and stores take the place of MPI's calls inside one access epoch that lasts as long as the window.
  check_mpi(MPI_Win_lock_all(MPI_MODE_NOCHECK, window_), "MPI_Win_lock_all");
  std::memset(base, 0, static_cast<size_t>(bytes));
  new (first_page(base)) Counter();
  for (int other = 0; other < size_; ++other) {
    MPI_Aint other_bytes = 0;
    int unit = 0;
    void* address = nullptr;
    check_mpi(MPI_Win_shared_query(window_, other, &other_bytes, &unit, &address), "MPI_Win_shared_query");
    counters_.push_back(static_cast<Counter*>(first_page(address)));
  }
  return true;
}

SharedWindow::~SharedWindow() {
  int finalised = 0;
  if (std::uncaught_exceptions() > 0 || MPI_Finalized(&finalised) != MPI_SUCCESS || finalised) return;
  if (window_ != MPI_WIN_NULL) {
    MPI_Win_unlock_all(window_);
    MPI_Win_free(&window_);
  }
  MPI_Comm_free(&node_);
}

std::byte* SharedWindow::area(int other) const {
  return reinterpret_cast<std::byte*>(counters_[static_cast<size_t>(other)]) + kPage + parity_ * piece_bytes_;
}

std::byte* SharedWindow::begin_piece() {
  // A rank that has published the piece before has done with the one before that, which lies where the next one goes.
  for (int other = 0; other < size_; ++other) wait_until(other, last_piece_);
  last_piece_ = sequence_ + 1;
  if (!settled_) parity_ ^= 1;
  settled_ = false;
  return area(rank_);
}

void SharedWindow::publish() {
  Counter& counter = *counters_[static_cast<size_t>(rank_)];
  counter.processor.store(sched_getcpu(), std::memory_order_relaxed);
  // In one order with the sleeper's own two steps (sequentially consistent): it sees this number or is seen here.
  counter.published.store(++sequence_);
  if (counter.sleepers.load() != 0)
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&counter.published), FUTEX_WAKE, size_, nullptr, nullptr, 0);
}

void SharedWindow::wait(int other) { wait_until(other, sequence_); }

void SharedWindow::wait_all() {
  for (int other = 0; other < size_; ++other) wait_until(other, sequence_);
}

// A peer that has died is not noticed here: the watchdog and the launcher end the job.
void SharedWindow::wait_until(int other, uint32_t sequence) {
  if (other == rank_) return;
  Counter& counter = *counters_[static_cast<size_t>(other)];
  if (reached(counter.published.load(std::memory_order_acquire), sequence) || wait_awake(other, sequence)) return;
  for (int64_t limit_ns = kFirstSleepNs;; limit_ns = std::min(2 * limit_ns, kLongestSleepNs)) {
    sleep(counter, sequence, limit_ns);
    if (reached(counter.published.load(std::memory_order_acquire), sequence)) return;
    during_long_waits_(other);
  }
}

// False when sleeping is better: the wait is long, or the other rank shares the processor while there are enough for all. Two ranks
// that only yield to each other stay on one processor for a long time, with another one idle; a rank that is woken goes there.
bool SharedWindow::wait_awake(int other, uint32_t sequence) {
  const Counter& counter = *counters_[static_cast<size_t>(other)];
  const auto shares_processor = [&] { return spins_ > 0 && counter.processor.load(std::memory_order_relaxed) == sched_getcpu(); };
  if (shares_processor()) return false;
  for (int spin = 0; spin < spins_; ++spin) {
    pause_briefly();
    if (reached(counter.published.load(std::memory_order_acquire), sequence)) return true;
  }
  const auto start = std::chrono::steady_clock::now();
  do {
    during_long_waits_(other);
    sched_yield();
    if (reached(counter.published.load(std::memory_order_acquire), sequence)) return true;
    if (shares_processor()) return false;
  } while (std::chrono::steady_clock::now() - start < kAwake);
  return false;
}

void SharedWindow::sleep(Counter& counter, uint32_t sequence, int64_t limit_ns) {
  counter.sleepers.fetch_add(1);
  const uint32_t seen = counter.published.load();
  const timespec limit{0, limit_ns};
  if (!reached(seen, sequence))
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&counter.published), FUTEX_WAIT, seen, &limit, nullptr, 0);
  counter.sleepers.fetch_sub(1);
}

}  // namespace pq
