// pq-quantize killed at random moments of its whole life at 1, 2 and 4 ranks, then run again with another number of ranks: the
// store is the same bytes. PQ_KILLS=50 in the environment for 50 moments a rank count instead of one, PQ_SEED for other moments.
#include <chrono>
#include <cstdio>
#include <random>
#include <thread>

#include "failure/failing_job.h"
#include "support/store_files.h"

namespace pq {
namespace {

namespace fs = std::filesystem;
using test::Words;

constexpr int kRanks[] = {1, 2, 4};

int number(const char* variable) {
  const char* text = std::getenv(variable);
  return text == nullptr ? 1 : std::atoi(text);
}

// The reference backend takes long enough to be hit.
Words quantize(int ranks, const std::string& store, const char* device) {
  return test::launched(ranks, "pq-quantize", {test::demo_path(), store, "--device", device});
}

TEST(KilledAnywhere, ResumesToTheSameBytes) {
  test::TemporaryDirectory directory;
  const std::string clean = directory.path() + "/clean";
  const auto alone = test::run_process(quantize(1, clean, "cpu"));
  ASSERT_EQ(alone.code, 0) << alone.err;
  const test::Files expected = test::files_of(clean);
  const int kills = number("PQ_KILLS"), seed = number("PQ_SEED");
  std::mt19937 random(static_cast<unsigned>(seed));
  int unfinished = 0;
  const double life = test::run_process(quantize(2, directory.path() + "/timed", "reference")).seconds;
  for (const int ranks : kRanks) {
    for (int kill = 0; kill < kills; ++kill) {
      const std::string store = directory.path() + "/killed";
      fs::remove_all(store);
      const double moment = life * std::uniform_real_distribution<>(0.05, 0.9)(random);
      // Every process at once, or one rank whose launcher then ends the others.
      const bool everyone = random() % 2 == 0;
      SCOPED_TRACE(testing::Message() << ranks << " ranks, killed after " << moment << " of " << life << " s, "
                                      << (everyone ? "all" : "one"));
      const std::string mark = "PQ_TEST_JOB=" + store + std::to_string(kill) + "of" + std::to_string(ranks);
      {
        test::LiveJob job(quantize(ranks, store, "reference"), {mark, "TMPDIR=" + directory.path()});
        std::this_thread::sleep_for(std::chrono::duration<double>(moment));
        std::vector<pid_t> processes = test::pids_with(mark);
        if (!everyone && !processes.empty()) processes = {processes.back()};
        for (const pid_t process : processes) ::kill(process, SIGKILL);
        job.finish();
        ASSERT_TRUE(job.wait_until([&] { return test::processes_with(mark) == 0; }));
      }
      unfinished += !fs::exists(store + "/manifest.json");
      if (!fs::exists(store + "/manifest.json")) test::expect_only_whole_shards(store, expected);
      const auto resumed = test::run_process(quantize(kRanks[random() % 3], store, "cpu"));
      ASSERT_EQ(resumed.code, 0) << resumed.err;
      test::expect_same(expected, test::files_of(store));
    }
  }
  std::printf("%d kills from seed %d, %d of them before the store was finished\n", 3 * kills, seed, unfinished);
  EXPECT_GT(unfinished, 0);
}

}  // namespace
}  // namespace pq
