// The threads of a rank: every index of a loop once, exceptions, sleep without work; the same bits from any number of threads.
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <string>

#include "base/error.h"
#include "kernels/cpu/thread_pool.h"
#include "tests/kernels/kernel_cases.h"

namespace pq {
namespace {

TEST(ThreadPool, EveryIndexOnceByOneThreadAtATime) {
  for (const int threads : {1, 2, 5}) {
    for (const bool spin : {false, true}) {
      ThreadPool pool(threads, {}, spin);
      EXPECT_EQ(pool.threads(), threads);
      std::vector<std::atomic<bool>> busy(static_cast<size_t>(threads));
      for (const int64_t count : {0, 1, 2, 7, 1000}) {
        std::vector<int> seen(static_cast<size_t>(count));
        pool.parallel_for(count, [&](int64_t index, int worker) {
          EXPECT_FALSE(busy[static_cast<size_t>(worker)].exchange(true));
          ++seen[static_cast<size_t>(index)];
          busy[static_cast<size_t>(worker)] = false;
        });
        EXPECT_EQ(seen, std::vector<int>(static_cast<size_t>(count), 1));
      }
    }
  }
}

// Loops so short that sleepers of one meet the next.
TEST(ThreadPool, ManyShortLoops) {
  ThreadPool pool(4, {}, false);
  std::atomic<int64_t> sum = 0;
  for (int64_t loop = 0; loop < 5000; ++loop) pool.parallel_for(loop % 7, [&](int64_t index, int) { sum += index + 1; });
  int64_t expected = 0;
  for (int64_t loop = 0; loop < 5000; ++loop) expected += (loop % 7) * (loop % 7 + 1) / 2;
  EXPECT_EQ(sum, expected);
}

TEST(ThreadPool, TheLowestExceptionIsRethrownAfterAllHaveEnded) {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads, {}, false);
    std::atomic<int> ended = 0;
    try {
      pool.parallel_for(100, [&](int64_t index, int) {
        ++ended;
        if (index >= 40) throw Error(ErrorKind::input, std::to_string(index));
      });
      ADD_FAILURE() << "nothing was thrown";
    } catch (const Error& error) {
      EXPECT_STREQ(error.what(), "40");
    }
    EXPECT_EQ(ended, threads == 1 ? 41 : 100);
    pool.parallel_for(3, [&](int64_t, int) { ++ended; });
  }
}

TEST(ThreadPool, ThreadsWithoutWorkSleep) {
  ThreadPool pool(3, {}, true);
  pool.parallel_for(100, [](int64_t, int) {});
  const auto used = [] {
    struct rusage usage {};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + 1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
  };
  usleep(20'000);
  const double before = used();
  usleep(300'000);
  // Two spinning threads would use up to 0.6 s of processor time.
  EXPECT_LT(used() - before, 0.03);
}

TEST(ThreadPool, PinsEachThreadToItsCpu) {
  cpu_set_t mask;
  ASSERT_EQ(sched_getaffinity(0, sizeof mask, &mask), 0);
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &mask)) cpus.push_back(cpu);
  }
  {
    ThreadPool pool(static_cast<int>(cpus.size()), cpus, true);
    pool.parallel_for(64, [&](int64_t, int worker) { EXPECT_EQ(sched_getcpu(), cpus[static_cast<size_t>(worker)]); });
  }
  sched_setaffinity(0, sizeof mask, &mask);
}

// Shapes large enough to be shared out, with parts that are not equal.
TEST(Threads, SameBitsFromAnyNumber) {
  const int64_t rows = 1000, cols = 1280;
  const MatrixKind kinds[] = {{WeightFormat::polar, 5}, {WeightFormat::polar, 7}, {WeightFormat::int4}, {WeightFormat::bf16}};
  for (const int64_t tokens : {1, 3, 70}) {
    std::vector<std::vector<float>> expected;
    for (const int threads : {1, 2, 3, 8}) {
      const std::unique_ptr<Backend> backend = make_backend("cpu", {.threads = threads});
      const std::vector<float> x = normals(tokens * cols, 1), weight = normals(cols, 2);
      std::vector<float> normed(x.size()), scales(x.size() / kBlock);
      std::vector<int8_t> codes(x.size());
      backend->rms_norm({.y = normed.data(),
                         .x = x.data(),
                         .weight = weight.data(),
                         .rows = tokens,
                         .dim = cols,
                         .eps = 1e-6f,
                         .weight_offset = 1.0f,
                         .prepared = {.codes = codes.data(), .scales = scales.data()}});
      const Activation input{.tokens = tokens, .dim = cols, .raw = normed.data(), .codes = codes.data(), .scales = scales.data()};
      std::vector<std::vector<float>> results = {normed, scales};
      for (const MatrixKind& kind : kinds) {
        const OwnedMatrix a = random_matrix(kind, rows, cols, 2, 3), b = random_matrix(kind, rows, cols, 1, 4);
        std::vector<float> product(static_cast<size_t>(tokens * rows)), gated(product.size());
        backend->linear({.y = product.data(), .x = input, .w = a.matrix});
        backend->swiglu({.y = gated.data(), .x = input, .gate = a.matrix, .up = b.matrix});
        results.push_back(product);
        results.push_back(gated);
      }
      if (threads == 1) expected = results;
      for (size_t i = 0; i < results.size(); ++i) EXPECT_TRUE(same_bits(results[i], expected[i])) << threads << " threads, result " << i;
    }
  }
}

TEST(Threads, AnUnknownInstructionSetIsRefusedByName) {
  try {
    make_backend("cpu", {.isa = "mmx"});
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    EXPECT_EQ(std::string(error.what()).find("there is no instruction set 'mmx'; known are generic"), 0u);
  }
}

}  // namespace
}  // namespace pq
