// Numbers of a store's manifest at the limits of base/limits.h and one beyond.
#include "base/limits.h"

#include <nlohmann/json.hpp>

#include "store/manifest.h"
#include "store/store_fixture.h"

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

namespace pq {
namespace {

using nlohmann::ordered_json;
using testing::error_of;

// The note of a shard that holds one tensor, which needs no planes: it is the same as another one.
ordered_json note() {
  ordered_json tensor = {{"name", "a"},      {"rows", 8},      {"cols", 1},     {"split", "rows"}, {"pieces", 1},
                         {"matrix", false},  {"class", "c"},   {"source", "s"}, {"source_row", 0}, {"shard", 0},
                         {"format", "kept"}, {"dtype", "F32"}, {"same_as", "b"}};
  return {{"fingerprint", "f"},
          {"shard", {{"file", "shard-00000.h5"}, {"bytes", 0}, {"frame_xxh3", std::string(16, '0')}}},
          {"codebooks", ordered_json::object()},
          {"tensors", {tensor}}};
}

ordered_json with(const std::vector<std::pair<const char*, ordered_json>>& changes) {
  ordered_json root = note();
  for (const auto& [key, value] : changes) root["tensors"][0][key] = value;
  return root;
}

TensorSpec parsed(const ordered_json& root) { return parse_shard_note(root.dump(), "note").tensors.at(0).spec; }
std::string refused(const ordered_json& root) {
  return error_of(ErrorKind::input, [&] { parse_shard_note(root.dump(), "note"); });
}

TEST(StoreLimits, Dimensions) {
  for (const char* key : {"rows", "cols"}) {
    EXPECT_NO_THROW(parsed(with({{"rows", 1}, {key, kMaxStoreDimension}}))) << key;
    EXPECT_HAS(refused(with({{"rows", 1}, {key, kMaxStoreDimension + 1}})), std::string(key) + "\"");
  }
  EXPECT_EQ(parsed(with({{"source_row", kMaxStoreDimension}})).source_row, kMaxStoreDimension);
  EXPECT_HAS(refused(with({{"source_row", kMaxStoreDimension + 1}})), "source_row");
}

TEST(StoreLimits, Pieces) {
  const int64_t beyond = kMaxPieces + 1;
  EXPECT_EQ(parsed(with({{"rows", kMaxPieces}, {"pieces", kMaxPieces}})).pieces, kMaxPieces);
  EXPECT_HAS(refused(with({{"rows", beyond}, {"pieces", beyond}})), "pieces");
}

TEST(StoreLimits, Names) {
  const std::string longest(kMaxSafetensorsNameBytes, 'n');
  for (const char* key : {"name", "class", "source", "same_as"}) {
    EXPECT_NO_THROW(parsed(with({{key, longest}}))) << key;
    EXPECT_HAS(refused(with({{key, longest + "n"}})), std::string(key) + " has 1025 bytes, at most 1024 are read");
  }
}

TEST(StoreLimits, Shards) {
  EXPECT_EQ(parsed(with({{"shard", kMaxShards - 1}})).shard, kMaxShards - 1);
  EXPECT_HAS(refused(with({{"shard", kMaxShards}})), "shard");
  Manifest manifest;
  for (int64_t shard = 0; shard < kMaxShards; ++shard) manifest.shards.push_back({shard_file_name(shard), 0, 0});
  EXPECT_EQ(parse_manifest(manifest_text(manifest), "m").shards.size(), static_cast<size_t>(kMaxShards));
  manifest.shards.push_back({shard_file_name(kMaxShards), 0, 0});
  const std::string text = manifest_text(manifest);
  EXPECT_HAS(error_of(ErrorKind::input, [&] { parse_manifest(text, "m"); }), "m has 65537 shards, at most 65536 are read");
}

}  // namespace
}  // namespace pq
