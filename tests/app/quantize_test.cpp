// pq-quantize as a user meets it: real processes under the real mpirun on the demo checkpoint and damaged copies of it. Stores are
// compared byte by byte; how codes come about is left to the tests of kernels and store.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "support/demo_model.h"
#include "support/process.h"
#include "support/refusal.h"
#include "support/store_files.h"

namespace pq {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

using Words = std::vector<std::string>;

using test::ends_with;
using test::expect_only_whole_shards;
using test::expect_same;
using test::Files;
using test::files_of;
using test::times_of;

constexpr size_t kShards = 10;  // embedding, 8 layers, head

Words joined(Words words, const Words& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

// ranks 0: without mpirun.
test::ProcessResult quantize(int ranks, const Words& arguments) {
  return test::run_process(test::program_command(ranks, "pq-quantize", arguments));
}

json quantize_json(int ranks, const Words& arguments) {
  const auto result = quantize(ranks, joined(arguments, {"--json"}));
  EXPECT_EQ(result.code, 0) << result.err;
  return json::parse(result.out, nullptr, false);
}

std::string refusal(const test::ProcessResult& result, const std::vector<int>& codes) {
  return test::refusal_line("pq-quantize", result, codes);
}

std::string logits_hash(int ranks, const std::string& model, const Words& arguments = {}) {
  const Words words = {"-m", model, "-p", "Once upon a time", "-n", "4", "--temp", "0", "--json", "--logits-hash"};
  const auto result = test::run_process(test::program_command(ranks, "pq-run", joined(words, arguments)));
  EXPECT_EQ(result.code, 0) << result.err;
  const std::string hash = json::parse(result.out, nullptr, false).value("logits_hash", "");
  EXPECT_THAT(hash, testing::MatchesRegex("[0-9a-f]{16}"));
  return hash;
}

class Quantize : public testing::Test {
 protected:
  std::string path(const std::string& name) const { return directory_.path() + "/" + name; }

  // The store of the demo model that one process makes.
  Files clean_store(const Words& arguments = {}) {
    const std::string store = path("clean" + std::to_string(clean_stores_++));
    const auto result = quantize(0, joined({test::demo_path(), store}, arguments));
    EXPECT_EQ(result.code, 0) << result.err;
    Files files = files_of(store);
    // Shards, manifest.json, samples of the source and what is copied of the checkpoint; no trace of the job.
    std::set<std::string> names = {"manifest.json",      "source.json",           "config.json",
                                   "tokenizer.json",     "tokenizer_config.json", "generation_config.json",
                                   "chat_template.jinja"};
    for (size_t shard = 0; shard < kShards; ++shard) names.insert("shard-0000" + std::to_string(shard) + ".h5");
    std::set<std::string> found;
    for (const auto& [name, content] : files) found.insert(name);
    EXPECT_EQ(found, names);
    return files;
  }

 private:
  test::TemporaryDirectory directory_;
  int clean_stores_ = 0;
};

TEST_F(Quantize, TheSameBytesAtEveryRankCountAndDevice) {
  const Files alone = clean_store();
  for (const int ranks : {1, 2, 3, 4}) {
    SCOPED_TRACE(std::to_string(ranks) + " ranks");
    const std::string store = path("store" + std::to_string(ranks));
    const json report = quantize_json(ranks, {test::demo_path(), store});
    EXPECT_EQ(report["peak_rss_bytes"].size(), static_cast<size_t>(ranks));
    expect_same(alone, files_of(store));
  }
  quantize_json(2, {test::demo_path(), path("reference"), "--device", "reference"});
  expect_same(alone, files_of(path("reference")));
}

TEST_F(Quantize, QuantisingOnLoadGivesTheBitsOfTheStore) {
  for (const Words& recipe : {Words{}, Words{"--format", "int4", "--through", "pq5"},
                              Words{"--format", "pq3", "--table", "published", "--no-scale-search"}}) {
    SCOPED_TRACE(testing::PrintToString(recipe));
    const std::string store = path("store" + std::to_string(recipe.size()));
    quantize_json(2, joined({test::demo_path(), store}, recipe));
    const std::string hash = logits_hash(1, store);
    EXPECT_EQ(logits_hash(2, store), hash);
    EXPECT_EQ(logits_hash(1, test::demo_path(), recipe), hash);
    EXPECT_EQ(logits_hash(2, test::demo_path(), recipe), hash);
  }
}

TEST_F(Quantize, ASecondRunIsQuickAndChangesNothing) {
  const std::string store = path("store");
  const json first = quantize_json(1, {test::demo_path(), store, "--device", "reference"});
  EXPECT_EQ(first["already_complete"], false);
  const auto times = times_of(store, "");
  const Files files = files_of(store);
  for (const int ranks : {1, 2}) {
    const json second = quantize_json(ranks, {test::demo_path(), store, "--device", "reference"});
    EXPECT_EQ(second["already_complete"], true);
    EXPECT_EQ(second["shards_found_finished"], kShards);
    EXPECT_EQ(second["classes"], first["classes"]);
    EXPECT_LT(second["seconds"].get<double>(), first["seconds"].get<double>() / 2);
    EXPECT_EQ(times_of(store, ""), times);
    expect_same(files, files_of(store));
  }
}

TEST_F(Quantize, AnotherRecipeIsRefusedUntilForced) {
  const std::string store = path("store");
  quantize_json(0, {test::demo_path(), store});
  const Files before = files_of(store);
  for (const int ranks : {0, 2}) {
    EXPECT_THAT(refusal(quantize(ranks, {test::demo_path(), store, "--format", "pq4"}), {64}), HasSubstr("--force"));
    EXPECT_THAT(refusal(quantize(ranks, {test::demo_path(), store, "--no-scale-search"}), {64}), HasSubstr("--force"));
  }
  expect_same(before, files_of(store));
  quantize_json(2, {test::demo_path(), store, "--format", "pq4", "--force"});
  expect_same(clean_store({"--format", "pq4"}), files_of(store));

  fs::create_directory(path("other"));
  std::ofstream(path("other/notes.txt")) << "mine";
  EXPECT_THAT(refusal(quantize(1, {test::demo_path(), path("other")}), {64}), HasSubstr("is not empty"));
  EXPECT_EQ(files_of(path("other")), (Files{{"notes.txt", "mine"}}));
}

// The header of a safetensors file and what follows it.
struct Tensors {
  nlohmann::ordered_json header;
  std::string data;
};

Tensors read_tensors(const std::string& content) {
  uint64_t length = 0;
  std::memcpy(&length, content.data(), 8);
  return {nlohmann::ordered_json::parse(content.substr(8, length)), content.substr(8 + length)};
}

std::string tensors_text(const Tensors& tensors) {
  const std::string header = tensors.header.dump();
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + tensors.data;
}

constexpr const char* kDamagedMatrix = "layers.5.mlp.down_proj.weight";

struct Damage {
  const char* name;
  const char* named;  // what the line must name
  int code;
  void (*apply)(test::ModelCopy&);
};
void PrintTo(const Damage& damage, std::ostream* out) { *out << damage.name; }

class DamagedSource : public Quantize, public testing::WithParamInterface<Damage> {};
INSTANTIATE_TEST_SUITE_P(
    Quantize, DamagedSource,
    testing::Values(Damage{"truncated_file", "00001-of-00002.safetensors", 65,
                           [](test::ModelCopy& m) {
                             m.truncate(m.find(".safetensors"), m.content(m.find(".safetensors")).size() - 4096);
                           }},
                    Damage{"truncated_header", "00001-of-00002.safetensors", 65,
                           [](test::ModelCopy& m) { m.truncate(m.find(".safetensors"), 500); }},
                    Damage{"corrupt_index", "model.safetensors.index.json", 65,
                           [](test::ModelCopy& m) { m.truncate("model.safetensors.index.json", 100); }},
                    Damage{"corrupt_config", "config.json", 65, [](test::ModelCopy& m) { m.truncate("config.json", 200); }},
                    Damage{"overlapping_offsets", "overlaps", 65,
                           [](test::ModelCopy& m) {
                             const std::string name = m.find(".safetensors");
                             Tensors tensors = read_tensors(m.content(name));
                             // Two BF16 matrices of [1024, 128], the second now on the first one's bytes.
                             auto& head = tensors.header["lm_head.weight"];
                             auto& embedding = tensors.header["model.language_model.embed_tokens.weight"];
                             ASSERT_EQ(head["shape"], embedding["shape"]);
                             embedding["data_offsets"] = head["data_offsets"];
                             m.replace(name, tensors_text(tensors));
                           }},
                    Damage{"not_a_number", kDamagedMatrix, 65,
                           [](test::ModelCopy& m) {
                             const std::string name = m.find(".safetensors");
                             Tensors tensors = read_tensors(m.content(name));
                             const auto& entry = tensors.header[std::string("model.language_model.") + kDamagedMatrix];
                             ASSERT_EQ(entry["dtype"], "BF16");
                             // The header stays as it is, byte for byte: it is the fingerprint, which every shard carries.
                             std::string bytes = m.content(name);
                             const size_t at =
                                 bytes.size() - tensors.data.size() + entry["data_offsets"][0].get<size_t>() + 2 * 777;
                             bytes.replace(at, 2, "\xC0\x7F", 2);
                             m.replace(name, bytes);
                           }}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_P(DamagedSource, IsRefusedWithOneLineAndLeavesOnlyWholeShards) {
  const Files whole = clean_store();
  test::ModelCopy copy(test::demo_path());
  GetParam().apply(copy);
  for (const int ranks : {1, 2, 4}) {
    SCOPED_TRACE(std::to_string(ranks) + " ranks");
    const std::string store = path("store" + std::to_string(ranks));
    EXPECT_THAT(refusal(quantize(ranks, {copy.path(), store}), {GetParam().code}), HasSubstr(GetParam().named));
    expect_only_whole_shards(store, whole);
  }
}

TEST_F(Quantize, ADestinationThatCannotBeWrittenIsAnIoError) {
  std::ofstream(path("file")) << "x";
  for (const int ranks : {0, 2}) {
    EXPECT_THAT(refusal(quantize(ranks, {test::demo_path(), path("file/store")}), {74}), HasSubstr(path("file/store")));
  }
  // 100 blocks of 1 KiB a file, as on a full disk; every shard of a layer is larger.
  const Words command = test::program_command(0, "pq-quantize", {test::demo_path(), path("full")});
  refusal(test::run_process(joined({"bash", "-c", "trap '' XFSZ; ulimit -f 100; exec \"$@\"", "limited"}, command)), {74});
  const Files alone = clean_store();
  expect_only_whole_shards(path("full"), alone);
  quantize_json(2, {test::demo_path(), path("full")});
  expect_same(alone, files_of(path("full")));
}

TEST_F(Quantize, APolicyDecidesByTensorAndNamesItsBadLines) {
  const auto policy = [&](const std::string& text) {
    std::ofstream(path("policy.txt")) << text;
    return path("policy.txt");
  };
  const json report =
      quantize_json(2, {test::demo_path(), path("store"), "--policy",
                        policy("* pq4  # all\n\nembed_tokens.weight pq8\nlm_head.weight bf16\nlayers.0.mlp.* int4a\n")});
  std::map<std::string, std::set<std::string>> formats;
  for (const json& row : report["classes"]) formats[row["name"]].insert(row["format"].get<std::string>());
  EXPECT_EQ(formats["embed_tokens"], std::set<std::string>{"pq8"});
  EXPECT_EQ(formats["lm_head"], std::set<std::string>{"bf16"});
  EXPECT_EQ(formats["mlp.down_proj"], (std::set<std::string>{"int4a", "pq4"}));
  EXPECT_EQ(formats["self_attn.q_proj"], std::set<std::string>{"pq4"});

  const auto refused = [&](const std::string& text) {
    return refusal(quantize(2, {test::demo_path(), path("none"), "--policy", policy(text)}), {64, 65});
  };
  EXPECT_THAT(refused("* pq4\n# fine\nlm_head.weight pq9\n"), HasSubstr("policy.txt:3"));
  EXPECT_THAT(refused("\n* pq4 pq5\n"), HasSubstr("policy.txt:2"));
  EXPECT_THAT(refused("layers.99.* pq4\n"), HasSubstr("policy.txt:1"));
  EXPECT_FALSE(fs::exists(path("none")));
  refusal(quantize(0, {test::demo_path(), path("none"), "--policy", path("absent.txt")}), {65, 74});
}

TEST_F(Quantize, TheReportNamesSizesAndErrors) {
  // Codes of 5 bits and an FP16 norm for 128 weights; 4 bits and an FP16 scale.
  const json report = quantize_json(2, {test::demo_path(), path("pq5"), "--no-scale-search"});
  EXPECT_DOUBLE_EQ(report["bits_per_weight"], 5 + 16.0 / 128);
  EXPECT_EQ(report["shards"], kShards);
  int64_t weights = 0, bytes = 0, stored = 0;
  for (const json& row : report["classes"]) {
    weights += row["weights"].get<int64_t>();
    bytes += row["bytes"].get<int64_t>();
    // Rotated weights are close to Gaussian, for which 32 Lloyd-Max levels err by 0.002499 (Max 1960); a class has at least 256
    // blocks, so that its mean is well within a fifth of that.
    EXPECT_NEAR(row["relative_error"].get<double>(), 0.002499, 0.0005) << row;
  }
  EXPECT_EQ(report["classes"].size(), 14u);
  EXPECT_EQ(weights, report["matrix_weights"]);
  EXPECT_EQ(bytes, report["matrix_bytes"]);
  for (const auto& [name, content] : files_of(path("pq5")))
    stored += ends_with(name, ".h5") ? static_cast<int64_t>(content.size()) : 0;
  EXPECT_EQ(stored, report["store_bytes"]);

  // The search only takes norms with which a block errs less.
  const json searched = quantize_json(2, {test::demo_path(), path("searched")});
  for (size_t i = 0; i < 14; ++i) EXPECT_LT(searched["classes"][i]["relative_error"], report["classes"][i]["relative_error"]);

  const json direct = quantize_json(2, {test::demo_path(), path("int4"), "--format", "int4"});
  const json through = quantize_json(2, {test::demo_path(), path("through"), "--format", "int4", "--through", "pq5"});
  EXPECT_DOUBLE_EQ(direct["bits_per_weight"], 4 + 16.0 / 128);
  EXPECT_DOUBLE_EQ(through["bits_per_weight"], 4 + 16.0 / 128);
  EXPECT_THAT(through["recipe"].get<std::string>(), HasSubstr("through: pq5"));
  const Files a = files_of(path("int4")), b = files_of(path("through"));
  EXPECT_FALSE(a.at("shard-00001.h5") == b.at("shard-00001.h5"));
  EXPECT_THAT(refusal(quantize(0, {test::demo_path(), path("none"), "--through", "pq5"}), {64}), HasSubstr("--format int4"));
}

TEST_F(Quantize, AnExportReadBackHasTheSameCodes) {
  quantize_json(2, {test::demo_path(), path("store")});
  for (const int ranks : {1, 2}) {
    const json report = quantize_json(ranks, {path("store"), path("export" + std::to_string(ranks)), "--export", "polarquant"});
    EXPECT_GT(report["coded"], 0);
    EXPECT_GT(report["kept"], 0);
  }
  expect_same(files_of(path("export1")), files_of(path("export2")));
  const json again = quantize_json(2, {path("export1"), path("again")});
  EXPECT_DOUBLE_EQ(again["bits_per_weight"], 5 + 16.0 / 128);
  for (const json& row : again["classes"]) EXPECT_TRUE(row["relative_error"].is_null()) << row;
  const std::string hash = logits_hash(1, path("store"));
  EXPECT_EQ(logits_hash(2, path("again")), hash);
  EXPECT_EQ(logits_hash(1, path("export1")), hash);

  const auto exported = [&](const std::string& from, const std::string& to) {
    return quantize(0, {from, to, "--export", "polarquant"});
  };
  EXPECT_THAT(refusal(exported(path("store"), path("export1")), {64}), HasSubstr("--force"));
  EXPECT_THAT(refusal(exported(test::demo_path(), path("none")), {65}), HasSubstr("is no store"));
  quantize_json(0, {test::demo_path(), path("int4"), "--format", "int4"});
  EXPECT_THAT(refusal(exported(path("int4"), path("none")), {65}), HasSubstr("int4"));
  EXPECT_FALSE(fs::exists(path("none")));
  EXPECT_THAT(refusal(quantize(0, {path("store"), path("none")}), {64}), HasSubstr("--export"));
}

TEST_F(Quantize, WithoutAGpuCudaIsRefusedAndAutoRunsOnTheCpu) {
  const auto refused = quantize(2, {test::demo_path(), path("cuda"), "--device", "cuda"});
  if (refused.code == 0) GTEST_SKIP() << "this machine has a GPU";
  EXPECT_THAT(refusal(refused, {69}), AllOf(HasSubstr("no GPU: "), HasSubstr("run with --device cpu")));
  EXPECT_FALSE(fs::exists(path("cuda")));
  const auto fallen_back = quantize(2, {test::demo_path(), path("auto"), "--device", "auto"});
  EXPECT_EQ(fallen_back.code, 0) << fallen_back.err;
  EXPECT_THAT(fallen_back.err, AllOf(HasSubstr("no GPU: "), HasSubstr("running on the CPU")));
}

TEST_F(Quantize, UsageErrors) {
  const auto refused = [&](int ranks, const Words& words) { return refusal(quantize(ranks, words), {64}); };
  const Words both = {test::demo_path(), path("none")};
  EXPECT_THAT(refused(0, joined(both, {"--forse"})), HasSubstr("unknown flag --forse, did you mean --force?"));
  EXPECT_THAT(refused(2, joined(both, {"--polic=x"})), HasSubstr("did you mean --policy?"));
  EXPECT_THAT(refused(0, {test::demo_path()}), HasSubstr("DST"));
  EXPECT_THAT(refused(2, {}), HasSubstr("SRC"));
  EXPECT_THAT(refused(0, joined(both, {"stray"})), HasSubstr("stray"));
  EXPECT_THAT(refused(0, joined(both, {"--format", "pq9"})), HasSubstr("pq9"));
  EXPECT_THAT(refused(0, joined(both, {"--table", "round"})), HasSubstr("round"));
  EXPECT_THAT(refused(0, joined(both, {"--through", "int4"})), HasSubstr("pq2 to pq8"));
  EXPECT_THAT(refused(0, joined(both, {"--device", "abacus"})), HasSubstr("abacus"));
  EXPECT_THAT(refused(0, joined(both, {"--export", "gguf"})), HasSubstr("gguf"));
  EXPECT_THAT(refused(0, joined(both, {"--export", "polarquant", "--format", "pq4"})), HasSubstr("--format"));
  EXPECT_FALSE(fs::exists(path("none")));
  EXPECT_THAT(refusal(quantize(2, {"/nowhere/at/all", path("none")}), {65, 74}), HasSubstr("/nowhere/at/all"));
}

TEST_F(Quantize, HelpFitsItsScreen) {
  const auto result = quantize(2, {"--help"});
  EXPECT_EQ(result.code, 0);
  EXPECT_EQ(result.err, "");
  const auto lines = test::lines_of(result.out);
  EXPECT_LE(lines.size(), 40u);
  for (const std::string& line : lines) EXPECT_LE(line.size(), 100u) << line;
  for (const char* flag : {"SRC", "DST", "--format", "--policy", "--table", "--through", "--export", "--force", "--json"}) {
    EXPECT_THAT(result.out, HasSubstr(flag));
  }
  EXPECT_THAT(quantize(0, {"--version"}).out, testing::MatchesRegex("pq-quantize [0-9]+\\.[0-9]+\\.[0-9]+\n"));
}

}  // namespace
}  // namespace pq
