// What the roofs count and choose; how fast they are is not checked.
#include "eval/roofs.h"

#include <gtest/gtest.h>

#include <set>

#include "comm/communicator.h"
#include "eval/bench.h"

namespace pq {
namespace {

TEST(ReadRoof, PatternsReadAWholeNumberOfStridesOnEveryThread) {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads, {}, false);
    const ReadRoof roof(100'000, &pool);
    EXPECT_GE(roof.bytes(), 100'000);
    // 4 streams of whole pages a thread.
    EXPECT_EQ(roof.bytes() % (threads * 4 * 4096), 0);
    std::set<std::string> names;
    for (int pattern = 0; pattern < roof.patterns(); ++pattern) {
      roof.read(pattern);
      names.insert(roof.name(pattern));
    }
    EXPECT_EQ(static_cast<int>(names.size()), roof.patterns());
  }
}

TEST(DotRoof, TakesTheInstructionOfTheBackend) {
  ThreadPool one_thread(1, {}, false);
  ThreadPool two_threads(2, {}, false);
  EXPECT_EQ(DotRoof("reference", &one_thread).instruction(), "sse2");
  EXPECT_EQ(DotRoof("cpu (generic)", &one_thread).instruction(), "sse2");
  if (__builtin_cpu_supports("avx2")) {
    EXPECT_EQ(DotRoof("cpu (avx2)", &one_thread).instruction(), "avx2");
  }
  if (__builtin_cpu_supports("avx512bw")) {
    EXPECT_EQ(DotRoof("cpu (avx512)", &one_thread).instruction(), "avx512");
  }
  if (__builtin_cpu_supports("avx512vnni")) {
    EXPECT_EQ(DotRoof("cpu (avx512-vnni)", &one_thread).instruction(), "avx512-vnni");
    EXPECT_EQ(DotRoof("cpu (avx512-amx, 1 thread)", &one_thread).instruction(), "avx512-vnni");
  }
  for (const char* isa : {"reference", "avx2", "avx2-vnni", "avx512", "avx512-vnni"}) {
    const DotRoof one(isa, &one_thread);
    one.run();
    const DotRoof two(isa, &two_threads);
    two.run();
    EXPECT_EQ(two.macs(), 2 * one.macs());
  }
}

TEST(Roofs, AreTheSameOnEveryRank) {
  Roofs seen[2];
  run_threads(2, [&](Communicator& comm) {
    const std::unique_ptr<Backend> backend = make_backend("cpu");
    seen[comm.rank()] = measure_roofs(comm, {.threads = 2}, *backend, 1 << 20);
  });
  EXPECT_FALSE(seen[0].device);
  EXPECT_GT(seen[0].read_bytes_per_second, 0);
  EXPECT_GT(seen[0].macs_per_second, 0);
  EXPECT_EQ(seen[0].read_bytes_per_second, seen[1].read_bytes_per_second);
  EXPECT_EQ(seen[0].read_pattern, seen[1].read_pattern);
  EXPECT_EQ(seen[0].macs_per_second, seen[1].macs_per_second);
}

TEST(Roofs, OfAReportAreTheBetterOfBeforeAndAfter) {
  BenchReport report;
  report.before = {3e9, 1, "a", 5e9, "avx2", false};
  report.after = {4e9, 2, "b", 2e9, "avx2", false};
  const Roofs best = report.roofs();
  EXPECT_EQ(best.read_bytes_per_second, 4e9);
  EXPECT_EQ(best.pattern, 2);
  EXPECT_EQ(best.read_pattern, "b");
  EXPECT_EQ(best.macs_per_second, 5e9);
}

TEST(RoofMeter, ReadsTheSameOnEveryRank) {
  double read[2] = {}, dot[2] = {};
  run_threads(2, [&](Communicator& comm) {
    Roofs roofs;
    roofs.pattern = 3;
    const std::unique_ptr<Backend> backend = make_backend("cpu");
    RoofMeter meter(comm, {.threads = 1}, *backend, roofs, 1 << 20);
    EXPECT_GE(meter.bytes(), 1 << 20);
    read[comm.rank()] = meter.read();
    dot[comm.rank()] = meter.dot();
  });
  EXPECT_GT(read[0], 0);
  EXPECT_GT(dot[0], 0);
  EXPECT_EQ(read[0], read[1]);
  EXPECT_EQ(dot[0], dot[1]);
}

TEST(RoofMeter, FractionsAreOfTheMoment) {
  BenchRow row;
  row.seconds = {1, 2, 4};
  row.bytes = 800;
  row.macs = 80;
  EXPECT_EQ(row.read_fraction(), 0);
  EXPECT_EQ(row.dot_fraction(), 0);
  row.read = {1000, 500, 1000};  // 800, 400 and 200 bytes/s were reached
  EXPECT_EQ(row.read_fraction(), 0.8);
  row.dot = {320, 100, 20};  // 80, 40 and 20
  EXPECT_EQ(row.dot_fraction(), 0.4);
}

}  // namespace
}  // namespace pq
