// The scheduler of simt.h: fibers of one block, exchanges within warps, barriers.
#include "tests/support/simt/simt.h"

#include <sched.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#include "tests/support/simt/fiber.h"

namespace simt {
namespace {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
constexpr size_t kDefaultShared = 48 << 10;
constexpr size_t kMaxShared = 99 << 10;  // of the smallest, sm_86 and later consumer cards

std::atomic<int64_t> launched{0};
std::mutex allowed_mutex;
std::map<const void*, size_t> allowed;

// Lanes of one mask that meet. Two sets of values take turns: the next exchange cannot end before all have read this one.
struct Group {
  unsigned mask = 0;
  unsigned arrived = 0;
  unsigned took_part = 0;  // in the exchange that ended last
  int64_t generation = 0;
  Exchange kind = Exchange::sync;
  std::array<std::array<uint64_t, kWarp>, 2> values{};
  std::array<std::array<uint32_t, kWarp * 8>, 2> words{};
};

enum class State { ready, barrier, exchange, polling, ended };

struct Thread {
  dim3 index;
  State state = State::ended;
  Group* group = nullptr;
  int64_t generation = 0;  // that it waits to see end
};

struct Warp {
  unsigned ended = 0;
  std::vector<std::unique_ptr<Group>> groups;
};

// What one thread of the host needs to run blocks.
class Machine {
 public:
  void run_block(const Shape& shape, const Work& body, uint64_t order);

  int current() const { return current_; }
  void* shared() { return shared_.data(); }
  void sync();
  Group& meet(unsigned mask, Exchange kind, uint64_t value, const uint32_t* words, int count);
  void poll();

  [[noreturn]] static void start();

 private:
  [[noreturn]] void fail(const char* what) const;
  void leave(State state);
  bool runnable(const Thread& thread) const;
  void resume(int thread);
  bool run_warp(int warp, int lanes, int first);
  void complete(Group& group, unsigned ended);
  void end_thread();

  Fiber main_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<char> shared_;
  const Work* body_ = nullptr;
  const Shape* shape_ = nullptr;
  int current_ = -1;
  int alive_ = 0;
  int at_barrier_ = 0;
  int64_t barriers_ = 0;
  bool polled_ = false;
};

Machine& machine() {
  static thread_local Machine instance;
  return instance;
}

void Machine::fail(const char* what) const {
  int waiting = 0, exchanging = 0;
  for (const Thread& thread : threads_) {
    waiting += thread.state == State::barrier;
    exchanging += thread.state == State::exchange;
  }
  std::fprintf(
      stderr,
      "simt: %s (launch %lld, block %u,%u,%u of %u,%u,%u, thread %d of %zu; %d at a barrier, %d in an exchange, %d not ended)\n",
      what, static_cast<long long>(launched.load()), blockIdx.x, blockIdx.y, blockIdx.z, gridDim.x, gridDim.y, gridDim.z, current_,
      threads_.size(), waiting, exchanging, alive_);
  std::abort();
}

void Machine::start() {
  Machine& m = machine();
  for (;;) {
    Fiber::arrived(*m.fibers_[static_cast<size_t>(m.current_)]);
    for (;;) {
      (*m.body_)();
      m.end_thread();
    }
  }
}

void Machine::leave(State state) {
  Thread& thread = threads_[static_cast<size_t>(current_)];
  thread.state = state;
  fibers_[static_cast<size_t>(current_)]->switch_to(main_);
}

void Machine::end_thread() {
  Warp& warp = warps_[static_cast<size_t>(current_ / kWarp)];
  warp.ended |= 1u << (current_ % kWarp);
  --alive_;
  for (const auto& group : warp.groups) complete(*group, warp.ended);
  if (alive_ > 0 && at_barrier_ == alive_) {
    at_barrier_ = 0;
    ++barriers_;
  }
  leave(State::ended);
}

void Machine::sync() {
  Thread& thread = threads_[static_cast<size_t>(current_)];
  thread.generation = barriers_;
  if (++at_barrier_ == alive_) {
    at_barrier_ = 0;
    ++barriers_;
  }
  leave(State::barrier);
}

void Machine::complete(Group& group, unsigned ended) {
  if (group.arrived == 0 || group.arrived != (group.mask & ~ended)) return;
  group.took_part = group.arrived;
  group.arrived = 0;
  ++group.generation;
}

Group& Machine::meet(unsigned mask, Exchange kind, uint64_t value, const uint32_t* words, int count) {
  Warp& warp = warps_[static_cast<size_t>(current_ / kWarp)];
  const int own = current_ % kWarp;
  if ((mask >> own & 1u) == 0) fail("a lane calls with a mask that it is not in");
  Group* group = nullptr;
  for (const auto& g : warp.groups) {
    if (g->mask == mask)
      group = g.get();
    else if (g->arrived != 0 && (g->mask & mask) != 0)
      fail("lanes meet with masks that overlap and differ");
  }
  if (group == nullptr) {
    warp.groups.push_back(std::make_unique<Group>());
    group = warp.groups.back().get();
    group->mask = mask;
  }
  if (group->arrived != 0 && group->kind != kind) fail("lanes of one warp call different operations");
  group->kind = kind;
  const auto set = static_cast<size_t>(group->generation % 2), place = static_cast<size_t>(own);
  group->values[set][place] = value;
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) group->words[set][8 * place + i] = words[i];
  group->arrived |= 1u << own;
  Thread& thread = threads_[static_cast<size_t>(current_)];
  thread.group = group;
  thread.generation = group->generation;
  complete(*group, warp.ended);
  if (group->generation == thread.generation) leave(State::exchange);
  return *group;
}

void Machine::poll() { leave(State::polling); }

bool Machine::runnable(const Thread& thread) const {
  switch (thread.state) {
    case State::ready:
    case State::polling:
      return true;
    case State::barrier:
      return barriers_ != thread.generation;
    case State::exchange:
      return thread.group->generation != thread.generation;
    case State::ended:
      return false;
  }
  return false;
}

void Machine::resume(int thread) {
  current_ = thread;
  Thread& t = threads_[static_cast<size_t>(thread)];
  t.state = State::ready;
  threadIdx = t.index;
  main_.switch_to(*fibers_[static_cast<size_t>(thread)]);
  polled_ = polled_ || t.state == State::polling;
}

// The lanes of a warp in turn until none can go on, or all that can are polling.
bool Machine::run_warp(int warp, int lanes, int first) {
  bool progress = false;
  for (bool again = true; again;) {
    again = false;
    for (int i = 0; i < lanes; ++i) {
      const int thread = warp * kWarp + (first + i) % lanes;
      const bool polling = threads_[static_cast<size_t>(thread)].state == State::polling;
      if (!runnable(threads_[static_cast<size_t>(thread)])) continue;
      resume(thread);
      const bool moved = !polling || threads_[static_cast<size_t>(thread)].state != State::polling;
      progress = progress || moved;
      again = again || (moved && threads_[static_cast<size_t>(thread)].state != State::polling);
    }
  }
  return progress;
}

// A block has a thread at least: launch() looks.
void Machine::run_block(const Shape& shape, const Work& body, uint64_t order) {
  const int count = static_cast<int>(shape.block.x * shape.block.y * shape.block.z);
  const int warps = std::max(1, (count + kWarp - 1) / kWarp);
  body_ = &body;
  shape_ = &shape;
  // What was in shared memory is garbage to the next block: a pattern that is no number.
  shared_.assign(shape.shared_bytes + 16, static_cast<char>(0xff));
  threads_.assign(static_cast<size_t>(count), Thread{});
  warps_.clear();
  warps_.resize(static_cast<size_t>(warps));
  while (static_cast<int>(fibers_.size()) < count) fibers_.push_back(std::make_unique<Fiber>(&Machine::start));
  for (int i = 0; i < count; ++i) {
    const unsigned linear = static_cast<unsigned>(i);
    threads_[static_cast<size_t>(i)].index =
        dim3(linear % shape.block.x, linear / shape.block.x % shape.block.y, linear / (shape.block.x * shape.block.y));
    threads_[static_cast<size_t>(i)].state = State::ready;
  }
  alive_ = count;
  at_barrier_ = 0;
  const bool backwards = order % 2 != 0;
  const int first_warp = static_cast<int>(order / 2 % static_cast<uint64_t>(warps));
  const int first_lane = static_cast<int>(order / 64 % kWarp);
  while (alive_ > 0) {
    bool progress = false;
    polled_ = false;
    for (int i = 0; i < warps; ++i) {
      const int warp = backwards ? warps - 1 - (first_warp + i) % warps : (first_warp + i) % warps;
      const int lanes = std::min(kWarp, count - warp * kWarp);
      progress = run_warp(warp, lanes, first_lane % lanes) || progress;
    }
    if (progress) continue;
    if (!polled_) fail("a barrier or an exchange is never completed");
    sched_yield();
  }
}

uint64_t mixed(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  return x ^ (x >> 27);
}

}  // namespace

void submit(Stream* stream, Work work) {
  if (stream != nullptr && stream->capturing)
    stream->captured.work.push_back(std::move(work));
  else
    work();
}

bool launch(Stream* stream, const void* kernel, const Shape& shape, Work body) {
  size_t limit = kDefaultShared;
  {
    const std::lock_guard<std::mutex> lock(allowed_mutex);
    if (const auto found = allowed.find(kernel); found != allowed.end()) limit = std::max(limit, found->second);
  }
  const uint64_t threads = uint64_t{shape.block.x} * shape.block.y * shape.block.z;
  if (threads == 0 || threads > kMaxThreads || shape.block.z > 64 || shape.shared_bytes > limit || shape.grid.x == 0 ||
      shape.grid.y == 0 || shape.grid.z == 0 || shape.grid.x > 0x7fffffffu || shape.grid.y > 65535 || shape.grid.z > 65535)
    return false;
  submit(stream, [stream, shape, body] {
    ++launched;
    const uint64_t order = mixed(stream != nullptr ? ++stream->launches : static_cast<uint64_t>(launched.load()));
    const uint64_t blocks = uint64_t{shape.grid.x} * shape.grid.y * shape.grid.z;
    gridDim = shape.grid;
    blockDim = shape.block;
    for (uint64_t i = 0; i < blocks; ++i) {
      const uint64_t place = order % 4 < 2 ? i : blocks - 1 - i;
      blockIdx = dim3(static_cast<unsigned>(place % shape.grid.x), static_cast<unsigned>(place / shape.grid.x % shape.grid.y),
                      static_cast<unsigned>(place / (uint64_t{shape.grid.x} * shape.grid.y)));
      machine().run_block(shape, body, mixed(order + i));
    }
    check_canaries();
  });
  return true;
}

bool allow_shared(const void* kernel, int64_t bytes) {
  if (bytes < 0 || static_cast<size_t>(bytes) > kMaxShared) return false;
  const std::lock_guard<std::mutex> lock(allowed_mutex);
  allowed[kernel] = static_cast<size_t>(bytes);
  return true;
}

int lane() { return machine().current() % kWarp; }
void sync_threads() { machine().sync(); }

uint64_t exchange(unsigned mask, uint64_t value, Exchange kind, int source) {
  Machine& m = machine();
  Group& group = m.meet(mask, kind, value, nullptr, 0);
  const std::array<uint64_t, kWarp>& values = group.values[static_cast<size_t>((group.generation - 1) % 2)];
  if (kind == Exchange::shuffle) {
    if ((group.took_part >> source & 1u) == 0) {
      std::fprintf(stderr, "simt: lane %d reads lane %d, which takes no part in the shuffle\n", lane(), source);
      std::abort();
    }
    return values[static_cast<size_t>(source)];
  }
  uint64_t result = 0;
  for (int i = 0; i < kWarp; ++i) {
    if ((group.took_part >> i & 1u) == 0) continue;
    if (kind == Exchange::add) result += values[static_cast<size_t>(i)];
    if (kind == Exchange::ballot && values[static_cast<size_t>(i)] != 0) result |= uint64_t{1} << i;
  }
  return result;
}

const uint32_t* exchange_words(const uint32_t* values, int words) {
  Group& group = machine().meet(0xffffffffu, Exchange::mma, 0, values, words);
  if (group.took_part != 0xffffffffu) {
    std::fprintf(stderr, "simt: a matrix product by a warp that is not whole\n");
    std::abort();
  }
  return group.words[static_cast<size_t>((group.generation - 1) % 2)].data();
}

void* dynamic_shared() {
  void* start = machine().shared();
  size_t space = SIZE_MAX;
  return std::align(16, 1, start, space);
}

void pause() { machine().poll(); }

uint64_t clock_ns() {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count());
}

int64_t launches() { return launched.load(); }

}  // namespace simt
