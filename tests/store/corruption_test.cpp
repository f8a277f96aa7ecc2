// Damaged stores: every region of every file, edits of the manifest that keep it valid JSON, and shards of another store. Each must
// end in one line that names the thing, before a wrong weight is delivered.
#include <nlohmann/json.hpp>

#include "store/store_fixture.h"
#include "store/store_reader.h"

namespace pq {
namespace {

using nlohmann::ordered_json;
using testing::error_of;
using testing::slurp;
using testing::spit;
using testing::TempDir;

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

class Corruption : public ::testing::Test {
 protected:
  Corruption() : model_(testing::tiny_model()) {
    testing::write_checkpoint(dir_ / "hf", model_);
    Recipe recipe;
    recipe.policy.add_rules("*.gate_proj.weight int4a", "test");
    testing::make_store({.source = dir_ / "hf", .destination = dir_ / "store", .specs = model_.specs, .recipe = recipe});
  }
  std::string at(const std::string& name) const { return dir_ / ("store/" + name); }
  void load_all() const {
    StoreReader store(dir_ / "store");
    for (const TensorSpec& spec : model_.specs) testing::load_pieces(store, spec, 0, spec.pieces);
  }
  std::string load_error() const {
    return error_of(ErrorKind::input, [&] { load_all(); });
  }
  // The manifest without its checksum, and written back with one that fits, so that the next check must catch an edit.
  ordered_json manifest() const {
    ordered_json root = ordered_json::parse(slurp(at("manifest.json")));
    root.erase("xxh3");
    return root;
  }
  void write_manifest(const ordered_json& root) const { spit(at("manifest.json"), seal_manifest(root.dump(1))); }
  // The error after `edit` of the manifest, which is restored.
  std::string manifest_error(const std::function<void(ordered_json&)>& edit) {
    const std::string good = slurp(at("manifest.json"));
    ordered_json root = manifest();
    edit(root);
    write_manifest(root);
    const std::string message = load_error();
    spit(at("manifest.json"), good);
    return message;
  }
  static ordered_json& tensor(ordered_json& root, const std::string& name) {
    for (ordered_json& value : root["tensors"])
      if (value["name"] == name) return value;
    throw Error(ErrorKind::internal, "no such tensor: " + name);
  }
  TempDir dir_;
  testing::TinyModel model_;
};

TEST_F(Corruption, TheUndamagedStoreLoads) {
  EXPECT_NO_THROW(load_all());
  EXPECT_NO_THROW(StoreReader(dir_ / "store").verify_all());
}

TEST_F(Corruption, AFlippedBitInAnyPlaneIsFound) {
  const Manifest manifest = StoreReader(dir_ / "store").manifest();
  for (const TensorRecord& record : manifest.tensors) {
    const std::string path = at(shard_file_name(record.spec.shard)), good = slurp(path);
    for (int plane = 0; plane < kPlanes; ++plane) {
      const int64_t bytes = piece_bytes(record.spec, record.encoding, plane);
      if (bytes == 0) continue;
      for (const int64_t piece : {int64_t{0}, record.spec.pieces - 1}) {
        std::string bad = good;
        bad[static_cast<size_t>(record.planes[plane].offset + piece * bytes + (piece * 31 + 5) % bytes)] ^= 0x10;
        spit(path, bad);
        const std::string message = load_error();
        EXPECT_HAS(message, shard_file_name(record.spec.shard));
        EXPECT_HAS(message, record.spec.name);
        EXPECT_HAS(message, "piece " + std::to_string(piece));
        EXPECT_HAS(error_of(ErrorKind::input, [&] { StoreReader(dir_ / "store").verify_all(); }), "is damaged");
      }
    }
    spit(path, good);
  }
}

// Outside the planes a shard holds HDF5 metadata, which loading does not read: such damage must not change a weight.
TEST_F(Corruption, DamagedHdf5MetadataChangesNoWeight) {
  StoreReader before(dir_ / "store");
  std::vector<testing::Loaded> weights;
  for (const TensorSpec& spec : model_.specs) weights.push_back(testing::load_pieces(before, spec, 0, spec.pieces));
  std::string bytes = slurp(at("shard-00001.h5"));
  for (size_t i = 0; i < 512; ++i) bytes[i] = static_cast<char>(~bytes[i]);
  spit(at("shard-00001.h5"), bytes);
  StoreReader after(dir_ / "store");
  for (size_t i = 0; i < weights.size(); ++i) {
    const TensorSpec& spec = model_.specs[i];
    EXPECT_EQ(testing::load_pieces(after, spec, 0, spec.pieces), weights[i]) << spec.name;
  }
}

TEST_F(Corruption, FilesMissingTruncatedOrSwapped) {
  const std::string good = slurp(at("shard-00001.h5"));
  for (const size_t size : {size_t{0}, size_t{100}, good.size() / 2, good.size() - 1}) {
    spit(at("shard-00001.h5"), good.substr(0, size));
    EXPECT_HAS(load_error(),
               "shard-00001.h5 has " + std::to_string(size) + " bytes, the manifest says " + std::to_string(good.size()));
  }
  std::filesystem::remove(at("shard-00001.h5"));
  EXPECT_HAS(load_error(), "shard-00001.h5 is missing");
  spit(at("shard-00001.h5"), good);

  // Embedding and head have one layout up to small tensors: give both files one size, then swap them.
  std::string first = slurp(at("shard-00000.h5")), last = slurp(at("shard-00002.h5"));
  const size_t size = std::max(first.size(), last.size());
  first.resize(size);
  last.resize(size);
  spit(at("shard-00000.h5"), last);
  spit(at("shard-00002.h5"), first);
  ordered_json root = manifest();
  root["shards"][0]["bytes"] = root["shards"][2]["bytes"] = size;
  write_manifest(root);
  EXPECT_HAS(load_error(), "is damaged");
}

TEST_F(Corruption, TheManifestCutAnywhereIsRefused) {
  const std::string good = slurp(at("manifest.json"));
  for (size_t size = 0; size < good.size(); size += 97) {
    spit(at("manifest.json"), good.substr(0, size));
    EXPECT_HAS(load_error(), "manifest.json");
  }
}

TEST_F(Corruption, AChangedByteAnywhereInTheManifestIsRefused) {
  const std::string good = slurp(at("manifest.json"));
  for (size_t i = 0; i < good.size(); i += 61) {
    std::string bad = good;
    bad[i] = bad[i] == '7' ? '3' : '7';
    spit(at("manifest.json"), bad);
    EXPECT_HAS(load_error(), "manifest.json");
  }
}

TEST_F(Corruption, VersionsAndFormat) {
  EXPECT_HAS(manifest_error([](ordered_json& r) {
               r["version"] = {kStoreMajor + 1, 0};
             }),
             "is of store version 2.0, this program reads up to 1.x");
  EXPECT_HAS(manifest_error([](ordered_json& r) { r["version"] = "1"; }), "version");
  EXPECT_HAS(manifest_error([](ordered_json& r) { r["format"] = "gguf"; }), "has format \"gguf\"");
  EXPECT_HAS(manifest_error([](ordered_json& r) { r["block"] = 64; }), "64");
  // A newer minor version is read.
  ordered_json root = manifest();
  root["version"] = {kStoreMajor, kStoreMinor + 7};
  root["something new"] = 1;
  write_manifest(root);
  EXPECT_NO_THROW(load_all());
}

TEST_F(Corruption, EditedTensors) {
  const std::string down = "layers.0.mlp.down_proj.weight", gate = "layers.0.mlp.gate_proj.weight";
  const auto edit = [&](const std::string& name, const char* key, const ordered_json& value) {
    return manifest_error([&](ordered_json& r) { tensor(r, name)[key] = value; });
  };
  EXPECT_HAS(edit(down, "rows", 64), "shape and format need");
  EXPECT_HAS(edit(down, "rows", -128), "outside");
  EXPECT_HAS(edit(down, "rows", "128"), "not an integer");
  EXPECT_HAS(edit(down, "rows", 1099511627776), "manifest.json");
  EXPECT_HAS(edit(down, "cols", 500), "no multiple of 128");
  EXPECT_HAS(edit(down, "pieces", 3), "cannot be cut into 3 pieces");
  EXPECT_HAS(edit(down, "pieces", 2), "4 checksums for 2 pieces");
  EXPECT_HAS(edit(down, "split", "diagonal"), "diagonal");
  EXPECT_HAS(edit(down, "split", "rows"), "the model needs");
  EXPECT_HAS(edit(down, "format", "pq6"), "absent or of another width");
  EXPECT_HAS(edit(down, "format", "pq9"), "unknown format");
  EXPECT_HAS(edit(down, "codec", "trellis"), "codec \"trellis\"");
  EXPECT_HAS(edit(down, "codebook", "pq5-none"), "absent");
  EXPECT_HAS(edit(gate, "format", "int4"), "has a plane \"zeros\", format int4 has none");
  EXPECT_HAS(edit(down, "shard", 9), "shard 9, which does not exist");
  EXPECT_HAS(edit(down, "name", gate), "twice");
  EXPECT_HAS(edit(down, "name", "layers.0.mlp.up_proj.weight"), "lacks layers.0.mlp.down_proj.weight");
  EXPECT_HAS(edit(down, "same_as", gate), "which it is not like");
  EXPECT_HAS(edit("norm.weight", "dtype", "I32"), "\"I32\"");
  EXPECT_HAS(manifest_error([&](ordered_json& r) { tensor(r, down).erase("data"); }), "lacks \"data\"");
  EXPECT_HAS(manifest_error([&](ordered_json& r) { tensor(r, down)["data"]["offset"] = INT64_MAX; }), "of a file of");
  EXPECT_HAS(manifest_error([&](ordered_json& r) { tensor(r, down)["data"]["offset"] = tensor(r, gate)["data"]["offset"]; }),
             "overlap");
  EXPECT_HAS(manifest_error([&](ordered_json& r) { tensor(r, down)["scales"]["xxh3"][1] = "0123456789abcdeF"; }), "hexadecimal");
  EXPECT_HAS(manifest_error([&](ordered_json& r) { tensor(r, down)["scales"]["xxh3"][1] = "0123456789abcdef"; }), "is damaged");
  EXPECT_HAS(manifest_error([&](ordered_json& r) { r["shards"][1]["file"] = "../shard-00001.h5"; }), "not shard-00001.h5");
}

TEST_F(Corruption, EditedCodebook) {
  const auto edit = [&](const std::function<void(ordered_json&)>& change) {
    return manifest_error([&](ordered_json& r) { change(r["codebooks"].begin().value()); });
  };
  EXPECT_HAS(edit([](ordered_json& c) { c["centroids"][31] = 3.3; }), "not symmetric");
  EXPECT_HAS(edit([](ordered_json& c) {
               c["centroids"][31] = 3.3;
               c["centroids"][0] = -3.3;
             }),
             "not hold the table");
  EXPECT_HAS(edit([](ordered_json& c) { c["centroids"].erase(0); }), "entries");
  EXPECT_HAS(edit([](ordered_json& c) { c["centroids"][0] = nullptr; }), "no number");
  EXPECT_HAS(edit([](ordered_json& c) { c["centroids"][3] = -10.0; }), "ascend");
  EXPECT_HAS(edit([](ordered_json& c) { c["bits"] = 4; }), "its key and bits");
}

TEST_F(Corruption, AnotherModel) {
  const std::string config = slurp(at("config.json"));
  spit(at("config.json"), config + " ");
  EXPECT_HAS(load_error(), "config.json is not the one this store was made with");
  spit(at("config.json"), config);
  StoreReader store(dir_ / "store");
  TensorSpec other = model_.specs[0];
  other.rows = 64;
  EXPECT_HAS(error_of(ErrorKind::input, [&] { store.info(other); }),
             "embed_tokens.weight has shape [32, 128], the model needs [64, 128]");
  other.name = "layers.7.mlp.up_proj.weight";
  EXPECT_HAS(error_of(ErrorKind::input, [&] { store.info(other); }), "lacks layers.7.mlp.up_proj.weight");
  other = model_.specs[0];
  other.pieces = 2;
  EXPECT_HAS(error_of(ErrorKind::input, [&] { store.info(other); }), "cut into 4 pieces, the model needs 2");
}

}  // namespace
}  // namespace pq
