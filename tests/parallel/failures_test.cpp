// What a user sees when a rank fails: the exit code, exactly one line on stderr, and an end within seconds, at one, two and four
// ranks.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/process.h"

namespace pq {
namespace {

using testing::HasSubstr;

std::string host_of_this_machine() {
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  return name;
}

// A job start takes 0.1 to 0.5 s; waiting for a rank that never comes would take for ever.
constexpr double kPromptSeconds = 5 * test::kTimeFactor;

struct Case {
  const char* where;
  int code;
};

class Failures : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Kinds, Failures,
                         testing::Values(Case{"agree", 74}, Case{"early", 65}, Case{"late", 74}, Case{"bad_alloc", 69},
                                         Case{"exception", 70}, Case{"unknown", 70}),
                         [](const auto& info) { return std::string(info.param.where); });

TEST_P(Failures, OneRankFails) {
  const Case param = GetParam();
  for (const int ranks : {0, 1, 2, 4}) {
    for (const int failing : ranks > 1 ? std::vector<int>{0, ranks - 1} : std::vector<int>{0}) {
      const auto result = test::run_process(test::program_command(ranks, "failures_main", {param.where, std::to_string(failing)}));
      EXPECT_EQ(result.code, param.code) << ranks << " ranks, rank " << failing << " fails: " << result.err;
      EXPECT_LT(result.seconds, kPromptSeconds);
      const auto lines = test::lines_of(result.err);
      ASSERT_EQ(lines.size(), 1u) << ranks << " ranks, rank " << failing << " fails: " << result.err;
      const bool agreed = std::string(param.where) == "agree";
      const int speaker = agreed ? 0 : failing;
      const std::string identity = ranks > 1 ? "failures[" + std::to_string(speaker) + "]: " : "failures: ";
      EXPECT_EQ(lines[0].rfind(identity, 0), 0u) << lines[0];
      if (agreed && failing != 0) {
        EXPECT_THAT(lines[0], HasSubstr("rank " + std::to_string(failing) + " on " + host_of_this_machine() + ": "));
      } else if (!agreed) {
        EXPECT_THAT(lines[0], HasSubstr(" on " + host_of_this_machine()));
      }
      if (std::string(param.where) == "late") {
        EXPECT_THAT(result.out, HasSubstr("last words\n"));
      }
    }
  }
}

// Unchecked, a rank that ends early leaves the others to the watchdog; checked, every kind of divergence names both calls.
TEST(Failures, DivergenceIsAnErrorAndNoHang) {
  for (const int ranks : {2, 4}) {
    const std::string last = std::to_string(ranks - 1);
    const auto hang = test::run_process(test::program_command(ranks, "failures_main", {"end", last}));
    EXPECT_EQ(hang.code, 75) << hang.err;
    EXPECT_LT(hang.seconds, kPromptSeconds);
    ASSERT_EQ(test::lines_of(hang.err).size(), 1u) << hang.err;
    EXPECT_THAT(hang.err, HasSubstr("no progress for 1 s in "));
    const std::pair<const char*, std::string> kinds[] = {
        {"operation", "barrier of 0"}, {"count", "all_reduce of 2"}, {"end", "finalize of 0"}};
    for (const auto& [where, call] : kinds) {
      const auto checked = test::run_process(test::program_command(ranks, "failures_main", {where, last, "--check-collectives"}));
      EXPECT_EQ(checked.code, 70) << checked.err;
      EXPECT_LT(checked.seconds, kPromptSeconds);
      ASSERT_EQ(test::lines_of(checked.err).size(), 1u) << checked.err;
      // One exchange of agree and 50 steps come before.
      EXPECT_THAT(checked.err, HasSubstr("rank 0 calls all_reduce of 1 as its collective 52 in start, but rank " + last +
                                         " calls " + call + " as its collective 52"));
    }
  }
}

// As from a rank 0 of another version: the length is looked at before memory is taken.
TEST(Failures, AMessageOfImpossibleLengthIsRefused) {
  const auto result = test::run_process(test::program_command(2, "failures_main", {"message", "0"}));
  EXPECT_EQ(result.code, 70) << result.err;
  ASSERT_EQ(test::lines_of(result.err).size(), 1u) << result.err;
  EXPECT_THAT(result.err, HasSubstr("failures[1]: rank 0 announces a message of -1 bytes (in "));
}

TEST(Failures, EveryRankFailsInAgreement) {
  for (const int ranks : {2, 4}) {
    const auto result = test::run_process(test::program_command(ranks, "failures_main", {"agree", "all"}));
    EXPECT_EQ(result.code, 74);
    EXPECT_EQ(result.err, "failures[0]: agree failed on rank 0\n");
    EXPECT_LT(result.seconds, kPromptSeconds);
  }
}

TEST(Failures, SuccessIsSilent) {
  for (const int ranks : {0, 1, 2, 4}) {
    const auto result = test::run_process(test::program_command(ranks, "failures_main", {}));
    EXPECT_EQ(result.code, 0);
    EXPECT_EQ(result.err, "");
    EXPECT_EQ(result.out, "data\n");
  }
}

// srun without MPI support starts copies that each believe to be rank 0 of 1.
TEST(Failures, CopiesUnderSrunAreRefused) {
  const std::string program = std::string(PQ_BIN_DIR) + "/failures_main";
  const auto first = test::run_process({"env", "SLURM_STEP_NUM_TASKS=2", "SLURM_PROCID=0", program});
  EXPECT_EQ(first.code, 64);
  EXPECT_EQ(test::lines_of(first.err).size(), 1u) << first.err;
  EXPECT_THAT(first.err, HasSubstr("--mpi=pmix"));
  const auto second = test::run_process({"env", "SLURM_STEP_NUM_TASKS=2", "SLURM_PROCID=1", program});
  EXPECT_EQ(second.code, 64);
  EXPECT_EQ(second.err, "");
}

TEST(Failures, OutputThatCannotBeWrittenIsAnError) {
  const auto result = test::run_process({"sh", "-c", std::string(PQ_BIN_DIR) + "/failures_main > /dev/full"});
  EXPECT_EQ(result.code, 74);
  EXPECT_EQ(test::lines_of(result.err).size(), 1u) << result.err;
  EXPECT_THAT(result.err, HasSubstr("standard output"));
}

}  // namespace
}  // namespace pq
