// Requests to stop: what is being made is finished, files are left whole, a second request ends at once, and Ctrl-C in a chat ends
// the answer. Signals come from PQ_FAULT where the moment matters, and from outside, through launch/pq, where the way does.
#include <nlohmann/json.hpp>

#include "failure/failing_job.h"
#include "support/store_files.h"

namespace pq {
namespace {

using nlohmann::json;
using test::FailedJob;
using test::Words;
using testing::HasSubstr;

Words generation(const char* tokens) {
  return {"-m", test::demo_path(), "-p", "Once upon a time", "-n", tokens, "--temp", "0", "--json"};
}

// The signal may reach any rank; rank 0 alone decides where to stop.
TEST(StopSignals, GenerationFinishesItsToken) {
  const struct {
    const char* fault;
    int ranks;
    int code;
  } cases[] = {{"term:decode:rank=0:step=20", 2, 143}, {"usr1:decode:rank=1:step=20", 4, 143}, {"int:decode:step=20", 1, 130}};
  for (const auto& c : cases) {
    const FailedJob job = test::run_with_fault(c.fault, test::launched(c.ranks, "pq-run", generation("60")));
    EXPECT_TRUE(job.faulted);
    EXPECT_EQ(job.result.code, c.code) << c.fault << job.result.err;
    const json result = json::parse(job.result.out, nullptr, false);
    ASSERT_TRUE(result.is_object()) << c.fault << job.result.out;
    EXPECT_EQ(result["stop_reason"], "interrupted");
    // 20 steps make 20 tokens; a rank that is told may be ahead of rank 0's next look.
    EXPECT_GE(result["tokens"].size(), 20u);
    EXPECT_LE(result["tokens"].size(), 25u);
    EXPECT_THAT(job.result.err, HasSubstr("stopped at an interruption"));
    EXPECT_THAT(job.lines, testing::IsEmpty()) << job.result.err;
  }
}

TEST(StopSignals, NothingToFinishEndsAtOnce) {
  const FailedJob job = test::run_with_fault("term:load:rank=1:layer=1", test::launched(2, "pq-run", generation("8")));
  EXPECT_EQ(job.result.code, 143) << job.result.err;
  ASSERT_EQ(job.lines.size(), 1u) << job.result.err;
  EXPECT_THAT(job.lines[0], HasSubstr("ended by SIGTERM in load, layer 1 on "));
  EXPECT_LT(job.seconds_to_end, 5 * test::kTimeFactor);
}

TEST(StopSignals, QuantisationRecordsItsShards) {
  test::TemporaryDirectory directory;
  const std::string clean = directory.path() + "/clean", store = directory.path() + "/store";
  ASSERT_EQ(test::run_process(test::launched(1, "pq-quantize", {test::demo_path(), clean})).code, 0);
  const FailedJob job = test::run_with_fault("usr1:quantise:rank=1:nth=3",
                                             test::launched(2, "pq-quantize", {test::demo_path(), store, "--device", "reference"}));
  EXPECT_TRUE(job.faulted);
  EXPECT_EQ(job.result.code, 143) << job.result.err;
  ASSERT_EQ(job.lines.size(), 1u) << job.result.err;
  EXPECT_THAT(job.lines[0], testing::ContainsRegex("stopped by SIGUSR1: [1-9] of 10 shards are finished"));
  size_t notes = 0;
  for (const auto& [name, content] : test::files_of(store)) {
    EXPECT_FALSE(test::ends_with(name, ".tmp")) << name;
    notes += name.rfind("shard-", 0) == 0 && test::ends_with(name, ".json");
  }
  EXPECT_THAT(job.lines[0], HasSubstr(std::to_string(notes) + " of 10"));
  test::expect_only_whole_shards(store, test::files_of(clean));
  const auto resumed = test::run_process(test::launched(4, "pq-quantize", {test::demo_path(), store, "--json"}));
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_EQ(json::parse(resumed.out)["shards_found_finished"], notes);
  test::expect_same(test::files_of(clean), test::files_of(store));
}

// From outside, as SLURM and terminals do it.
TEST(StopSignals, TheLauncherPassesThemOnAndTheSecondEndsAtOnce) {
  test::TemporaryDirectory directory;
  const std::string store = directory.path() + "/store";
  test::LiveJob job(test::launched(2, "pq-quantize", {test::demo_path(), store, "--device", "reference"}));
  ASSERT_TRUE(job.wait_until([&] { return std::filesystem::exists(store + "/job.json"); }));
  job.signal(SIGTERM);
  EXPECT_EQ(job.finish(), 143);
  EXPECT_EQ(test::lines_of(job.err()).size(), 1u) << job.err();
  EXPECT_THAT(job.err(), HasSubstr("stopped by SIGUSR1"));

  // A hanging rank never comes to its next look.
  const std::string mark = directory.path() + "/acted";
  test::LiveJob stuck(test::launched(2, "pq-run", generation("60")),
                      {"PQ_FAULT=hang:decode:rank=0:step=3", "PQ_FAULT_MARK=" + mark});
  ASSERT_TRUE(stuck.wait_until([&] { return std::filesystem::exists(mark); })) << stuck.err();
  const double start = test::now_seconds();
  stuck.signal(SIGTERM);
  usleep(static_cast<useconds_t>(100'000 * test::kTimeFactor));
  stuck.signal(SIGTERM);
  EXPECT_EQ(stuck.finish(), 143);
  EXPECT_LT(test::now_seconds() - start, 5 * test::kTimeFactor);
  EXPECT_THAT(stuck.err(), HasSubstr("ended by "));
}

TEST(StopSignals, CtrlCEndsTheAnswerAndTwiceAtThePromptTheChat) {
  test::LiveJob chat(test::launched(2, "pq-run", {"-m", test::demo_path(), "--chat", "-n", "40", "--temp", "0", "--json"}),
                     {"PQ_FAULT=int:decode:rank=0:step=6", "PQ_STDIN_IS_TERMINAL=1"});
  const auto prompts = [&] {
    const std::string err = chat.err();
    size_t count = 0;
    for (size_t at = err.find("> "); at != std::string::npos; at = err.find("> ", at + 1)) ++count;
    return count;
  };
  ASSERT_TRUE(chat.wait_until([&] { return prompts() >= 1; }));
  chat.say("hello\nagain\n");
  ASSERT_TRUE(chat.wait_until([&] { return prompts() >= 3; })) << chat.err();
  const auto answers = test::lines_of(chat.out());
  ASSERT_EQ(answers.size(), 2u) << chat.out();
  EXPECT_EQ(json::parse(answers[0])["stop_reason"], "interrupted");
  EXPECT_NE(json::parse(answers[1])["stop_reason"], "interrupted");
#if defined(__SANITIZE_THREAD__)
  // It hands a signal over at the next call that it knows, and the read behind std::getline, which would go on, is none.
  chat.say("/exit\n");
  EXPECT_EQ(chat.finish(), 0);
#else
  chat.signal(SIGINT);
  ASSERT_TRUE(chat.wait_until([&] { return chat.err().find("Ctrl-C again") != std::string::npos; })) << chat.err();
  chat.signal(SIGINT);
  EXPECT_EQ(chat.finish(), 130);
#endif
  EXPECT_THAT(chat.err(), testing::Not(HasSubstr("ended")));
}

// Rank 0 waits for a line, and has no signal of its own.
TEST(StopSignals, ASignalToAnotherRankEndsAChatAtThePrompt) {
  for (const char* nodes : {"PQ_NODES=2", "PQ_NODES=1"}) {
    const test::TemporaryDirectory directory;
    const std::string entry = "PQ_TEST=" + directory.path();
    test::LiveJob chat(test::launched(2, "pq-run", {"-m", test::demo_path(), "--chat", "-n", "4", "--temp", "0", "--json"}),
                       {entry, nodes, "PQ_STDIN_IS_TERMINAL=1"});
    chat.say("hello\n");
    ASSERT_TRUE(chat.wait_until([&] { return test::lines_of(chat.out()).size() == 1; })) << chat.err();
    ASSERT_EQ(kill(test::ranks_with(entry).at(1), SIGTERM), 0);
    EXPECT_EQ(chat.finish(), 143) << chat.err();
    EXPECT_THAT(chat.err(), testing::Not(HasSubstr("ended")));
  }
}

// The signal comes when the answer has ended and the prompt is not there yet.
TEST(StopSignals, CtrlCBetweenAnAnswerAndThePromptLeavesTheChat) {
  for (const int ranks : {1, 2}) {
    test::TemporaryDirectory directory;
    const std::string mark = directory.path() + "/acted";
    test::LiveJob chat(test::launched(ranks, "pq-run", {"-m", test::demo_path(), "--chat", "-n", "5", "--temp", "0", "--json"}),
                       {"PQ_FAULT=int:idle:rank=0:nth=3", "PQ_FAULT_MARK=" + mark, "PQ_STDIN_IS_TERMINAL=1"});
    chat.say("hello\n");
    const auto answers = [&] { return test::lines_of(chat.out()).size(); };
    ASSERT_TRUE(chat.wait_until([&] { return std::filesystem::exists(mark) && answers() == 1; })) << chat.err();
    chat.say("again\n/exit\n");
    EXPECT_EQ(chat.finish(), 0) << chat.err();
    EXPECT_EQ(answers(), 2u) << chat.out();
    EXPECT_THAT(chat.err(), testing::Not(HasSubstr("ended")));
  }
}

}  // namespace
}  // namespace pq
