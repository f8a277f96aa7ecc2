// Damaged stores: every region of every file, edits of the manifest that keep it valid JSON, and shards of another store. Each must
// end in one line that names the thing, before a wrong weight is delivered.
#include <nlohmann/json.hpp>

#include "store/source_record.h"
#include "store/store_fixture.h"
#include "store/store_reader.h"
#include "store/verify.h"

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

// Every byte of every file is guarded: by the checksum of a piece, of a frame, of a copied file, or of the manifest itself. No
// offset is exempt as padding. source.json is none of the store: pq-quantize alone reads it (below).
TEST_F(Corruption, AFlippedBitAnywhereIsFound) {
  const Manifest manifest = StoreReader(dir_ / "store").manifest();
  Random random(20260322);
  for (const auto& [name, good] : testing::directory_bytes(dir_ / "store")) {
    if (name == kSourceRecordName) continue;
    // The first bytes of a file, its last one, and 60 between.
    for (int i = 0; i < 70; ++i) {
      const size_t offset = i < 9 ? static_cast<size_t>(i) : i == 9 ? good.size() - 1 : random.next_u64() % good.size();
      if (offset >= good.size()) continue;
      std::string bad = good;
      bad[offset] = static_cast<char>(bad[offset] ^ (1 << (random.next_u64() % 8)));
      spit(at(name), bad);
      const std::string message = error_of(ErrorKind::input, [&] {
        const StoreReader store(dir_ / "store");
        throw_damage(verify_store(dir_ / "store", store.manifest(), 0, 1, 2));
      });
      EXPECT_HAS(message, name) << "byte " << offset;
    }
    spit(at(name), good);
  }
  EXPECT_NO_THROW(load_all());
}

// The planes cover what loading reads; with the frame they cover the file: flips in each region of a shard are found where they
// are.
TEST_F(Corruption, FramesAreFoundAtOpeningAndPlanesAtLoading) {
  const Manifest manifest = StoreReader(dir_ / "store").manifest();
  const std::string good = slurp(at("shard-00001.h5"));
  std::vector<bool> in_plane(good.size(), false);
  for (const TensorRecord& record : manifest.tensors)
    for (int plane = 0; plane < kPlanes && record.spec.shard == 1; ++plane)
      for (int64_t i = 0; i < record.spec.pieces * piece_bytes(record.spec, record.encoding, plane); ++i)
        in_plane[static_cast<size_t>(record.planes[plane].offset + i)] = true;
  Random random(5);
  int counts[2] = {0, 0};
  while (counts[0] < 40 || counts[1] < 40) {
    const size_t offset = random.next_u64() % good.size();
    std::string bad = good;
    bad[offset] = static_cast<char>(bad[offset] ^ 0x40);
    spit(at("shard-00001.h5"), bad);
    const auto open = [&] { StoreReader(dir_ / "store"); };
    if (in_plane[offset]) {
      EXPECT_NO_THROW(open()) << offset;
      EXPECT_HAS(load_error(), "is damaged");
    } else {
      EXPECT_HAS(error_of(ErrorKind::input, open), "shard-00001.h5 ") << offset;
    }
    ++counts[in_plane[offset]];
  }
}

// A damaged record cannot make another source pass, and does not keep a store from being loaded.
TEST_F(Corruption, DamagedSamplesOfTheSourceAreRefusedByTheJobAlone) {
  StoreJob job{.source = dir_ / "hf", .destination = dir_ / "store", .specs = model_.specs};
  job.recipe.policy.add_rules("*.gate_proj.weight int4a", "test");
  ASSERT_TRUE(testing::make_store(job).already_complete);
  const std::string good = slurp(at(kSourceRecordName));
  for (size_t offset = 0; offset < good.size(); offset += 7) {
    if (std::isspace(static_cast<unsigned char>(good[offset]))) continue;  // between values it says nothing
    std::string bad = good;
    bad[offset] = static_cast<char>(bad[offset] ^ 0x02);
    spit(at(kSourceRecordName), bad);
    error_of(ErrorKind::input, [&] { testing::make_store(job); });
    EXPECT_NO_THROW(StoreReader(dir_ / "store"));
  }
}

TEST_F(Corruption, ExtendedFilesAreRefused) {
  for (const auto& [name, good] : testing::directory_bytes(dir_ / "store")) {
    if (name == kSourceRecordName) continue;
    for (const size_t extra : {size_t{1}, size_t{4096}}) {
      spit(at(name), good + std::string(extra, '\0'));
      EXPECT_HAS(load_error(), name);
    }
    spit(at(name), good);
  }
}

TEST_F(Corruption, CopiedFilesAreGuarded) {
  const std::string good = slurp(at("tokenizer.json"));
  spit(at("tokenizer.json"), good + " ");
  EXPECT_HAS(load_error(), "tokenizer.json is not the one this store was made with");
  std::filesystem::remove(at("tokenizer.json"));
  EXPECT_HAS(load_error(), "tokenizer.json is missing");
  spit(at("tokenizer.json"), good);
  EXPECT_HAS(manifest_error([](ordered_json& r) { r["files"]["../config.json"] = r["files"]["config.json"]; }),
             "not a plain file name");
}

// Verification shares its pieces out: every rank sees its own, together all.
TEST_F(Corruption, VerificationIsSharedOverRanksAndThreads) {
  const Manifest manifest = StoreReader(dir_ / "store").manifest();
  const VerifyReport alone = verify_store(dir_ / "store", manifest, 0, 1, 1);
  int64_t items = 0, bytes = 0;
  for (int rank = 0; rank < 3; ++rank) {
    const VerifyReport part = verify_store(dir_ / "store", manifest, rank, 3, 2);
    EXPECT_TRUE(part.damage.empty());
    items += part.items;
    bytes += part.bytes;
  }
  EXPECT_EQ(items, alone.items);
  EXPECT_EQ(bytes, alone.bytes);
  int64_t planes = 0;
  for (const TensorRecord& record : manifest.tensors) planes += tensor_bytes(record.spec, record.encoding);
  EXPECT_EQ(bytes, planes);
}

// A store of version 1.0 has neither labels nor frames, and is read.
TEST_F(Corruption, AStoreOfVersion10IsRead) {
  ordered_json root = manifest();
  root["version"] = {1, 0};
  for (ordered_json& shard : root["shards"]) shard.erase("frame_xxh3");
  write_manifest(root);
  EXPECT_NO_THROW(load_all());
  // Made again it would be of this version: it says so, and how.
  root["fingerprint"] = "0123456789abcdef";
  write_manifest(root);
  const std::string again = error_of(ErrorKind::usage, [&] {
    testing::make_store({.source = dir_ / "hf", .destination = dir_ / "store", .specs = model_.specs});
  });
  EXPECT_HAS(again, "holds a store of version 1.0 made otherwise");
  EXPECT_HAS(again, "replace it with --force");
  EXPECT_HAS(manifest_error([](ordered_json& r) { r["version"] = {1, 1}; }), "lacks \"frame_xxh3\"");
}

// The label says whose shard it is: by name when shards are swapped, come from another store or from a model of the same shape.
TEST_F(Corruption, StrangeShardsAreNamed) {
  const std::string first = slurp(at("shard-00000.h5")), last = slurp(at("shard-00002.h5"));
  spit(at("shard-00000.h5"), last);
  spit(at("shard-00002.h5"), first);
  EXPECT_HAS(load_error(), "shard-00000.h5 is shard-00002.h5 of this store under another name");
  spit(at("shard-00002.h5"), last);

  testing::make_store({.source = dir_ / "hf", .destination = dir_ / "other", .specs = model_.specs});
  spit(at("shard-00000.h5"), slurp(dir_ / "other/shard-00000.h5"));
  EXPECT_HAS(load_error(), "shard-00000.h5 belongs to another store");

  // Same names, sizes and headers, other weights: the fingerprint of the source does not see it, the content does.
  testing::write_checkpoint(dir_ / "tuned", model_, "model.", {}, 0.03);
  Recipe recipe;
  recipe.policy.add_rules("*.gate_proj.weight int4a", "test");
  testing::make_store({.source = dir_ / "tuned", .destination = dir_ / "tuned.pq", .specs = model_.specs, .recipe = recipe});
  EXPECT_EQ(StoreReader(dir_ / "tuned.pq").manifest().fingerprint, manifest()["fingerprint"].get<std::string>());
  spit(at("shard-00000.h5"), slurp(dir_ / "tuned.pq/shard-00000.h5"));
  EXPECT_HAS(load_error(), "shard-00000.h5 holds other weights");
  spit(at("shard-00000.h5"), first);
  EXPECT_NO_THROW(load_all());

  // A repaired manifest of the other model: the next check catches it.
  const std::string own = slurp(at("manifest.json"));
  spit(at("manifest.json"), slurp(dir_ / "tuned.pq/manifest.json"));
  EXPECT_HAS(load_error(), "holds other weights");
  spit(at("manifest.json"), own);
}

TEST_F(Corruption, FilesMissingOrTruncated) {
  const std::string good = slurp(at("shard-00001.h5"));
  for (const size_t size : {size_t{0}, size_t{100}, good.size() / 2, good.size() - 1}) {
    spit(at("shard-00001.h5"), good.substr(0, size));
    EXPECT_HAS(load_error(),
               "shard-00001.h5 has " + std::to_string(size) + " bytes, the manifest says " + std::to_string(good.size()));
  }
  std::filesystem::remove(at("shard-00001.h5"));
  EXPECT_HAS(load_error(), "shard-00001.h5 is missing");
  spit(at("shard-00001.h5"), good);
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
  EXPECT_HAS(manifest_error([&](ordered_json& r) { tensor(r, down)["scales"]["xxh3"][1] = "0123456789abcdef"; }),
             "holds other weights");
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
