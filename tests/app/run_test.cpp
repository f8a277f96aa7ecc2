// pq-run as a user meets it: real processes under the real mpirun on the demo model. No golden text: the weights may be trained
// anew.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "support/demo_model.h"
#include "support/process.h"

namespace pq {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;
using testing::MatchesRegex;
using testing::Not;

using Words = std::vector<std::string>;

const char* const kPrompt =
    "Once upon a time there was a patient little bear called Olga. She loved salmon more than anything else.";

// ranks 0: without mpirun.
test::ProcessResult run(int ranks, Words arguments, const std::string& input = "") {
  return test::run_process(test::program_command(ranks, "pq-run", arguments), input);
}

test::ProcessResult run_demo(int ranks, const Words& arguments, const std::string& input = "") {
  Words words = {"-m", test::demo_path()};
  words.insert(words.end(), arguments.begin(), arguments.end());
  return run(ranks, words, input);
}

json run_json(int ranks, const std::string& model, const Words& arguments, const std::string& input = "") {
  Words words = {"-m", model, "--json", "--logits-hash"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  const auto result = run(ranks, words, input);
  EXPECT_EQ(result.code, 0) << result.err;
  return json::parse(result.out, nullptr, false);
}

// A refusal: the code, nothing on stdout, one line on stderr from the program, promptly.
std::string refusal(const test::ProcessResult& result, const std::vector<int>& codes) {
  EXPECT_THAT(codes, testing::Contains(result.code)) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_LT(result.seconds, 20 * test::kTimeFactor);
  const auto lines = test::lines_of(result.err);
  EXPECT_EQ(lines.size(), 1u) << result.err;
  if (lines.empty()) return "";
  EXPECT_THAT(lines[0], MatchesRegex("pq-run(\\[[0-9]\\])?: .*"));
  return lines[0];
}

TEST(Run, TextAndLogitsAreTheSameAtEveryRankCountAndChunking) {
  const Words arguments = {"-p", kPrompt, "-n", "24", "--temp", "0"};
  const json alone = run_json(0, test::demo_path(), arguments);
  ASSERT_EQ(alone["tokens"].size(), 24u) << alone;
  EXPECT_THAT(alone["logits_hash"].get<std::string>(), MatchesRegex("[0-9a-f]{16}"));
  EXPECT_EQ(alone["stop_reason"], "length");
  EXPECT_GT(alone["prefill"]["tokens"], 8);
  EXPECT_EQ(alone["decode"]["tokens"], 23);
  for (const int ranks : {1, 2, 4}) {
    const json result = run_json(ranks, test::demo_path(), arguments);
    EXPECT_EQ(result["ranks"], ranks);
    EXPECT_EQ(result["memory"].size(), static_cast<size_t>(ranks));
    EXPECT_EQ(result["tokens"], alone["tokens"]) << ranks << " ranks";
    EXPECT_EQ(result["text"], alone["text"]) << ranks << " ranks";
    EXPECT_EQ(result["logits_hash"], alone["logits_hash"]) << ranks << " ranks";
  }
  for (const char* batch : {"1", "7"}) {
    Words chunked = arguments;
    chunked.insert(chunked.end(), {"-b", batch});
    const json result = run_json(batch[0] == '1' ? 0 : 2, test::demo_path(), chunked);
    EXPECT_EQ(result["logits_hash"], alone["logits_hash"]) << "batch " << batch;
  }
  Words other = arguments;
  other[1] = "Once upon a time there was a patient little bear called Olga. She loved salmon more than anything elsE.";
  EXPECT_NE(run_json(0, test::demo_path(), other)["logits_hash"], alone["logits_hash"]);
}

TEST(Run, OtherFormatsAreTheSameAtEveryRankCount) {
  for (const Words& format :
       {Words{"--format", "bf16", "--activations", "f32"}, Words{"--format", "int4"}, Words{"--format", "pq3"}}) {
    Words arguments = {"-p", kPrompt, "-n", "4", "--temp", "0"};
    arguments.insert(arguments.end(), format.begin(), format.end());
    const json alone = run_json(0, test::demo_path(), arguments);
    EXPECT_EQ(run_json(2, test::demo_path(), arguments)["logits_hash"], alone["logits_hash"]) << format[1];
  }
}

TEST(Run, ThreadsAndInstructionSetsDoNotChangeTheBits) {
  const Words arguments = {"-p", kPrompt, "-n", "4", "--temp", "0"};
  const json alone = run_json(0, test::demo_path(), arguments);
  const std::pair<int, Words> cases[] = {
      {0, {"-t", "1"}}, {0, {"-t", "3"}}, {2, {"-t", "2"}}, {0, {"--isa", "generic"}}, {2, {"--isa", "generic", "-t", "1"}}};
  for (const auto& [ranks, words] : cases) {
    Words other = arguments;
    other.insert(other.end(), words.begin(), words.end());
    EXPECT_EQ(run_json(ranks, test::demo_path(), other)["logits_hash"], alone["logits_hash"]) << words[0] << words[1];
  }
}

TEST(Run, MoreThreadsThanCpusGetALine) {
  const std::string threads = std::to_string(std::thread::hardware_concurrency() + 1);
  const auto result = run_demo(0, {"-p", "a", "-n", "1", "-t", threads});
  EXPECT_EQ(result.code, 0);
  EXPECT_THAT(result.err, HasSubstr("pq-run: -t " + threads + " exceeds the "));
}

TEST(Run, WithoutAGpuCudaIsRefusedAndAutoRunsOnTheCpu) {
  const auto refused = run_demo(2, {"-p", "a", "-n", "1", "--device", "cuda"});
  if (refused.code == 0) GTEST_SKIP() << "this machine has a GPU";
  // And not that the plugin cannot be opened.
  EXPECT_THAT(refusal(refused, {69}), AllOf(HasSubstr("no GPU: "), HasSubstr("run with --device cpu"),
                                            AnyOf(HasSubstr("this build has no CUDA"), HasSubstr("driver"))));
  const auto fallen_back = run_demo(2, {"-p", "a", "-n", "1", "--device", "auto"});
  EXPECT_EQ(fallen_back.code, 0);
  EXPECT_THAT(fallen_back.err, AllOf(HasSubstr("no GPU: "), HasSubstr("running on the CPU"), HasSubstr("cpu (")));
}

TEST(Run, TheBannerNamesInstructionSetAndThreads) {
  const auto result = run_demo(0, {"-p", "a", "-n", "1", "-t", "3", "--isa", "generic"});
  EXPECT_EQ(result.code, 0);
  EXPECT_THAT(result.err, HasSubstr("cpu (generic, 3 threads)"));
}

TEST(Run, AnUnknownInstructionSetIsRefused) {
  const std::string line = refusal(run_demo(2, {"-p", "a", "--isa", "mmx"}), {64});
  EXPECT_THAT(line, HasSubstr("there is no instruction set 'mmx'; known are generic"));
}

TEST(Run, AStoreGivesTheBitsOfTheCheckpoint) {
  test::TemporaryDirectory directory;
  const std::string store = directory.path() + "/store";
  const auto made = test::run_process(test::program_command(2, "pq-quantize", {test::demo_path(), store}));
  ASSERT_EQ(made.code, 0) << made.err;
  const Words arguments = {"-p", kPrompt, "-n", "8", "--temp", "0"};
  EXPECT_EQ(run_json(2, store, arguments)["logits_hash"], run_json(0, test::demo_path(), arguments)["logits_hash"]);

  const auto refused = [&](const char* what, const std::function<void(test::ModelCopy&)>& damage) {
    test::ModelCopy copy(store);
    damage(copy);
    for (const int ranks : {1, 2}) {
      SCOPED_TRACE(std::string(what) + " at " + std::to_string(ranks) + " ranks");
      refusal(run(ranks, {"-m", copy.path(), "-p", "Hi", "-n", "1"}), {65, 74});
    }
  };
  refused("flipped byte", [](test::ModelCopy& copy) {
    const std::string shard = copy.find(".h5");
    copy.flip_byte(shard, copy.content(shard).size() / 2);
  });
  refused("truncated shard", [](test::ModelCopy& copy) {
    const std::string shard = copy.find(".h5");
    copy.truncate(shard, copy.content(shard).size() / 2);
  });
  refused("missing shard", [](test::ModelCopy& copy) { copy.remove(copy.find(".h5")); });
  refused("manifest", [](test::ModelCopy& copy) { copy.truncate("manifest.json", copy.content("manifest.json").size() / 2); });
}

TEST(Run, SameSeedSameTextAtEveryRankCount) {
  const Words arguments = {"-p",
                           kPrompt,
                           "-n",
                           "16",
                           "--temp",
                           "1",
                           "--top-k",
                           "50",
                           "--top-p",
                           "0.95",
                           "--min-p",
                           "0.01",
                           "--repeat-penalty",
                           "1.1",
                           "--presence-penalty",
                           "0.1",
                           "--frequency-penalty",
                           "0.1",
                           "-s",
                           "5"};
  const json alone = run_json(0, test::demo_path(), arguments);
  EXPECT_EQ(run_json(2, test::demo_path(), arguments)["tokens"], alone["tokens"]);
  Words other = arguments;
  other.back() = "6";
  EXPECT_NE(run_json(0, test::demo_path(), other)["tokens"], alone["tokens"]);
}

TEST(Run, PlainOutputIsTheTextAndReportsGoToStderr) {
  const json expected = run_json(0, test::demo_path(), {"-p", kPrompt, "-n", "8", "--temp", "0"});
  const auto result = run_demo(2, {"-p", kPrompt, "-n", "8", "--temp", "0", "--logits-hash"});
  EXPECT_EQ(result.code, 0);
  EXPECT_EQ(result.out, expected["text"].get<std::string>() + "\n");
  for (const std::string& line : test::lines_of(result.err)) EXPECT_EQ(line.rfind("pq-run[0]: ", 0), 0u) << line;
  EXPECT_THAT(result.err, HasSubstr("2 ranks (mpi, shared window)"));
  EXPECT_THAT(result.err, HasSubstr("rank 0: "));
  EXPECT_THAT(result.err, HasSubstr("rank 1: "));
  EXPECT_THAT(result.err, HasSubstr("stopped at the limit of 8 tokens"));
  EXPECT_THAT(result.err, HasSubstr("logits hash " + expected["logits_hash"].get<std::string>()));
}

TEST(Run, PromptsFromFilesAndStandardInput) {
  test::TemporaryDirectory directory;
  const std::string path = directory.path() + "/prompt.txt";
  std::ofstream(path) << kPrompt << "\n";
  const json expected = run_json(0, test::demo_path(), {"-p", kPrompt, "-n", "2", "--temp", "0"});
  EXPECT_EQ(run_json(0, test::demo_path(), {"-f", path, "-n", "2", "--temp", "0"})["logits_hash"], expected["logits_hash"]);
  EXPECT_EQ(run_json(2, test::demo_path(), {"-n", "2", "--temp", "0"}, kPrompt)["logits_hash"], expected["logits_hash"]);
}

TEST(Run, InvalidUtf8InAPromptIsReadAsReplacementCharacters) {
  test::TemporaryDirectory directory;
  const std::string path = directory.path() + "/prompt.txt";
  std::ofstream(path, std::ios::binary) << "bear \xff\xc3 and \xe2\x82";
  const auto result = run_demo(1, {"-f", path, "-n", "4", "--temp", "0", "--json", "--logits-hash"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("not valid UTF-8"));
  const json replaced =
      run_json(0, test::demo_path(), {"-p", "bear \xEF\xBF\xBD\xEF\xBF\xBD and \xEF\xBF\xBD", "-n", "4", "--temp", "0"});
  EXPECT_EQ(json::parse(result.out)["logits_hash"], replaced["logits_hash"]);
}

TEST(Run, ZeroTokensRunsThePromptOnly) {
  const json result = run_json(2, test::demo_path(), {"-p", kPrompt, "-n", "0"});
  EXPECT_EQ(result["text"], "");
  EXPECT_TRUE(result["tokens"].empty());
  EXPECT_GT(result["prefill"]["tokens"], 8);
  EXPECT_EQ(result["decode"]["tokens"], 0);
}

TEST(Run, GenerationEndsWhenTheContextIsFull) {
  // High temperature over all tokens, so that a stop token is unlikely within the few that fit.
  const json result = run_json(2, test::demo_path(), {"-p", "Once", "-c", "10", "--temp", "0", "--repeat-penalty", "1.3"});
  EXPECT_THAT(result["stop_reason"].get<std::string>(), AnyOf("context", "stop"));
  EXPECT_LE(result["prefill"]["tokens"].get<int>() + result["decode"]["tokens"].get<int>(), 10);
}

TEST(Run, APromptLongerThanTheContextIsRefusedBeforeLoading) {
  for (const int ranks : {0, 2}) {
    const std::string line = refusal(run_demo(ranks, {"-p", kPrompt, "-c", "8"}), {64});
    EXPECT_THAT(line, HasSubstr("the context holds 8"));
  }
  EXPECT_THAT(refusal(run_demo(1, {"-p", ""}), {64}), HasSubstr("empty"));
  EXPECT_THAT(refusal(run_demo(0, {"-p", "x", "-c", "1000000"}), {64}), HasSubstr("positions"));
}

TEST(Run, ThreeRanksAreRefusedWithTheLegalCounts) {
  const std::string line = refusal(run_demo(3, {"-p", kPrompt}), {64});
  EXPECT_THAT(line, HasSubstr("3 ranks"));
  EXPECT_THAT(line, HasSubstr("1, 2, 4"));
}

struct Damage {
  const char* name;
  void (*apply)(test::ModelCopy&);
};

class DamagedModel : public testing::TestWithParam<Damage> {};
INSTANTIATE_TEST_SUITE_P(
    Run, DamagedModel,
    testing::Values(
        Damage{"truncated_shard",
               [](test::ModelCopy& m) { m.truncate(m.find(".safetensors"), m.content(m.find(".safetensors")).size() - 4096); }},
        Damage{"empty_shard", [](test::ModelCopy& m) { m.truncate(m.find(".safetensors"), 0); }},
        Damage{"missing_shard", [](test::ModelCopy& m) { m.remove(m.find(".safetensors")); }},
        Damage{"broken_header", [](test::ModelCopy& m) { m.flip_byte(m.find(".safetensors"), 9); }},
        Damage{"broken_index", [](test::ModelCopy& m) { m.truncate("model.safetensors.index.json", 100); }},
        Damage{"missing_config", [](test::ModelCopy& m) { m.remove("config.json"); }},
        Damage{"truncated_config", [](test::ModelCopy& m) { m.truncate("config.json", 200); }},
        Damage{"other_config",
               [](test::ModelCopy& m) {
                 std::string text = m.content("config.json");
                 const std::string key = "\"intermediate_size\": 512";
                 text.replace(text.find(key), key.size(), "\"intermediate_size\": 1024");
                 m.replace("config.json", text);
               }},
        Damage{"missing_tokenizer", [](test::ModelCopy& m) { m.remove("tokenizer.json"); }},
        Damage{"truncated_tokenizer", [](test::ModelCopy& m) { m.truncate("tokenizer.json", 1000); }},
        Damage{"empty_tokenizer", [](test::ModelCopy& m) { m.replace("tokenizer.json", "{}"); }},
        Damage{"broken_generation_config", [](test::ModelCopy& m) { m.replace("generation_config.json", "{\"do_sample\": "); }}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_P(DamagedModel, IsRefusedWithOneLine) {
  test::ModelCopy copy(test::demo_path());
  GetParam().apply(copy);
  for (const int ranks : {1, 2}) {
    SCOPED_TRACE(std::to_string(ranks) + " ranks");
    refusal(run(ranks, {"-m", copy.path(), "-p", kPrompt, "-n", "1"}), {65, 74});
  }
}

TEST(Run, AMissingModelIsRefused) {
  for (const int ranks : {0, 2}) {
    EXPECT_THAT(refusal(run(ranks, {"-m", "/nowhere/at/all", "-p", "x"}), {65, 74}), HasSubstr("/nowhere/at/all"));
  }
}

TEST(Run, TooLittleMemoryIsRefusedWithTheLargestContextThatFits) {
  const auto planned = run_demo(0, {"--plan", "--ranks", "2", "--json", "-c", "8000"});
  ASSERT_EQ(planned.code, 0) << planned.err;
  const json bytes = json::parse(planned.out)["per_rank"][0]["bytes"];
  // Half of the cache of 8000 positions has to go.
  const int64_t limit = bytes["total"].get<int64_t>() - bytes["kv_cache"].get<int64_t>() / 2;
  const Words base = {"-p", "Hi", "-n", "1", "--memory", std::to_string(limit)};
  const auto with_context = [&](int64_t context) {
    Words words = base;
    words.insert(words.end(), {"-c", std::to_string(context)});
    return run_demo(2, words);
  };
  EXPECT_THAT(refusal(with_context(8000), {69}), HasSubstr("the largest context that fits is -c 4000"));
  EXPECT_EQ(with_context(4000).code, 0);
  refusal(with_context(4001), {69});
  const std::string hopeless = refusal(run_demo(1, {"-p", "Hi", "--memory", "1MB"}), {69});
  EXPECT_THAT(hopeless, HasSubstr("not even one position fits"));
  EXPECT_THAT(hopeless, HasSubstr("weights "));
}

TEST(Run, MeasuredMemoryStaysBelowThePlan) {
  const json result = run_json(2, test::demo_path(), {"-p", kPrompt, "-n", "4"});
  for (const json& rank : result["memory"]) {
    EXPECT_LE(rank["resident_bytes"], rank["planned_bytes"]) << rank;
    EXPECT_GE(rank["allocated_bytes"], rank["weight_bytes"]) << rank;
  }
}

TEST(Run, UsageErrors) {
  EXPECT_THAT(refusal(run_demo(0, {"--temperatur", "1"}), {64}), HasSubstr("unknown flag --temperatur, did you mean --temp?"));
  EXPECT_THAT(refusal(run_demo(2, {"--ctx-sise=5"}), {64}), HasSubstr("did you mean --ctx-size?"));
  EXPECT_THAT(refusal(run_demo(0, {"--xyzzyxyzzy"}), {64}), Not(HasSubstr("did you mean")));
  EXPECT_THAT(refusal(run(0, {"-p", "x"}), {64}), HasSubstr("--model"));
  EXPECT_THAT(refusal(run_demo(0, {"-p"}), {64}), HasSubstr("-p"));
  EXPECT_THAT(refusal(run_demo(0, {"stray"}), {64}), HasSubstr("stray"));
  EXPECT_THAT(refusal(run_demo(0, {"-p", "x", "-f", "y"}), {64}), HasSubstr("-f"));
  EXPECT_THAT(refusal(run_demo(0, {"-p", "x", "--temp", "-1"}), {64}), HasSubstr("--temp is -1"));
  EXPECT_THAT(refusal(run_demo(0, {"-p", "x", "--top-p", "0"}), {64}), HasSubstr("--top-p is 0"));
  EXPECT_THAT(refusal(run_demo(0, {"-p", "x", "-c", "four"}), {64}), HasSubstr("four"));
  EXPECT_THAT(refusal(run_demo(0, {"-p", "x", "--memory", "10 bananas"}), {64}), HasSubstr("10 bananas"));
  EXPECT_THAT(refusal(run_demo(0, {"-p", "x", "--format", "pq9"}), {64}), HasSubstr("pq9"));
  EXPECT_THAT(refusal(run_demo(0, {"-p", "x", "--device", "abacus"}), {64}), HasSubstr("abacus"));
  EXPECT_THAT(refusal(run_demo(0, {"-p", "x", "--think"}), {64}), HasSubstr("--chat"));
  EXPECT_THAT(refusal(run_demo(0, {"-f", "/nowhere/prompt.txt"}), {65, 74}), HasSubstr("/nowhere/prompt.txt"));
}

// What compares with nothing lies in no range, and what no integer holds is not cut to one that does.
TEST(Run, NumbersAreFinite) {
  for (const char* flag :
       {"--watchdog", "--temp", "--top-k", "--top-p", "--min-p", "--repeat-penalty", "--presence-penalty", "--frequency-penalty",
        "--repeat-last-n", "--ctx-size", "--batch-size", "--threads", "--predict", "--seed", "--memory"}) {
    for (const char* value : {"nan", "-nan", "inf", "-inf", "1e400", "99999999999999999999"}) {
      const std::string word = std::string(flag) + "=" + value;
      EXPECT_THAT(refusal(run_demo(0, {"-p", "x", "-n", "1", word}), {64}), HasSubstr(flag)) << word;
    }
  }
  for (const char* flag : {"--watchdog", "--temp", "--top-k", "--top-p", "--min-p", "--repeat-penalty", "--ctx-size",
                           "--batch-size", "--threads", "--memory"}) {
    const std::string line = refusal(run_demo(0, {"-p", "x", "-n", "1", std::string(flag) + "=-1"}), {64});
    EXPECT_THAT(line, HasSubstr(flag));
    EXPECT_LT(line.size(), 200u);
  }
}

TEST(Run, HelpFitsItsScreen) {
  const auto result = run(0, {"--help"});
  EXPECT_EQ(result.code, 0);
  EXPECT_EQ(result.err, "");
  const auto lines = test::lines_of(result.out);
  // Fifty rows of a terminal, less the command and the prompts around it.
  EXPECT_LE(lines.size(), 47u);
  for (const std::string& line : lines) EXPECT_LE(line.size(), 100u) << line;
  EXPECT_THAT(run(2, {"--version"}).out, MatchesRegex("pq-run [0-9]+\\.[0-9]+\\.[0-9]+\n"));
}

TEST(Chat, TurnsResetAndEnd) {
  const Words arguments = {"--chat", "--no-think", "-n", "6", "--temp", "0", "--json"};
  const auto result = run_demo(2, arguments, "Hello\nWho are you?\n\n/reset\nHello\n/exit\nnever read\n");
  EXPECT_EQ(result.code, 0) << result.err;
  const auto lines = test::lines_of(result.out);
  ASSERT_EQ(lines.size(), 3u) << result.out;
  const json first = json::parse(lines[0]), second = json::parse(lines[1]), third = json::parse(lines[2]);
  EXPECT_EQ(third["tokens"], first["tokens"]);
  EXPECT_EQ(third["prefill"]["tokens"], first["prefill"]["tokens"]);
  EXPECT_GT(second["prefill"]["tokens"], first["prefill"]["tokens"]);

  Words one_turn = arguments;
  one_turn.insert(one_turn.end(), {"-p", "Hello"});
  EXPECT_EQ(json::parse(run_demo(1, one_turn).out)["tokens"], first["tokens"]);
}

TEST(Chat, ThinkingIsShownAndSwitched) {
  const auto result = run_demo(0, {"--chat", "-n", "3", "--temp", "0"}, "Hello\n/think off\nHello\n/think on\nHello\n");
  EXPECT_EQ(result.code, 0) << result.err;
  size_t openings = 0;
  for (size_t at = result.out.find("<think>\n"); at != std::string::npos; at = result.out.find("<think>\n", at + 1)) ++openings;
  EXPECT_EQ(openings, 2u) << result.out;
  EXPECT_EQ(result.out.rfind("<think>\n", 0), 0u) << result.out;
}

TEST(Chat, ASystemPromptComesFirst) {
  const Words arguments = {"--chat", "--no-think", "-n", "1", "--temp", "0", "--json", "-p", "Hello"};
  Words with_system = arguments;
  with_system.insert(with_system.end(), {"-sys", "Be brief."});
  const json plain = json::parse(run_demo(0, arguments).out);
  const json instructed = json::parse(run_demo(0, with_system).out);
  EXPECT_GT(instructed["prefill"]["tokens"], plain["prefill"]["tokens"]);
}

TEST(Chat, ATurnThatDoesNotFitEndsAPipedChatWithALine) {
  const auto result = run_demo(2, {"--chat", "--no-think", "-c", "40", "-n", "2", "--temp", "0"},
                               std::string("Hello\n") + kPrompt + kPrompt + "\n");
  EXPECT_EQ(result.code, 64);
  EXPECT_THAT(test::lines_of(result.err).back(), HasSubstr("the context holds 40"));
}

// launch/pq passes on that standard input is a terminal, which ranks cannot see.
TEST(Chat, ATerminalIsAskedAndForgiven) {
  const auto result = test::run_process({"env", "PQ_STDIN_IS_TERMINAL=1", std::string(PQ_BIN_DIR) + "/pq-run", "-m",
                                         test::demo_path(), "--no-think", "-c", "40", "-n", "2", "--temp", "0", "--json"},
                                        std::string("Hello\n") + kPrompt + kPrompt + "\n/reset\nHello\n");
  EXPECT_EQ(result.code, 0) << result.err;
  const auto lines = test::lines_of(result.out);
  ASSERT_EQ(lines.size(), 2u) << result.out;
  EXPECT_EQ(json::parse(lines[0])["tokens"], json::parse(lines[1])["tokens"]);
  EXPECT_THAT(result.err, HasSubstr("/reset"));
  EXPECT_THAT(result.err, HasSubstr("> "));
  EXPECT_THAT(result.err, HasSubstr("the context holds 40"));
}

TEST(Launch, KeepsArgumentsAndExitCodes) {
  const std::string wrapper = std::string(PQ_TEST_DATA) + "/../../launch/pq";
  const std::string program = std::string(PQ_BIN_DIR) + "/pq-run";
  const Words arguments = {"-m", test::demo_path(), "-p", "a  'b' \"c\" $d *", "-n", "2", "--temp", "0", "--json", "--logits-hash"};
  const auto launched = [&](Words words) {
    words.insert(words.begin(), wrapper);
    words.push_back(program);
    words.insert(words.end(), arguments.begin(), arguments.end());
    return test::run_process(words);
  };
  const auto alone = launched({});
  ASSERT_EQ(alone.code, 0) << alone.err;
  for (const Words& flags : {Words{"-np", "2"}, Words{"-np", "2", "--tag-output", "--"}}) {
    const auto result = launched(flags);
    EXPECT_EQ(result.code, 0) << result.err;
    const std::string object = result.out.substr(std::min(result.out.find('{'), result.out.size()));
    EXPECT_EQ(json::parse(object, nullptr, false)["logits_hash"], json::parse(alone.out)["logits_hash"]);
  }
  EXPECT_EQ(launched({"-np", "3"}).code, 64);
  EXPECT_EQ(launched({"-np", "two"}).code, 64);
  EXPECT_EQ(test::run_process({wrapper}).code, 64);
  EXPECT_EQ(test::run_process({wrapper, "-np", "2", program, "-m", "/nowhere", "-p", "x"}).code, 65);
}

std::string config_path(const std::string& size) { return std::string(PQ_TEST_DATA) + "/configs/qwen3.5-" + size + ".json"; }

TEST(Plan, TheLargeModelFromItsConfigurationAlone) {
  const auto result = run(0, {"-m", config_path("27b"), "--plan", "--ranks", "2", "--memory", "10GB", "--json"});
  ASSERT_EQ(result.code, 0) << result.err;
  const json plan = json::parse(result.out);
  EXPECT_EQ(plan["ranks"], 2);
  EXPECT_EQ(plan["legal_ranks"], json({1, 2, 4, 8}));
  EXPECT_TRUE(plan["fits"]);
  EXPECT_DOUBLE_EQ(plan["bits_per_weight"], 5.125);
  ASSERT_EQ(plan["per_rank"].size(), 2u);
  // 26,869,760,000 coded weights (body, embedding, head) at 41/64 byte; the rest is below 1 %.
  constexpr int64_t kCodedBytes = 26'869'760'000 / 64 * 41 / 2;
  int64_t heads = 0;
  for (const json& rank : plan["per_rank"]) {
    EXPECT_GE(rank["bytes"]["weights"], kCodedBytes);
    EXPECT_LE(rank["bytes"]["weights"], kCodedBytes / 100 * 101);
    // 16 attention layers, 2 of 4 heads of 256, keys and values, 2 bytes.
    EXPECT_EQ(rank["bytes"]["kv_cache"], 16 * 4096 * 2 * 256 * 2 * 2);
    EXPECT_LE(rank["bytes"]["total"], 10'000'000'000);
    EXPECT_EQ(rank["partition"]["value_heads"]["first"], heads);
    heads += rank["partition"]["value_heads"]["count"].get<int64_t>();
  }
  EXPECT_EQ(heads, 48);
  // 32 KiB a position and rank: what is left of 10 GB over the plan without the cache.
  const json& bytes = plan["per_rank"][0]["bytes"];
  const int64_t left = 10'000'000'000 - (bytes["total"].get<int64_t>() - bytes["kv_cache"].get<int64_t>());
  EXPECT_EQ(plan["largest_context"], left / 32768);
}

TEST(Plan, TwoGpusOfTenGigabytesWithoutAGpu) {
  const auto result =
      run(0, {"-m", "qwen3.5-27b", "--plan", "--device", "cuda", "--ranks", "2", "--memory", "10GB", "-c", "16384", "--json"});
  ASSERT_EQ(result.code, 0) << result.err;
  const json plan = json::parse(result.out);
  EXPECT_EQ(plan["place"], "gpu");
  EXPECT_TRUE(plan["fits"]);
  EXPECT_GE(plan["largest_context"], 16384);
  for (const json& rank : plan["per_rank"]) {
    EXPECT_LE(rank["bytes"]["total"], 10'000'000'000);
    EXPECT_GT(rank["bytes"]["host_embedding"], 0);
    EXPECT_GT(rank["bytes"]["device_context"], 0);
    EXPECT_GT(rank["bytes"]["graphs"], 0);
    EXPECT_FALSE(rank["bytes"].contains("process"));
  }
  const auto text = run(0, {"-m", "qwen3.5-27b", "--plan", "--device", "cuda", "--ranks", "2", "--memory", "10GB", "-c", "16384"});
  EXPECT_THAT(text.out, HasSubstr("host embedding"));
  EXPECT_THAT(refusal(run_demo(2, {"-p", "a", "--allreduce", "p2p"}), {64}), HasSubstr("--allreduce p2p is for GPUs"));
  // What cuBLAS takes is in the plan: its code, its workspace, a tile of weights and the inputs of a step of 256 tokens.
  const auto wide = run(0, {"-m", "qwen3.5-27b", "--plan", "--device", "cuda", "--ranks", "2", "--memory", "10GB", "-c", "16384",
                            "--prefill", "cublas", "--json"});
  ASSERT_EQ(wide.code, 0) << wide.err;
  const json with = json::parse(wide.out);
  EXPECT_EQ(plan["prefill"], "codes");
  EXPECT_EQ(with["prefill"], "cublas");
  const json &bytes = plan["per_rank"][0]["bytes"], &with_bytes = with["per_rank"][0]["bytes"];
  EXPECT_EQ(with_bytes["device_context"], bytes["device_context"].get<int64_t>() + 200'000'000);
  EXPECT_EQ(with_bytes["workspace"], bytes["workspace"].get<int64_t>() + (int64_t{64} << 20) + 2 * 256 * 8704);
  EXPECT_LE(with["largest_context"], plan["largest_context"]);
  // On a host there is nothing it could mean.
  EXPECT_THAT(refusal(run_demo(2, {"-p", "a", "--prefill", "cublas"}), {64}), HasSubstr("--prefill cublas is for GPUs"));
  EXPECT_THAT(refusal(run(0, {"-m", "qwen3.5-27b", "--plan", "--prefill", "cublas"}), {64}), HasSubstr("plan with --device cuda"));
  EXPECT_THAT(refusal(run_demo(0, {"-p", "a", "--prefill", "cudnn"}), {64}), HasSubstr("--prefill"));
}

TEST(Plan, EverySizeAndIllegalCounts) {
  for (const char* size : {"27b", "9b", "4b", "2b", "0.8b"}) {
    const auto result = run(0, {"-m", config_path(size), "--plan", "--ranks", "2"});
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_THAT(result.out, HasSubstr("rank 1"));
    const auto named = run(0, {"-m", std::string("qwen3.5-") + size, "--plan", "--ranks", "2"});
    EXPECT_EQ(named.out, result.out);
  }
  EXPECT_THAT(refusal(run(0, {"-m", config_path("27b"), "--plan", "--ranks", "6"}), {64}), HasSubstr("1, 2, 4, 8"));
  EXPECT_THAT(refusal(run(0, {"-m", "qwen3.5-28b", "--plan"}), {65}), HasSubstr("qwen3.5-27b"));
}

TEST(Plan, BitsChangeTheWeights) {
  const auto weights = [](const Words& format) {
    Words words = {"-m", config_path("0.8b"), "--plan", "--json"};
    words.insert(words.end(), format.begin(), format.end());
    return json::parse(run(0, words).out)["per_rank"][0]["bytes"]["weights"].get<int64_t>();
  };
  EXPECT_LT(weights({"--format", "pq3"}), weights({}));
  EXPECT_LT(weights({}), weights({"--format", "bf16"}));
}

TEST(Plan, SizesAsPeopleWriteThem) {
  const auto plan = [](const std::string& size) {
    return run(0, {"-m", config_path("0.8b"), "--plan", "--json", "--memory", size});
  };
  const std::pair<const char*, int64_t> sizes[] = {{"123456", 123456},       {"10GB", 10'000'000'000}, {"10 GiB", 10'737'418'240},
                                                   {"1.5GB", 1'500'000'000}, {"512MiB", 536'870'912},  {"2kB", 2000}};
  for (const auto& [text, bytes] : sizes) EXPECT_EQ(json::parse(plan(text).out)["memory_limit_bytes"], bytes) << text;
  for (const char* text : {"10G", "GB", "1.5", "1.2.3GB", "0", "99999999TB", "10gb", ""}) refusal(plan(text), {64});
}

TEST(Plan, UsesTheStartedRanks) {
  const auto result = run_demo(4, {"--plan", "--json"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(json::parse(result.out)["ranks"], 4);
}

}  // namespace
}  // namespace pq
