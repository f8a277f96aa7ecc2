// What the programs do with GPUs, as processes: the bits of the CPU at one and two ranks however they add, in every program, with
// the plan, the sharing of devices and the choice of a way to add that they go through.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "device/emulated_programs.h"
#include "support/store_files.h"

namespace pq {
namespace {

using nlohmann::json;
using test::Words;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

const Words kHash = {"--json", "--logits-hash"};

Words with(Words words, const Words& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

// Of the CPU, one rank.
std::string expected_hash(const std::string& model, const Words& flags = {}) {
  return test::logits_hash(test::run_process(test::program_command(0, "pq-run", test::short_run(model, with(kHash, flags)))));
}

test::ProcessResult run_on_gpus(int ranks, const std::string& model, const Words& flags, const Words& machine = {}) {
  return test::run_emulated("pq-run", ranks, test::short_run(model, with(kHash, flags)), machine);
}

TEST(EmulatedRun, GivesTheBitsOfTheCpu) {
  const test::DemoStore store;
  const std::string expected = expected_hash(store.path());
  const auto alone = run_on_gpus(0, store.path(), {"--device", "cuda"});
  EXPECT_EQ(test::logits_hash(alone), expected);
  EXPECT_THAT(alone.err, AllOf(HasSubstr("cuda (emulated)"), Not(HasSubstr("GPUs add by"))));
  EXPECT_THAT(alone.err, testing::ContainsRegex("on the GPU .* in buffers, .* taken in all; -c [0-9]+ would fit"));
  // The device that answers is taken.
  const auto automatic = run_on_gpus(0, store.path(), {"--device", "auto", "-b", "3"});
  EXPECT_EQ(test::logits_hash(automatic), expected);
  EXPECT_THAT(automatic.err, AllOf(HasSubstr("cuda (emulated)"), Not(HasSubstr("running on the CPU"))));
}

// There is no NCCL, and the devices do not reach each other's memory: the probe says so, and takes what is left.
TEST(EmulatedRun, TwoRanksGiveTheBitsOfOneByEveryWayToAdd) {
  const test::DemoStore store;
  const std::string expected = expected_hash(store.path());
  for (const char* way : {"auto", "host", "mpi"}) {
    SCOPED_TRACE(way);
    const auto result = run_on_gpus(2, store.path(), {"--device", "cuda", "--allreduce", way, "--check-collectives"});
    EXPECT_EQ(test::logits_hash(result), expected);
    if (std::string(way) == "auto")
      EXPECT_THAT(result.err, AllOf(testing::ContainsRegex("GPUs add by (host|mpi); "), HasSubstr("no nccl: libnccl"),
                                    HasSubstr("no p2p: a device cannot reach the memory of another"),
                                    testing::ContainsRegex("; host [0-9.]+ us"), testing::ContainsRegex("; mpi [0-9.]+ us")));
    else
      EXPECT_THAT(result.err, HasSubstr(std::string("GPUs add by ") + way));
  }
}

TEST(EmulatedRun, RanksPushIntoEachOthersMemory) {
  const test::DemoStore store;
  const std::string expected = expected_hash(store.path());
  for (const int ranks : {2, 4}) {
    const auto result =
        run_on_gpus(ranks, store.path(), {"--device", "cuda", "--share-device", "--allreduce", "p2p"}, {"PQ_SIMT_IPC=1"});
    EXPECT_EQ(test::logits_hash(result), expected);
    EXPECT_THAT(result.err, HasSubstr("GPUs add by p2p"));
  }
  const auto probed = run_on_gpus(2, store.path(), {"--device", "cuda"}, {"PQ_SIMT_IPC=1"});
  EXPECT_EQ(test::logits_hash(probed), expected);
  EXPECT_THAT(probed.err, testing::ContainsRegex("p2p [0-9.]+ us"));
}

TEST(EmulatedRun, FourRanksOnTwoDevicesShareThem) {
  const test::DemoStore store;
  const auto shared = run_on_gpus(4, store.path(), {"--device", "cuda", "--share-device", "--allreduce", "host"});
  EXPECT_EQ(test::logits_hash(shared), expected_hash(store.path()));
}

// Prompts of 64 tokens and more; the library is a stand-in. Other bits are its promise too: they say that it was used.
TEST(EmulatedRun, MultipliesPromptsByCublasWhereAsked) {
  const test::DemoStore store;
  std::string prompt;
  for (int i = 0; i < 16; ++i) prompt += "There was a patient little bear. ";
  const auto run = [&](const Words& flags) {
    return test::run_emulated(
        "pq-run", 0, with({"-m", store.path(), "-p", prompt, "-n", "1", "--temp", "0", "--device", "cuda"}, with(kHash, flags)));
  };
  const auto by_codes = run({}), by_cublas = run({"--prefill", "cublas"});
  EXPECT_GE(json::parse(by_cublas.out)["prefill"]["tokens"], 64);
  EXPECT_THAT(by_cublas.err, HasSubstr("prefill by "));
  EXPECT_NE(test::logits_hash(by_cublas), test::logits_hash(by_codes));
}

TEST(EmulatedRun, QuantisesWhileItLoads) {
  const Words flags = {"--format", "pq3", "--no-scale-search", "--kv-type", "q8"};
  const auto result = run_on_gpus(2, test::demo_path(), with({"--device", "cuda"}, flags));
  EXPECT_EQ(test::logits_hash(result), expected_hash(test::demo_path(), flags));
}

TEST(EmulatedQuantize, MakesTheBytesOfTheCpu) {
  const test::DemoStore host({"--no-scale-search"});
  const test::TemporaryDirectory directory;
  const std::string device = directory.path() + "/device";
  const auto result = test::run_emulated("pq-quantize", 2, {test::demo_path(), device, "--no-scale-search", "--device", "cuda"});
  ASSERT_EQ(result.code, 0) << result.err;
  test::expect_same(test::files_of(host.path()), test::files_of(device));
}

TEST(EmulatedPpl, GivesTheDigitsOfTheCpu) {
  const test::DemoStore store;
  const Words words = {"-m",         store.path(), "-f",    test::demo_path() + "/eval.txt",
                       "--protocol", "gptq-2048",  "--ctx", "32",
                       "--windows",  "2",          "--json"};
  const auto host = test::run_process(test::program_command(0, "pq-ppl", words));
  ASSERT_EQ(host.code, 0) << host.err;
  const auto device = test::run_emulated("pq-ppl", 2, with(words, {"--device", "cuda"}));
  ASSERT_EQ(device.code, 0) << device.err;
  EXPECT_EQ(json::parse(device.out)["perplexity"], json::parse(host.out)["perplexity"]);
}

// The synthetic model is made on the device; what is measured is its stream, beside the rate at which it copies.
TEST(EmulatedBench, MeasuresADecodeStepAndTheSumsOfTwoRanks) {
  const Words model = {"--geometry", "qwen3.5-0.8b",  "--layers", "4",        "--vocab", "512",   "-r",
                       "1",          "--working-set", "2",        "--device", "cuda",    "--json"};
  const auto decode = test::run_emulated("pq-bench", 0, with({"decode", "-n", "1", "-d", "2"}, model));
  ASSERT_EQ(decode.code, 0) << decode.err;
  const json steps = json::parse(decode.out);
  EXPECT_THAT(steps["title"].get<std::string>(), HasSubstr("cuda (emulated)"));
  EXPECT_EQ(steps["roofs"]["device"], true);
  ASSERT_EQ(steps["rows"].size(), 1u) << steps;
  EXPECT_GT(steps["rows"][0]["median_ms"], 0);
  EXPECT_LE(steps["device_bytes"][0]["buffers"], steps["planned_bytes"][0]);
  const auto sums = test::run_emulated("pq-bench", 2, with({"comm"}, model));
  ASSERT_EQ(sums.code, 0) << sums.err;
  EXPECT_THAT(sums.out, AllOf(HasSubstr("host"), HasSubstr("mpi")));
}

}  // namespace
}  // namespace pq
