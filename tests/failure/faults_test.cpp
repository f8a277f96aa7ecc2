// A rank dies, stalls or throws at each point of each program: one line on stderr, the documented code, nobody left within seconds.
// Prints what README.md of this folder tabulates.
#include <cstdio>
#include <ostream>

#include "failure/failing_job.h"

namespace pq {
namespace {

using test::FailedJob;
using test::Words;

// What the project promises, from the fault to the last rank's end.
constexpr double kDeathSeconds = 5;
// Promised 15 s at --watchdog 10; here the watchdog has 1.5 s, which a busy machine needs, and more where a sanitizer slows it.
constexpr const char* kWatchdog = test::kTimeFactor > 1 ? "6" : "1.5";
constexpr double kStallSeconds = 6.5;

struct Case {
  const char* program;  // run, quantize, ppl or bench
  int ranks;
  const char* fault;
  int code;
  const char* line;  // an expression that the line matches
};

void PrintTo(const Case& param, std::ostream* out) { *out << param.program << ' ' << param.ranks << ' ' << param.fault; }

std::string name_of(const testing::TestParamInfo<Case>& info) {
  std::string name = std::string(info.param.program) + std::to_string(info.param.ranks) + "_" + info.param.fault;
  for (char& c : name)
    if (!isalnum(static_cast<unsigned char>(c))) c = '_';
  return name;
}

Words arguments(const std::string& program, const std::string& directory) {
  if (program == "bench")
    return {"decode", "-m", test::demo_path(), "-n", "2", "-r", "1", "--working-set", "2", "--watchdog", kWatchdog};
  if (program == "ppl")
    return {"-m", test::demo_path(), "-f",     test::demo_path() + "/eval.txt", "--ctx", "64", "--windows",
            "2",  "--watchdog",      kWatchdog};
  if (program == "quantize") return {test::demo_path(), directory + "/store", "--watchdog", kWatchdog};
  return {"-m", test::demo_path(), "-p", "Once upon a time", "-n", "8", "--temp", "0", "--watchdog", kWatchdog};
}

class Fault : public testing::TestWithParam<Case> {
 protected:
  void expect_one_line(const Words& before);
};

// before: words before the command.
void Fault::expect_one_line(const Words& before) {
  const Case param = GetParam();
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  for (const char* crash : {"segv", "bus", "fpe", "abort"})
    if (std::string(param.fault).rfind(crash, 0) == 0) GTEST_SKIP() << "a sanitizer reports crashes itself";
#endif
  test::TemporaryDirectory directory;
  const std::string program = std::string("pq-") + param.program;
  const Words words = arguments(param.program, directory.path());
  Words command = {std::string(PQ_BIN_DIR) + "/" + program};
  command.insert(command.end(), words.begin(), words.end());
  if (param.ranks > 0) command = test::launched(param.ranks, program, words);
  command.insert(command.begin(), before.begin(), before.end());
  const FailedJob job = test::run_with_fault(param.fault, command);
  test::expect_one_line(job, param.code, param.line, kDeathSeconds, kStallSeconds);
  if (HasFailure()) return;
  std::printf("| %s | %d | `%s` | `%s` | %d | %.1f s |\n", program.c_str(), param.ranks, param.fault, job.lines[0].c_str(),
              job.result.code, job.seconds_to_end);
}

TEST_P(Fault, OneLineOneCodeAndNobodyLeft) { expect_one_line({}); }

constexpr const char* kVanished = "rank 1 on .* ended without a word in ";

INSTANTIATE_TEST_SUITE_P(
    Killed, Fault,
    testing::Values(Case{"run", 2, "kill:start:rank=1", 137, "^pq-run.0.: rank 1 on .* ended without a word in start;"},
                    Case{"run", 2, "kill:load:rank=1:layer=3", 137, "ended without a word in load, layer 3;"},
                    Case{"quantize", 4, "kill:quantise:rank=1", 137, "rank 1 on .* ended without a word in quantise"},
                    Case{"run", 4, "kill:prefill:rank=1:layer=2", 137, "ended without a word in prefill, layer 2, step 1;"},
                    Case{"run", 2, "kill:decode:rank=0:step=3:layer=1", 137,
                         "^pq-run.1.: rank 0 on .* in decode, layer 1, step 3;"},
                    Case{"run", 4, "kill:all_reduce:rank=3:step=2", 137, "in all_reduce of decode, step 2;"},
                    Case{"run", 2, "kill:exit:rank=1", 137, kVanished},
                    Case{"run", 2, "kill:finalize:rank=0", 137, "rank 0 on .* ended without a word in finalize of exit"},
                    Case{"run", 2, "kill:decode:step=2", 137, "^launch/pq: a rank was ended by signal 9 "},
                    Case{"run", 1, "kill:load", 137, "^launch/pq: a rank was ended by signal 9 "}),
    name_of);

INSTANTIATE_TEST_SUITE_P(
    Stalled, Fault,
    testing::Values(
        Case{"run", 2, "stop:load:rank=1:layer=3", 75,
             "(waits for|by) rank 1, which is in load, layer 3 on .*; its process is stopped$"},
        Case{"quantize", 2, "stop:quantise:rank=1", 75, "rank 1, which is in quantise.*; its process is stopped$"},
        Case{"run", 4, "stop:prefill:rank=1:layer=2", 75,
             "no progress for [0-9.]+ s (in all_reduce of prefill.* waits for|by) rank 1, which is in prefill, layer 2, step 1 on "
             ".*stopped$"},
        Case{"run", 2, "stop:decode:rank=0:step=3", 75, "^pq-run.1.: no progress .* rank 0, which is in decode, step 3 "},
        Case{"run", 2, "stop:all_reduce:rank=1:step=2", 75, "no progress for [0-9.]+ s in all_reduce of decode"},
        Case{"bench", 2, "stop:measure:rank=1", 75, "^pq-bench.0.: no progress .* rank 1, which is in measure on .*stopped$"},
        Case{"run", 2, "stop:finalize:rank=1", 75, "no progress for [0-9.]+ s in finalize of exit"},
        Case{"run", 2, "hang:decode:rank=1:step=3:layer=4", 75, "in decode, layer 4, step 3 on"},
        Case{"run", 0, "hang:decode:step=3:layer=4", 75, "^pq-run: no progress for [0-9.]+ s in decode, layer 4, step 3 on"}),
    name_of);

INSTANTIATE_TEST_SUITE_P(
    Crashed, Fault,
    testing::Values(
        Case{"run", 2, "segv:decode:rank=1:step=3:layer=1", 139, "^pq-run.1.: crashed with SIGSEGV in decode, layer 1, step 3 on"},
        Case{"run", 2, "bus:load:rank=0", 135, "^pq-run.0.: crashed with SIGBUS in load on"},
        Case{"quantize", 2, "abort:quantise:rank=1", 134, "^pq-quantize.1.: crashed with SIGABRT in quantise"},
        Case{"run", 4, "fpe:all_reduce:rank=2:step=1", 136, "^pq-run.2.: crashed with SIGFPE in all_reduce of prefill"},
        Case{"run", 0, "segv:prefill", 139, "^pq-run: crashed with SIGSEGV in prefill, step 1 on"},
        Case{"run", 2, "exit:decode:rank=1:step=2", 70, "^pq-run.1.: exit was called in decode, step 2 on"},
        Case{"run", 2, "throw:decode:rank=1:step=2", 70, "^pq-run.1.: internal error: PQ_FAULT .* in decode, step 2 on"},
        Case{"run", 2, "throw:finalize:rank=1", 70,
             "^pq-run.1.: internal error: PQ_FAULT asked for it in finalize of exit, step 8 on"},
        Case{"run", 2, "oom:load:rank=1", 69, "^pq-run.0.: rank 1 on .*: out of memory in loading the weights"},
        Case{"run", 4, "oom:decode:rank=1:step=2", 69, "^pq-run.1.: out of memory in decode, step 2 on"}),
    name_of);

INSTANTIATE_TEST_SUITE_P(
    Elsewhere, Fault,
    testing::Values(
        Case{"run", 2, "exit:load:rank=1:layer=2", 70, "^pq-run.1.: exit was called in load, layer 2 on"},
        Case{"run", 4, "exit:prefill:rank=3:layer=2", 70, "^pq-run.3.: exit was called in prefill, layer 2, step 1 on"},
        Case{"quantize", 2, "exit:quantise:rank=0:nth=2", 70, "^pq-quantize.0.: exit was called in quantise, shard [0-9] on"},
        Case{"run", 2, "throw:load:rank=1:layer=2", 70, "^pq-run.0.: rank 1 on .*: loading the weights: PQ_FAULT asked for it$"},
        Case{"run", 4, "throw:prefill:rank=2", 70, "^pq-run.2.: internal error: PQ_FAULT asked for it in prefill, step 1 on"},
        Case{"quantize", 4, "throw:quantise:rank=3:nth=2", 70, "^pq-quantize.0.: rank 3 on .*: quantise: PQ_FAULT asked for it$"},
        Case{"quantize", 2, "oom:quantise:rank=1:nth=2", 69, "^pq-quantize.0.: rank 1 on .*: out of memory in quantise$"},
        Case{"run", 2, "oom:prefill:rank=0:layer=5", 69, "^pq-run.0.: out of memory in prefill, layer 5, step 1 on"},
        Case{"run", 0, "oom:load:layer=2", 69, "^pq-run: out of memory in loading the weights$"},
        Case{"ppl", 2, "kill:prefill:rank=1", 137, "^pq-ppl.0.: rank 1 on .* ended without a word in prefill, step 1;"},
        Case{"ppl", 4, "stop:prefill:rank=2", 75, "rank 2, which is in prefill, step 1 on .*; its process is stopped$"},
        Case{"ppl", 2, "throw:prefill:rank=1:layer=3", 70,
             "^pq-ppl.1.: internal error: PQ_FAULT .* in prefill, layer 3, step 1 on"}),
    name_of);

// Every rank takes itself for a node, so that the ranks hear of each other by their links alone.
class ApartFault : public Fault {};

TEST_P(ApartFault, OneLineOneCodeAndNobodyLeft) { expect_one_line({"env", "PQ_NODES=1"}); }

// Nodes of two ranks.
class PairsFault : public Fault {};

TEST_P(PairsFault, OneLineOneCodeAndNobodyLeft) { expect_one_line({"env", "PQ_NODES=2"}); }

constexpr const char* kLastHeard = "ended without a word, last heard in ";
constexpr const char* kSilent = "nothing is heard from its process, which is stopped or cut off$";

INSTANTIATE_TEST_SUITE_P(
    Nodes, ApartFault,
    testing::Values(
        Case{"run", 2, "kill:load:rank=1:layer=3", 137, kLastHeard}, Case{"run", 4, "kill:decode:rank=2:step=3", 137, kLastHeard},
        Case{"run", 4, "kill:decode:rank=0:step=3", 137, "^pq-run.1.: rank 0 on .* ended without a word, last heard in "},
        Case{"quantize", 2, "kill:quantise:rank=1", 137, kLastHeard}, Case{"run", 2, "kill:finalize:rank=1", 137, kLastHeard},
        Case{"run", 2, "stop:load:rank=1:layer=3", 75, kSilent}, Case{"run", 2, "stop:load:rank=0:layer=3", 75, kSilent},
        Case{"run", 4, "stop:decode:rank=0:step=3", 75, "^pq-run.1.: .*nothing is heard from its process"},
        Case{"run", 4, "stop:prefill:rank=3:layer=2", 75, kSilent}, Case{"run", 2, "stop:finalize:rank=1", 75, kSilent},
        Case{"run", 2, "hang:decode:rank=1:step=3:layer=4", 75,
             "^pq-run.0.: .*waits for rank 1, which is in decode, layer 4, step 3"},
        Case{"run", 2, "hang:load:rank=1:layer=3", 75, "^pq-run.0.: .*waits for rank 1, which is in load, layer 3"},
        Case{"run", 2, "segv:decode:rank=1:step=3:layer=1", 139, "^pq-run.1.: crashed with SIGSEGV in decode, layer 1, step 3 on"},
        Case{"run", 4, "throw:decode:rank=1:step=2", 70, "^pq-run.1.: internal error: PQ_FAULT .* in decode, step 2 on"},
        Case{"run", 2, "exit:decode:rank=1:step=2", 70, "^pq-run.1.: exit was called in decode, step 2 on"},
        Case{"run", 2, "oom:load:rank=1", 69, "^pq-run.0.: rank 1 on .*: out of memory in loading the weights"}),
    name_of);

INSTANTIATE_TEST_SUITE_P(
    Nodes, PairsFault,
    testing::Values(
        Case{"run", 4, "kill:decode:rank=0:step=3", 137, "^pq-run.1.: rank 0 on .* ended without a word in decode"},
        Case{"run", 4, "kill:decode:rank=3:step=3", 137, "rank 3 on .* ended without a word in decode, step 3"},
        Case{"run", 4, "stop:decode:rank=0:step=3", 75, "^pq-run.1.: .*rank 0, which is in decode, step 3 on .*stopped$"},
        Case{"run", 4, "stop:load:rank=3:layer=3", 75, "rank 3, which is in .* on .*; nothing is heard from its process"},
        Case{"run", 4, "throw:decode:rank=3:step=2", 70, "^pq-run.3.: internal error: PQ_FAULT "},
        Case{"run", 4, "hang:prefill:rank=1:layer=2", 75, "rank 1, which is in prefill, layer 2|^pq-run.1.: no progress"},
        Case{"quantize", 6, "kill:quantise:rank=5", 137, "^pq-quantize.4.: rank 5 on .* ended without a word in quantise"},
        Case{"quantize", 6, "stop:quantise:rank=4", 75,
             "^pq-quantize.0.: .*waits for rank 4, .*; nothing is heard from its process"},
        Case{"quantize", 6, "hang:quantise:rank=2", 75, "^pq-quantize.0.: .*waits for rank 2, which is in quantise"}),
    name_of);

// What the ranks were told to call, they call; a fault that nobody reaches leaves a run as it is.
TEST(FaultVariable, IsReadStrictlyAndActsOnlyWhereItSays) {
  const Words words = {"-m", test::demo_path(), "-p", "x", "-n", "2", "--temp", "0"};
  const FailedJob unread = test::run_with_fault("kill:nowhere", test::launched(2, "pq-run", words));
  EXPECT_EQ(unread.result.code, 64);
  ASSERT_EQ(unread.lines.size(), 1u) << unread.result.err;
  EXPECT_THAT(unread.lines[0], testing::HasSubstr("ACTION:POINT"));
  const FailedJob missed = test::run_with_fault("kill:decode:rank=7", test::launched(2, "pq-run", words));
  EXPECT_EQ(missed.result.code, 0) << missed.result.err;
  EXPECT_FALSE(missed.faulted);
}

}  // namespace
}  // namespace pq
