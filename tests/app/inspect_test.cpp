// pq-inspect as a user meets it: stores, checkpoints and published checkpoints, whole and damaged, alone and under mpirun.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "support/demo_model.h"
#include "support/process.h"
#include "support/refusal.h"

namespace pq {
namespace {

using nlohmann::json;
using testing::HasSubstr;

using Words = std::vector<std::string>;

test::ProcessResult inspect(int ranks, const Words& arguments) {
  return test::run_process(test::program_command(ranks, "pq-inspect", arguments));
}

json inspect_json(int ranks, Words arguments) {
  arguments.push_back("--json");
  const auto result = inspect(ranks, arguments);
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  return json::parse(result.out, nullptr, false);
}

std::string refusal(int ranks, const Words& arguments) { return test::refusal_line("pq-inspect", inspect(ranks, arguments), {65}); }

// One store of the demo model for all tests of the process.
const std::string& demo_store() {
  static const test::TemporaryDirectory directory;
  static const std::string path = [] {
    const std::string store = directory.path() + "/store";
    const auto made = test::run_process(test::program_command(0, "pq-quantize", {test::demo_path(), store}));
    EXPECT_EQ(made.code, 0) << made.err;
    return store;
  }();
  return path;
}

TEST(Inspect, AStore) {
  const json root = inspect_json(0, {demo_store(), "--verify", "--tensors"});
  EXPECT_EQ(root["kind"], "store");
  EXPECT_EQ(root["version"], "1.1");
  EXPECT_EQ(root["shards"], 10);
  EXPECT_DOUBLE_EQ(root["bits_per_weight"].get<double>(), 5.125);
  int64_t bytes = 0;
  for (const json& tensor : root["tensors"]) bytes += tensor["bytes"].get<int64_t>();
  EXPECT_EQ(root["verified_bytes"], bytes);
  int64_t tensors = 0;
  for (const json& row : root["classes"]) tensors += row["tensors"].get<int64_t>();
  EXPECT_EQ(tensors, static_cast<int64_t>(root["tensors"].size()));
  // Shared out over ranks it is the same work.
  const json shared = inspect_json(2, {demo_store(), "--verify"});
  EXPECT_EQ(shared["verified_pieces"], root["verified_pieces"]);
  EXPECT_EQ(shared["verified_bytes"], root["verified_bytes"]);
  // In words, the same.
  const auto words = inspect(0, {demo_store()});
  EXPECT_EQ(words.code, 0);
  EXPECT_THAT(words.out, HasSubstr("layers.*.mlp.down_proj.weight"));
  EXPECT_THAT(words.out, HasSubstr(root["fingerprint"].get<std::string>()));
}

TEST(Inspect, CheckpointsOfEachKind) {
  const json demo = inspect_json(2, {test::demo_path(), "--verify"});
  EXPECT_EQ(demo["kind"], "Hugging Face checkpoint");
  EXPECT_EQ(demo["files"], 2);
  EXPECT_GT(demo["verified_tensors"], 100);
  const test::TemporaryDirectory directory;
  const std::string published = directory.path() + "/f1";
  const auto made = test::run_process(test::program_command(0, "pq-quantize", {demo_store(), published, "--export", "polarquant"}));
  ASSERT_EQ(made.code, 0) << made.err;
  const json f1 = inspect_json(2, {published, "--verify"});
  EXPECT_EQ(f1["kind"], "published PolarQuant checkpoint, F1");
  const bool has_codes =
      std::any_of(f1["classes"].begin(), f1["classes"].end(), [](const json& c) { return c["format"] == "pq5 codes"; });
  EXPECT_TRUE(has_codes);
}

TEST(Inspect, DamageIsNamedAtEveryRankCount) {
  test::ModelCopy store(demo_store());
  const std::string shard = "shard-00004.h5";
  const size_t size = store.content(shard).size();
  // Weights, found by --verify alone: most of a shard is codes.
  store.flip_byte(shard, size / 2);
  EXPECT_EQ(inspect(0, {store.path()}).code, 0);
  for (const int ranks : {0, 1, 2, 4}) {
    const std::string line = refusal(ranks, {store.path(), "--verify"});
    EXPECT_THAT(line, HasSubstr(shard));
    EXPECT_THAT(line, HasSubstr("is damaged"));
  }
  // The HDF5 structure, found at opening.
  store.flip_byte(shard, size / 2);
  store.flip_byte(shard, 20);
  EXPECT_THAT(refusal(2, {store.path()}), HasSubstr(shard + " is damaged outside the weights"));
}

TEST(Inspect, AnInfiniteWeightIsNamed) {
  test::ModelCopy demo(test::demo_path());
  const std::string file = demo.find("00001-of-00002.safetensors");
  std::string bytes = demo.content(file);
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), 8);
  for (size_t i = 0; i < 4; ++i) bytes[8 + header + i] = static_cast<char>(0xFF);
  demo.replace(file, bytes);
  EXPECT_THAT(refusal(2, {demo.path(), "--verify"}), HasSubstr("values that are infinite or no number"));
}

TEST(Inspect, RefusesWhatItIsNot) {
  EXPECT_THAT(refusal(0, {"/nowhere"}), HasSubstr("is not a directory"));
  test::ModelCopy store(demo_store());
  store.replace("tokenizer.json", "{}");
  EXPECT_THAT(refusal(2, {store.path()}), HasSubstr("tokenizer.json is not the one this store was made with"));
  const auto none = inspect(0, {});
  EXPECT_EQ(none.code, 64);
}

}  // namespace
}  // namespace pq
