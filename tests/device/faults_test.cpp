// A rank with a GPU dies, stalls or throws while the device of another waits for its values: one line, the documented code, nobody
// left within seconds.
#include <cstdio>
#include <ostream>

#include "device/emulated_programs.h"
#include "failure/failing_job.h"

namespace pq {
namespace {

using test::Words;

// A replayed step says nothing until it ends, and emulated it takes a while on a busy machine.
constexpr const char* kWatchdog = test::kTimeFactor > 1 ? "45" : "6";
constexpr double kDeathSeconds = 5, kStallSeconds = 12;

struct Case {
  const char* way;
  const char* fault;
  int code;
  const char* line;  // an expression that the line matches
};
void PrintTo(const Case& param, std::ostream* out) { *out << param.way << ' ' << param.fault; }

class EmulatedFault : public testing::TestWithParam<Case> {};

constexpr const char* kVanished = "rank 1 on .* ended without a word in ";
constexpr const char* kStopped = "no progress for .* s in .*: waits for rank 1, which is in .*; its process is stopped";
INSTANTIATE_TEST_SUITE_P(
    All, EmulatedFault,
    testing::Values(Case{"host", "kill:load:rank=1:layer=3", 137, kVanished},
                    Case{"host", "kill:decode:rank=1:step=3:layer=1", 137, kVanished},
                    Case{"mpi", "kill:decode:rank=1:step=3:layer=1", 137, kVanished},
                    Case{"host", "kill:exit:rank=1", 137, kVanished}, Case{"p2p", "kill:decode:rank=1:step=3", 137, kVanished},
                    Case{"p2p", "stop:decode:rank=1:step=3", 75, kStopped},
                    Case{"host", "stop:prefill:rank=1:layer=2", 75, kStopped},
                    Case{"host", "stop:decode:rank=1:step=3", 75, kStopped}, Case{"mpi", "stop:decode:rank=1:step=3", 75, kStopped},
                    Case{"host", "hang:decode:rank=1:step=3:layer=4", 75,
                         "(waits for rank 1, which is in|\\[1\\]: no progress for .* s in) decode, layer 4, step 3 on "},
                    Case{"host", "exit:decode:rank=1:step=2", 70, "exit was called in decode"},
                    Case{"host", "throw:decode:rank=1:step=2", 70, "PQ_FAULT asked for it in decode"},
                    Case{"host", "oom:decode:rank=1:step=2", 69, "out of memory in decode"}),
    [](const auto& info) {
      std::string name = std::string(info.param.way) + "_" + info.param.fault;
      for (char& c : name)
        if (!isalnum(static_cast<unsigned char>(c))) c = '_';
      return name;
    });

TEST_P(EmulatedFault, OneLineOneCodeAndNobodyLeft) {
  const Case param = GetParam();
  const test::DemoStore store;
  const Words words = {"-m", store.path(), "-p",   "Once upon a time", "-n",      "6",          "--temp",
                       "0",  "--device",   "cuda", "--allreduce",      param.way, "--watchdog", kWatchdog};
  const Words command = test::on_machine({"PQ_SIMT_IPC=1"}, test::launched(2, "emulated/pq-run", words));
  const test::FailedJob job = test::run_with_fault(param.fault, command);
  test::expect_one_line(job, param.code, param.line, kDeathSeconds, kStallSeconds);
  if (HasFailure()) return;
  std::printf("| `--allreduce %s` | `%s` | `%s` | %d | %.1f s |\n", param.way, param.fault, job.lines[0].c_str(), job.result.code,
              job.seconds_to_end);
}

TEST(EmulatedSignal, LetsTheTokenBeFinished) {
  const test::DemoStore store;
  const Words words = {"-m", store.path(), "-p", "Once upon a time", "-n", "6", "--temp", "0", "--device", "cuda"};
  const Words command = test::on_machine({}, test::launched(2, "emulated/pq-run", words));
  const test::FailedJob job = test::run_with_fault("term:decode:rank=1:step=3", command);
  EXPECT_TRUE(job.faulted);
  EXPECT_EQ(job.result.code, 143);
  EXPECT_TRUE(job.lines.empty()) << job.result.err;
  EXPECT_THAT(job.result.err, testing::HasSubstr("stopped at an interruption"));
  EXPECT_NE(job.result.out, "");
}

}  // namespace
}  // namespace pq
