#include "base/process.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>

namespace pq {
namespace {

// The kernel counts pages with some delay per thread; 64 MiB are far more than that.
constexpr int64_t kBytes = int64_t{1} << 26;
constexpr int64_t kSlack = kBytes / 8;

TEST(Process, PeakHoldsUntilItIsReset) {
  const int64_t before = peak_resident_bytes();
  EXPECT_GT(before, 0);
  {
    const std::unique_ptr<char[]> memory(new char[kBytes]);
    std::memset(memory.get(), 1, kBytes);
    // The compiler may not drop the writes.
    asm volatile("" ::"r"(memory.get()) : "memory");
    EXPECT_GE(peak_resident_bytes(), kBytes);
  }
  const int64_t peak = peak_resident_bytes();
  EXPECT_GE(peak, kBytes);
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "AddressSanitizer keeps freed memory for a while";
#endif
  if (!try_reset_peak_resident()) GTEST_SKIP() << "this kernel does not reset peaks";
  EXPECT_LE(peak_resident_bytes(), peak - kBytes + kSlack);
}

TEST(Process, AbsentLinesAreZero) {
  EXPECT_EQ(proc_bytes("/proc/self/status", "NoSuchLine"), 0);
  EXPECT_EQ(proc_bytes("/no/such/file", "VmHWM"), 0);
}

}  // namespace
}  // namespace pq
