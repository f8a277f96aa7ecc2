// Names and shapes of Hugging Face directories: prefixes, ties, what is skipped, what is refused.
#include "store/checkpoint.h"

#include <cstring>

#include "store/store_fixture.h"

namespace pq {
namespace {

using testing::error_of;
using testing::spit;
using testing::TempDir;
using testing::tiny_model;
using testing::TinyModel;
using testing::write_checkpoint;

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

std::vector<float> read_all(const Checkpoint& checkpoint, const TensorSpec& spec) {
  const SourceTensor& source = checkpoint.tensor(spec);
  std::vector<uint8_t> raw(static_cast<size_t>(spec.rows * spec.cols * dtype_bytes(source.dtype)));
  checkpoint.read_plain(spec, 0, spec.rows, 0, spec.cols, raw.data(), nullptr);
  std::vector<float> values(static_cast<size_t>(spec.rows * spec.cols));
  convert_to_f32(raw.data(), source.dtype, spec.rows * spec.cols, values.data());
  return values;
}

TEST(Checkpoint, BothNamingsHoldTheSameWeights) {
  const TinyModel model = tiny_model();
  const TempDir dir;
  write_checkpoint(dir / "text", model, "model.");
  write_checkpoint(dir / "multi", model, "model.language_model.",
                   {"model.visual.merger.norm.weight", "model.visual.pos_embed.weight", "mtp.norm.weight"});
  const Checkpoint text = Checkpoint::open(dir / "text", model.specs);
  const Checkpoint multi = Checkpoint::open(dir / "multi", model.specs);
  EXPECT_EQ(text.skipped_vision(), 0);
  EXPECT_EQ(multi.skipped_vision(), 2);
  EXPECT_EQ(multi.skipped_mtp(), 1);
  EXPECT_HAS(multi.description(), "2 vision and 1 multi-token-prediction tensors skipped");
  EXPECT_EQ(multi.format(), PublishedFormat::none);
  for (const TensorSpec& spec : model.specs) EXPECT_EQ(read_all(text, spec), read_all(multi, spec)) << spec.name;
}

TEST(Checkpoint, TiedHeadReadsTheEmbedding) {
  const TinyModel tied = tiny_model(true);
  const TempDir dir;
  write_checkpoint(dir.path(), tied);
  const Checkpoint checkpoint = Checkpoint::open(dir.path(), tied.specs);
  EXPECT_EQ(read_all(checkpoint, tied.specs.front()), read_all(checkpoint, tied.specs.back()));
  // The same files do not make an untied model.
  EXPECT_HAS(error_of(ErrorKind::input, [&] { Checkpoint::open(dir.path(), tiny_model().specs); }), "lacks \"lm_head.weight\"");
}

TEST(Checkpoint, TiedModelSavedWithItsHeadIsAccepted) {
  const TempDir dir;
  write_checkpoint(dir.path(), tiny_model(false));
  EXPECT_NO_THROW(Checkpoint::open(dir.path(), tiny_model(true).specs));
}

TEST(Checkpoint, UnknownTensorsAreListed) {
  const TempDir dir;
  write_checkpoint(dir.path(), tiny_model(), "model.",
                   {"model.layers.0.mlp.experts.weight", "model.layers.9.input_layernorm.weight"});
  const std::string message = error_of(ErrorKind::input, [&] { Checkpoint::open(dir.path(), tiny_model().specs); });
  EXPECT_HAS(message, "2 tensors");
  EXPECT_HAS(message, "model.layers.0.mlp.experts.weight, model.layers.9.input_layernorm.weight");
}

TEST(Checkpoint, ShapesMustBeThoseOfTheModel) {
  const TempDir dir;
  write_checkpoint(dir.path(), tiny_model());
  TinyModel other = tiny_model();
  other.specs[0].source_shape = {64, 128};
  EXPECT_HAS(error_of(ErrorKind::input, [&] { Checkpoint::open(dir.path(), other.specs); }),
             "\"model.embed_tokens.weight\" has shape [32, 128], config.json asks for [64, 128]");
}

TEST(Checkpoint, IntegerWeightsAreRefused) {
  TinyModel model = tiny_model();
  const TempDir dir;
  write_checkpoint(dir.path(), model);
  for (int file = 1; file <= 2; ++file) {
    // An I32 has the size of an F32, so only its type is wrong.
    const std::string path = dir / ("model.safetensors-0000" + std::to_string(file) + "-of-00002.safetensors");
    std::string bytes = testing::slurp(path);
    if (const size_t at = bytes.find("\"F32\""); at != std::string::npos) bytes.replace(at, 5, "\"I32\"");
    spit(path, bytes);
  }
  EXPECT_HAS(error_of(ErrorKind::input, [&] { Checkpoint::open(dir.path(), model.specs); }), "has element type I32");
}

TEST(Checkpoint, PartsAndRangesAreCutOutOfTheSource) {
  const TinyModel model = tiny_model();
  const TempDir dir;
  write_checkpoint(dir.path(), model);
  const Checkpoint checkpoint = Checkpoint::open(dir.path(), model.specs);
  TensorSpec whole = testing::make_spec("layers.0.linear_attn.in_proj_qkv.weight", 32, 128, Split::rows, 1, true, 0);
  const std::vector<float> all = read_all(checkpoint, whole);
  for (const TensorSpec& spec : model.specs) {
    if (spec.source != whole.source) continue;
    const std::vector<float> part = read_all(checkpoint, spec);
    EXPECT_EQ(std::memcmp(part.data(), all.data() + spec.source_row * 128, part.size() * 4), 0) << spec.name;
    // Rows 3 and 4, columns 17 to 57.
    std::vector<uint16_t> piece(2 * 40);
    checkpoint.read_plain(spec, 3, 2, 17, 40, piece.data(), nullptr);
    for (int r = 0; r < 2; ++r)
      for (int c = 0; c < 40; ++c) EXPECT_EQ(bf16_to_f32(piece[r * 40 + c]), part[(3 + r) * 128 + 17 + c]);
  }
}

TEST(Checkpoint, OtherPublishedFormatsAreRefusedByName) {
  const TinyModel model = tiny_model();
  const auto refused = [&](const std::function<void(const std::string&)>& change) {
    const TempDir dir;
    write_checkpoint(dir.path(), model);
    change(dir.path());
    return error_of(ErrorKind::input, [&] { Checkpoint::open(dir.path(), model.specs); });
  };
  EXPECT_HAS(refused([](const std::string& d) {
               std::filesystem::create_directory(d + "/PQ5");
               spit(d + "/PQ5/codes.safetensors", "");
             }),
             "published format F3");
  EXPECT_HAS(refused([](const std::string& d) { spit(d + "/model_int4.pt", ""); }), "published format F5");
  EXPECT_HAS(refused([](const std::string& d) { spit(d + "/polar_config.json", R"({"format":"hlwq-q5"})"); }),
             "published format F4");
  EXPECT_HAS(refused([](const std::string& d) { spit(d + "/polar_config.json", R"({"block_size":64})"); }), "\"block_size\" is 64");
  EXPECT_HAS(refused([](const std::string& d) {
               spit(d + "/config.json", R"({"quantization_config":{"quant_method":"compressed-tensors"}})");
             }),
             "published format F6");
  const auto with_key = [&](const std::string& name) {
    const TempDir dir;
    write_checkpoint(dir.path(), model, "model.", {name});
    return error_of(ErrorKind::input, [&] { Checkpoint::open(dir.path(), model.specs); });
  };
  EXPECT_HAS(with_key("model__layers__0__mlp__down_proj__weight__packed"), "published format F3");
  EXPECT_HAS(with_key("model.layers.0.mlp.down_proj.weight__packed"), "published format F4");
  EXPECT_HAS(with_key("model.layers.0.mlp.down_proj.weight_packed"), "published format F6");
}

TEST(Checkpoint, MissingDirectoryAndEmptyOne) {
  const TempDir dir;
  EXPECT_HAS(error_of(ErrorKind::input, [&] { Checkpoint::open(dir / "absent", {}); }), "is not a directory");
  EXPECT_HAS(error_of(ErrorKind::input, [&] { Checkpoint::open(dir.path(), {}); }), "holds no model.safetensors");
}

}  // namespace
}  // namespace pq
