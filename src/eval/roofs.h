// Physical limits measured on the ranks that run the benchmark: how fast memory can be read and how many int8 products a core can
// add. Results of kernels are reported as fractions of these. One pass at a time: who times passes and compares ranks is bench.h.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/backend.h"
#include "kernels/cpu/thread_pool.h"

namespace pq {

// Memory of its own, read from end to end in several ways, because which way is fastest differs between machines: each thread of
// `pool`, which outlives the roof, reads one contiguous part as 1, 2 or 4 streams, with software prefetch at several distances or
// none.
class ReadRoof {
 public:
  // Touches all `bytes`. Throws ErrorKind::environment when memory is short.
  ReadRoof(int64_t bytes, ThreadPool* pool);
  int patterns() const;
  // "2 streams, prefetch 4096"
  std::string name(int pattern) const;
  // Reads bytes() once.
  void read(int pattern) const;
  int64_t bytes() const { return bytes_; }

 private:
  ThreadPool* pool_;
  int64_t bytes_;
  std::unique_ptr<std::byte, void (*)(std::byte*)> memory_;
};

// int8 multiply-adds on registers, with the instruction that a backend of this instruction set would use.
class DotRoof {
 public:
  // `isa` names a backend or instruction set, as in "cpu (avx512-vnni)", "avx2"; what this processor lacks is not used.
  DotRoof(const std::string& isa, ThreadPool* pool);
  // "avx512-vnni", "avx512", "avx2-vnni", "avx2", "sse2"
  const std::string& instruction() const { return instruction_; }
  // Multiply-adds of one run() over all threads.
  int64_t macs() const;
  void run() const;

 private:
  std::string instruction_;
  int64_t macs_per_instruction_ = 0;
  void (*loop_)() = nullptr;
  ThreadPool* pool_;
};

// Both limits of one rank, where its backend works: the two above, or those of the device (DeviceMeasure), whose memory is copied.
class RankRoofs {
 public:
  virtual ~RankRoofs() = default;
  // Ways to move memory, and what they are called.
  virtual int patterns() const = 0;
  virtual std::string pattern_name(int pattern) const = 0;
  // Moved by one pass: read, or read and written.
  virtual int64_t bytes() const = 0;
  virtual void move(int pattern) = 0;
  virtual std::string instruction() const = 0;
  // Multiply-adds of one pass.
  virtual int64_t macs() const = 0;
  virtual void multiply() = 0;
};

// `bytes` as of ReadRoof. Passes on a device are put on its stream and not waited for. Throws ErrorKind::environment when memory is
// short.
std::unique_ptr<RankRoofs> make_rank_roofs(Backend& backend, const BackendOptions& options, int64_t bytes);

}  // namespace pq
