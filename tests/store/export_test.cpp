// A store written as a published checkpoint (F1) and read again; what cannot be written so.
#include <fmt/format.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "model/config.h"
#include "model/partition.h"
#include "store/export_polar.h"
#include "store/quantize_source.h"
#include "store/store_fixture.h"
#include "store/store_reader.h"

namespace pq {
namespace {

using testing::error_of;
using testing::load_pieces;
using testing::slurp;
using testing::TempDir;

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

ExportReport export_store(const ExportJob& job, int ranks) {
  ExportReport report;
  run_threads(ranks, [&](Communicator& comm) {
    const ExportReport mine = export_polarquant(job, comm, testing::thread_agree(comm));
    if (comm.rank() == 0) report = mine;
  });
  return report;
}

// Store -> F1 -> store: the same pieces, whatever the table and the number of files.
void expect_round_trip(const std::string& source, const std::vector<TensorSpec>& specs, const Recipe& recipe, int64_t file_bytes,
                       int ranks) {
  const TempDir dir;
  testing::make_store({.source = source, .destination = dir / "store", .specs = specs, .recipe = recipe});
  const ExportReport report =
      export_store({.store = dir / "store", .destination = dir / "f1", .specs = specs, .file_bytes = file_bytes}, ranks);
  EXPECT_TRUE(path_exists(dir / fmt::format("f1/model-00000-of-{:05}.safetensors", report.files)));
  testing::make_store({.source = dir / "f1", .destination = dir / "again", .specs = specs});
  StoreReader before(dir / "store"), after(dir / "again");
  for (const TensorSpec& spec : specs) {
    EXPECT_EQ(load_pieces(before, spec, 0, spec.pieces), load_pieces(after, spec, 0, spec.pieces)) << spec.name;
    if (!spec.matrix) continue;
    EXPECT_EQ(before.info(spec).codebook->centroids, after.info(spec).codebook->centroids);
    EXPECT_EQ(before.info(spec).codebook->int_magnitudes, after.info(spec).codebook->int_magnitudes);
  }
}

TEST(Export, SmallCheckpointRoundTrips) {
  const TempDir dir;
  const testing::TinyModel model = testing::tiny_model();
  testing::write_checkpoint(dir / "hf", model);
  Recipe published;
  published.table = TableKind::published;
  published.scale_search = false;
  Recipe mixed;
  mixed.policy.add_rules("*.gate_proj.weight pq3\nlm_head.weight pq7", "test");
  expect_round_trip(dir / "hf", model.specs, published, int64_t{5} << 30, 1);
  expect_round_trip(dir / "hf", model.specs, Recipe{}, 40'000, 2);
  expect_round_trip(dir / "hf", model.specs, mixed, 1, 3);
}

TEST(Export, TiedHeadIsLeftOut) {
  const TempDir dir;
  const testing::TinyModel model = testing::tiny_model(true);
  testing::write_checkpoint(dir / "hf", model);
  expect_round_trip(dir / "hf", model.specs, Recipe{}, int64_t{5} << 30, 1);
}

TEST(Export, FilesAreAsPublished) {
  const TempDir dir;
  const testing::TinyModel model = testing::tiny_model();
  testing::write_checkpoint(dir / "hf", model);
  testing::make_store({.source = dir / "hf", .destination = dir / "store", .specs = model.specs});
  export_store({.store = dir / "store", .destination = dir / "f1", .specs = model.specs}, 1);
  const SafetensorsDirectory files = SafetensorsDirectory::open(dir / "f1");
  const auto expect = [&](const std::string& name, DType dtype, const std::vector<int64_t>& shape) {
    const SafetensorsLocation* found = files.find(name);
    ASSERT_NE(found, nullptr) << name;
    EXPECT_EQ(found->entry->dtype, dtype) << name;
    EXPECT_EQ(found->entry->shape, shape) << name;
  };
  expect("model.layers.0.linear_attn.in_proj_qkv.codes", DType::i8, {32, 128});
  expect("model.layers.0.linear_attn.in_proj_qkv.norms", DType::f16, {32, 1});
  expect("model.layers.0.linear_attn.in_proj_qkv.ct", DType::f32, {32});
  expect("model.layers.0.mlp.down_proj.codes", DType::i8, {128, 512});
  expect("model.layers.0.mlp.down_proj.norms", DType::f16, {128, 4});
  expect("lm_head.codes", DType::i8, {32, 128});
  expect("model.embed_tokens.codes", DType::i8, {32, 128});
  expect("model.layers.0.linear_attn.conv1d.weight", DType::bf16, {32, 1, 4});
  expect("model.layers.0.linear_attn.A_log", DType::f32, {4});
  EXPECT_EQ(files.find("model.layers.0.mlp.down_proj.weight"), nullptr);
  const nlohmann::json config = nlohmann::json::parse(slurp(dir / "f1/polar_config.json"));
  EXPECT_EQ(config["format"], "polar_engine_v5");
  EXPECT_EQ(config["bits"], 5);
  const nlohmann::json& down = config["layers"]["model.layers.0.mlp.down_proj"];
  EXPECT_EQ(down["in_features"], 512);
  EXPECT_EQ(down["in_f_padded"], 512);
  EXPECT_EQ(down["n_blocks"], 4);
  EXPECT_EQ(config["layers"].size(), 5u);
  EXPECT_EQ(slurp(dir / "f1/config.json"), slurp(dir / "hf/config.json"));
}

TEST(Export, RefusalsNameTheMatrix) {
  const TempDir dir;
  const testing::TinyModel model = testing::tiny_model();
  testing::write_checkpoint(dir / "hf", model);
  int i = 0;
  const auto refusal = [&](const std::string& rules) {
    const std::string store = dir / ("store" + std::to_string(i++));
    Recipe recipe;
    recipe.policy.add_rules(rules, "test");
    testing::make_store({.source = dir / "hf", .destination = store, .specs = model.specs, .recipe = recipe});
    return error_of(ErrorKind::input, [&] { export_store({.store = store, .destination = dir / "f1", .specs = model.specs}, 1); });
  };
  EXPECT_HAS(refusal("*.down_proj.weight int4"), "layers.0.mlp.down_proj.weight is stored as int4");
  EXPECT_HAS(refusal("lm_head.weight pq8"), "lm_head.weight is stored as pq8");
  EXPECT_HAS(refusal("*.in_proj_k.weight pq4"), "coded differently");
  std::filesystem::create_directory(dir / "full");
  testing::spit(dir / "full/x", "");
  testing::make_store({.source = dir / "hf", .destination = dir / "good", .specs = model.specs});
  EXPECT_HAS(error_of(ErrorKind::usage,
                      [&] { export_store({.store = dir / "good", .destination = dir / "full", .specs = model.specs}, 1); }),
             "is not empty");
}

TEST(Export, DemoModelRoundTrips) {
  const std::string demo = std::string(PQ_TEST_DATA) + "/demo";
  const std::vector<TensorSpec> specs = tensor_specs(load_model_config(demo));
  Recipe published;
  published.table = TableKind::published;
  published.scale_search = false;
  expect_round_trip(demo, specs, published, int64_t{1} << 20, 2);
}

}  // namespace
}  // namespace pq
