// What the programs say where there is no GPU to use, or too little of it: one line, the documented code, nothing left running.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>

#include "device/emulated_programs.h"
#include "support/refusal.h"

namespace pq {
namespace {

using test::Words;
using testing::AllOf;
using testing::HasSubstr;

test::ProcessResult run(int ranks, const Words& flags, const Words& machine) {
  const test::DemoStore store;
  return test::run_emulated("pq-run", ranks, test::short_run(store.path(), flags), machine);
}

std::string refused(int ranks, const Words& flags, const Words& machine, int code) {
  return test::refusal_line("pq-run", run(ranks, flags, machine), {code});
}

TEST(EmulatedRefusal, WithoutADeviceByNameAndTheCpuByItself) {
  const std::pair<Words, const char*> machines[] = {
      {{"PQ_SIMT_DEVICES=0"}, "the driver shows no device"},
      {{"PQ_SIMT_DRIVER=12080"}, "the NVIDIA driver is of CUDA 12.8, but pq needs CUDA 13.0: install driver 580 or newer"},
      {{"PQ_SIMT_DRIVER=0"}, "there is no NVIDIA driver here"}};
  for (const auto& [machine, why] : machines) {
    for (const int ranks : {0, 2}) {
      EXPECT_THAT(refused(ranks, {"--device", "cuda"}, machine, 69),
                  AllOf(HasSubstr("no GPU: "), HasSubstr(why), HasSubstr("run with --device cpu")));
      const auto fallen_back = run(ranks, {"--device", "auto"}, machine);
      EXPECT_EQ(fallen_back.code, 0) << fallen_back.err;
      EXPECT_THAT(fallen_back.err, AllOf(HasSubstr(why), HasSubstr("running on the CPU"), HasSubstr("cpu (")));
    }
  }
}

TEST(EmulatedRefusal, OfAnArchitectureWithoutKernels) {
  EXPECT_THAT(refused(0, {"--device", "cuda"}, {"PQ_SIMT_CAPABILITY=75"}, 69),
              HasSubstr("device 0 (emulated) is of compute capability 7.5; pq needs 8.0; run with --device cpu"));
}

TEST(EmulatedRefusal, OfTwoRanksOnOneDevice) {
  const Words one = {"PQ_SIMT_DEVICES=1"};
  EXPECT_THAT(refused(2, {"--device", "cuda"}, one, 64), HasSubstr("ranks 0 and 1 have one GPU"));
  const auto shared = run(2, {"--device", "cuda", "--share-device"}, one);
  EXPECT_EQ(shared.code, 0) << shared.err;
}

// The demo model's plan is 450 MB of context and graphs and about 37 of its own, most of it the workspace.
TEST(EmulatedRefusal, OfACapThatHoldsNoModel) {
  EXPECT_THAT(refused(2, {"--device", "cuda", "--memory", "100MB"}, {}, 64), HasSubstr("is less than a CUDA context takes"));
  EXPECT_THAT(refused(2, {"--device", "cuda", "--memory", "451MB"}, {}, 64), HasSubstr("is less than a CUDA context takes"));
  EXPECT_THAT(refused(2, {"--device", "cuda", "--memory", "456MB"}, {}, 69),
              AllOf(HasSubstr("--memory allows 456 MB"), HasSubstr("not even one position fits")));
}

// "... the largest context that fits is -c N": so many do fit, and one more does not.
TEST(EmulatedRefusal, OfACapThatHoldsAShorterContextNamesIt) {
  const std::string line = refused(0, {"--device", "cuda", "--memory", "484MB", "-c", "8192"}, {}, 69);
  std::smatch match;
  ASSERT_TRUE(std::regex_search(line, match, std::regex("--memory allows 484 MB; the largest context that fits is -c ([0-9]+)$")))
      << line;
  const int64_t largest = std::stoll(match[1]);
  EXPECT_LT(largest, 8192);
  refused(0, {"--device", "cuda", "--memory", "484MB", "-c", std::to_string(largest + 1)}, {}, 69);
  const auto fits = run(0, {"--device", "cuda", "--memory", "484MB", "-c", std::to_string(largest)}, {});
  EXPECT_EQ(fits.code, 0) << fits.err;
}

// What is planned may come to what is free, the context that is already there, and less the 100 MB that come later; on a device
// that ranks share, to a share of what is free.
TEST(EmulatedRefusal, OfMoreThanTheDeviceHasFree) {
  const Words small = {"PQ_SIMT_DEVICES=1", "PQ_SIMT_MEMORY=134000000"};
  for (const Words& memory : {Words{}, Words{"--memory", "10GB"}}) {
    Words flags = {"--device", "cuda", "-c", "8192"};
    flags.insert(flags.end(), memory.begin(), memory.end());
    EXPECT_THAT(refused(0, flags, small, 69),
                AllOf(HasSubstr("but this rank's GPU has 484 MB"), HasSubstr("the largest context that fits is -c ")));
    flags.insert(flags.end(), {"--share-device", "--allreduce", "host"});
    EXPECT_THAT(refused(2, flags, small, 69), HasSubstr("but this rank's GPU has 419 MB"));
  }
}

// The plan fits, and then somebody else takes the memory.
TEST(EmulatedRefusal, OfMemoryThatIsGoneWhenItIsNeeded) {
  const Words flags = {"--device", "cuda", "--allreduce", "mpi", "-c", "8192"};
  for (const int ranks : {0, 2}) {
    const auto result = run(ranks, flags, {"PQ_SIMT_ROOM=8000000"});
    EXPECT_EQ(result.code, 69);
    EXPECT_EQ(result.out, "");
    // Before it, with two ranks, how they add.
    const Words lines = test::lines_of(result.err);
    ASSERT_EQ(lines.size(), ranks == 0 ? 1u : 2u) << result.err;
    EXPECT_THAT(lines.back(),
                testing::ContainsRegex("no device memory for a buffer of [0-9.]+ [kM]B: [0-9.]+ [kM]B of the device's "
                                       "2.15 GB are free; .*; the plan is .* a rank .*, there are 35[0-9] MB now: not "
                                       "even one position fits"));
  }
}

}  // namespace
}  // namespace pq
