// Memory that the ranks of one node all see: an MPI-3 shared window with a counter and two areas for each rank. Ranks take turns by
// the counters alone. What the bytes mean is left to mpi_comm.cpp.
#pragma once

#include <mpi.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace pq {

// Every rank calls begin_piece and then publish, the same number of times and in the same order. A rank has two areas for its
// pieces; begin_piece waits until nobody uses the piece that lies where the next one goes.
class SharedWindow {
 public:
  // Collective over `node`, whose ranks share memory; the window owns `node`. `during_long_waits(other)` is called again and
  // again by a rank that has waited for rank `other` for longer than a spin; what it throws ends the wait. Null on every rank when
  // MPI refuses one of them.
  static std::unique_ptr<SharedWindow> try_make(MPI_Comm node, int64_t piece_bytes,
                                                std::function<void(int other)> during_long_waits);
  SharedWindow(const SharedWindow&) = delete;
  SharedWindow& operator=(const SharedWindow&) = delete;
  // Collective. Does nothing after MPI has been finalised or while an exception unwinds: the other ranks may never come.
  ~SharedWindow();

  int rank() const { return rank_; }
  int size() const { return size_; }
  int64_t piece_bytes() const { return piece_bytes_; }

  // The area of this rank for the next piece: [piece_bytes], aligned to 4096 bytes.
  std::byte* begin_piece();
  // What this rank has written so far may be read by ranks that wait for it. May be called several times a piece, by all ranks
  // alike.
  void publish();
  // Until rank `other` (every rank) has published as often as this one.
  void wait(int other);
  void wait_all();
  // Every rank has waited for a publish that every rank made after its last use of another's area: the next piece takes the same
  // area again, whose lines are still in the cache.
  void settle() { settled_ = true; }
  // The area of rank `other` for the current piece.
  std::byte* area(int other) const;

 private:
  // Written by one rank and waited for by the others, so it has a cache line for itself (two, which are fetched in pairs).
  struct alignas(128) Counter {
    std::atomic<uint32_t> published{0};
    std::atomic<uint32_t> sleepers{0};
    std::atomic<int> processor{-1};  // on which the rank last published
  };

  SharedWindow(MPI_Comm node, int64_t piece_bytes, std::function<void(int)> during_long_waits);
  bool allocate();
  void wait_until(int other, uint32_t sequence);
  bool wait_awake(int other, uint32_t sequence);
  void sleep(Counter& counter, uint32_t sequence, int64_t limit_ns);

  MPI_Comm node_;
  MPI_Win window_ = MPI_WIN_NULL;
  int rank_ = 0;
  int size_ = 1;
  const int64_t piece_bytes_;
  int spins_ = 0;
  std::function<void(int)> during_long_waits_;
  std::vector<Counter*> counters_;  // by rank
  uint32_t sequence_ = 0;           // of the last publish; numbers wrap around
  uint32_t last_piece_ = 0;         // sequence of the first publish of the piece before
  int parity_ = 0;
  bool settled_ = false;
};

}  // namespace pq
