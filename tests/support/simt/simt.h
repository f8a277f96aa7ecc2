// Runs the threads of a CUDA grid on one thread of the host: each thread of a block is a fiber that runs until it waits for others,
// at a barrier or an exchange within its warp. The order in which fibers and blocks run changes from launch to launch, so that what
// holds only in one order (a barrier that is missing) is likely to fail a test. What kernels and the runtime look like is left to
// cuda_runtime.h.
//
// Ends the process with one line when a kernel does what a device would hang on or answer with garbage: a barrier or an exchange
// that never completes, a shuffle from a lane that takes no part, different operations meeting in one exchange, a damaged canary.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Of the running thread.
inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {

struct Shape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes;
};

// A recorded launch or copy.
using Work = std::function<void()>;
struct Graph {
  std::vector<Work> work;
};
struct Stream {
  uint64_t launches = 0;  // decides the order of blocks and threads: alike on ranks that run alike, which may wait for each other
  bool capturing = false;
  bool invalid = false;  // the capture; something was called that it does not allow
  Graph captured;
  std::function<bool()> busy;  // while it says so, what was put on the stream last is not done; may be empty
};

// Runs `work` now, or records it when the stream is being captured.
void submit(Stream* stream, Work work);
// False when the shape is beyond a device's limits (1024 threads, 65535 blocks in y and z, shared memory that was not allowed).
bool launch(Stream* stream, const void* kernel, const Shape& shape, Work body);
// Dynamic shared memory beyond 48 KiB, up to 99 KiB, for one kernel.
bool allow_shared(const void* kernel, int64_t bytes);

enum class Exchange { sync, shuffle, add, ballot, mma };

// Of the running thread.
int lane();
void sync_threads();
// All lanes of `mask` that have not ended call this; each gets the value of lane `source` (shuffle), the sum, or the ballot.
uint64_t exchange(unsigned mask, uint64_t value, Exchange kind, int source);
// All 32 lanes give `words` words each, and read all lanes' words until their next exchange: [32][8].
const uint32_t* exchange_words(const uint32_t* values, int words);
void* dynamic_shared();
// For loops that wait for another grid: lets the other fibers and threads of the host run.
void pause();
uint64_t clock_ns();

// Kernels launched since the process began, so that a test can tell that it ran any.
int64_t launches();

// Device memory that each graph takes from now on, beside allocations; what is destroyed leaves it for the next.
void set_graph_bytes(int64_t bytes);
int64_t graphs_alive();
// Whether none more can be put on the device.
void refuse_graphs(bool refuse);
// Graphs launched since the process began.
int64_t graph_launches();

// Checks the canaries of every allocation of emulated device memory; ends the process when one is damaged.
void check_canaries();
// Bytes of emulated device memory, and how many are taken.
int64_t memory_total();
int64_t memory_used();
// Allocations that were freed while another rank had them mapped, since the process began.
int64_t freed_while_mapped();
// Whether one allocation of emulated device memory holds all of [data, data + bytes).
bool inside_allocation(const void* data, size_t bytes);

}  // namespace simt
