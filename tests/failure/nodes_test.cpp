// Ranks that take each other for other nodes (PQ_NODES): healthy jobs that are slow, asleep or idle are left alone, and requests to
// stop reach everybody. Ends of failing ones are in faults_test.cpp.
#include <nlohmann/json.hpp>

#include "failure/failing_job.h"
#include "support/store_files.h"

namespace pq {
namespace {

using nlohmann::json;
using test::Words;

constexpr const char* kWatchdog = test::kTimeFactor > 1 ? "6" : "1.5";
constexpr double kLimits = 4 * (test::kTimeFactor > 1 ? 6 : 1.5);  // four of them, in seconds

class NodesTest : public testing::Test {
 protected:
  test::TemporaryDirectory directory_;
  const std::string entry_ = "PQ_TEST=" + directory_.path();
  const Words environment_ = {entry_, "PQ_NODES=1"};
  const std::string store_ = directory_.path() + "/store";
};

// Ranks 0 and 1 wait for rank 2, of which rank 1 hears nothing, longer than the limit.
TEST_F(NodesTest, ASlowRankElsewhereIsWaitedFor) {
  test::LiveJob job(test::launched(3, "pq-quantize", {test::demo_path(), store_, "--device", "reference", "--watchdog", kWatchdog}),
                    environment_);
  ASSERT_TRUE(job.wait_until([&] { return std::filesystem::exists(store_ + "/job.json"); })) << job.err();
  const pid_t slow = test::ranks_with(entry_).at(2);
  const double start = test::now_seconds();
  // A sixth of its speed for four limits; half of it under a sanitizer, which has taken the rest.
  while (test::now_seconds() < start + kLimits && kill(slow, SIGSTOP) == 0) {
    usleep(250'000);
    kill(slow, SIGCONT);
    usleep(test::kTimeFactor > 1 ? 250'000 : 50'000);
  }
  EXPECT_EQ(job.finish(), 0) << job.err();
}

TEST_F(NodesTest, AJobThatWasAsleepGoesOn) {
  const Words words = {"-m",     test::demo_path(), "-p", "Once upon a time", "-n", "400", "--temp", "0",
                       "--json", "--watchdog",      "1.5"};
  test::LiveJob job(test::launched(2, "pq-run", words), environment_);
  ASSERT_TRUE(job.wait_until([&] { return job.err().find("loaded") != std::string::npos; })) << job.err();
  const std::vector<pid_t> ranks = test::ranks_with(entry_);
  ASSERT_EQ(ranks.size(), 2u);
  for (const pid_t rank : ranks) kill(rank, SIGSTOP);
  usleep(static_cast<useconds_t>(kLimits / 2 * 1e6));
  for (const pid_t rank : ranks) kill(rank, SIGCONT);
  EXPECT_EQ(job.finish(), 0) << job.err();
}

// News go out by the clock, not in answer to each other.
TEST_F(NodesTest, AnIdleJobIsQuiet) {
  test::LiveJob chat(test::launched(2, "pq-run", {"-m", test::demo_path(), "--chat", "-n", "4", "--temp", "0", "--watchdog", "10"}),
                     {entry_, "PQ_NODES=1", "PQ_STDIN_IS_TERMINAL=1"});
  ASSERT_TRUE(chat.wait_until([&] { return chat.err().find("> ") != std::string::npos; })) << chat.err();
  const auto switches = [&] {
    const std::string name = "voluntary_ctxt_switches:";
    int64_t sum = 0;
    for (const pid_t rank : test::ranks_with(entry_)) {
      for (const auto& thread : std::filesystem::directory_iterator("/proc/" + std::to_string(rank) + "/task")) {
        // The main thread of a rank that waits for a request yields its processor over and over.
        if (thread.path().filename() == std::to_string(rank)) continue;
        const std::string status = test::read_file(thread.path().string() + "/status");
        if (const size_t at = status.find(name); at != std::string::npos) sum += std::atoll(status.c_str() + at + name.size());
      }
    }
    return sum;
  };
  const int64_t before = switches();
  usleep(2'000'000);
  // Two watchdogs for two seconds: a tick and a message a second each. MPI's own threads wake some times a second.
  EXPECT_LT(switches() - before, 200);
  chat.signal(SIGTERM);
  chat.finish();
}

// While loading, where it ends every rank at once.
TEST_F(NodesTest, ASignalToAllRanksIsOneLine) {
  const std::string mark = directory_.path() + "/acted";
  Words environment = environment_;
  environment.insert(environment.end(), {"PQ_FAULT=hang:load:rank=1:layer=3", "PQ_FAULT_MARK=" + mark});
  test::LiveJob job(test::launched(4, "pq-run", {"-m", test::demo_path(), "-p", "x", "-n", "2", "--temp", "0"}), environment);
  ASSERT_TRUE(job.wait_until([&] { return std::filesystem::exists(mark); })) << job.err();
  job.signal(SIGTERM);
  EXPECT_EQ(job.finish(), 143) << job.err();
  const Words lines = test::lines_of(job.err());
  ASSERT_EQ(lines.size(), 1u) << job.err();
  EXPECT_THAT(lines[0], testing::HasSubstr("]: ended by "));
}

TEST_F(NodesTest, ASignalToAnyRankStopsAll) {
  const Words generation = {"-m", test::demo_path(), "-p", "Once upon a time", "-n", "400", "--temp", "0", "--json"};
  for (const char* fault : {"usr1:decode:rank=1:step=20", "term:decode:rank=3:step=20"}) {
    Words command = test::launched(4, "pq-run", generation);
    command.insert(command.begin(), {"env", "PQ_NODES=1"});
    const test::FailedJob job = test::run_with_fault(fault, command);
    EXPECT_TRUE(job.faulted);
    EXPECT_EQ(job.result.code, 143) << fault << job.result.err;
    const json result = json::parse(job.result.out, nullptr, false);
    ASSERT_TRUE(result.is_object()) << fault << job.result.out;
    EXPECT_EQ(result["stop_reason"], "interrupted");
  }
  Words command = test::launched(3, "pq-quantize", {test::demo_path(), store_, "--device", "reference"});
  command.insert(command.begin(), {"env", "PQ_NODES=1"});
  const test::FailedJob job = test::run_with_fault("usr1:quantise:rank=2:nth=2", command);
  EXPECT_TRUE(job.faulted);
  EXPECT_EQ(job.result.code, 143) << job.result.err;
  ASSERT_EQ(job.lines.size(), 1u) << job.result.err;
  EXPECT_THAT(job.lines[0], testing::ContainsRegex("stopped by SIGUSR1: [1-9] of 10 shards are finished"));
}

}  // namespace
}  // namespace pq
