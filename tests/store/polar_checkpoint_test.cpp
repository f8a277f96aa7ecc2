// Published checkpoints F1 and F2 written by an independent script (scripts/make_store_goldens.py), the published encoder's codes,
// and abuse of both formats.
#include "store/polar_checkpoint.h"

#include <cmath>
#include <cstring>

#include "kernels/polar.h"
#include "store/checkpoint.h"
#include "store/quantize_source.h"
#include "store/store_fixture.h"

namespace pq {
namespace {

using testing::error_of;
using testing::make_spec;
using testing::slurp;
using testing::spit;
using testing::TempDir;

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

const std::string kData = PQ_TEST_DATA;

// The tensors of the fixtures. in_proj_a is coded by the published recipe and kept by the model.
std::vector<TensorSpec> fixture_specs() {
  return {make_spec("embed_tokens.weight", 16, 128, Split::rows, 4, true, 0),
          make_spec("layers.0.linear_attn.in_proj_qkv.weight", 12, 128, Split::rows, 2, true, 1),
          make_spec("layers.0.linear_attn.in_proj_a.weight", 2, 128, Split::rows, 2, false, 1),
          make_spec("layers.0.mlp.gate_proj.weight", 8, 128, Split::rows, 4, true, 1),
          make_spec("layers.0.mlp.up_proj.weight", 8, 128, Split::rows, 4, true, 1),
          make_spec("layers.0.mlp.down_proj.weight", 4, 512, Split::cols, 4, true, 1),
          make_spec("lm_head.weight", 16, 128, Split::rows, 4, true, 2),
          make_spec("layers.0.input_layernorm.weight", 128, 1, Split::replicated, 1, false, 1),
          make_spec("layers.0.linear_attn.A_log", 2, 1, Split::rows, 2, false, 1),
          make_spec("norm.weight", 128, 1, Split::replicated, 1, false, 2)};
}

std::string base_name(const TensorSpec& spec) { return spec.name.substr(0, spec.name.rfind(".weight")); }

// Tensors of a golden file by name, as bytes.
std::map<std::string, std::vector<uint8_t>> golden(const std::string& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  std::map<std::string, std::vector<uint8_t>> tensors;
  for (const SafetensorsEntry& entry : file.entries()) {
    std::vector<uint8_t>& bytes = tensors[entry.name];
    bytes.resize(static_cast<size_t>(entry.bytes));
    file.file().read_at(bytes.data(), entry.bytes, entry.offset);
  }
  return tensors;
}

std::vector<float> floats(const std::vector<uint8_t>& bytes) {
  std::vector<float> values(bytes.size() / 4);
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

std::vector<uint8_t> unpacked(const std::vector<uint8_t>& packed, int bits) {
  std::vector<uint8_t> codes(packed.size() / (16 * static_cast<size_t>(bits)) * 128);
  for (size_t block = 0; block < codes.size() / 128; ++block)
    unpack_block(packed.data() + block * 16 * static_cast<size_t>(bits), bits, codes.data() + block * 128);
  return codes;
}

class Published : public ::testing::TestWithParam<const char*> {};

TEST_P(Published, CodesNormsAndTableAreTakenOver) {
  const std::string directory = kData + "/" + GetParam();
  const auto expected = golden(directory + "/expected.bin");
  const std::vector<TensorSpec> specs = fixture_specs();
  const Checkpoint checkpoint = Checkpoint::open(directory, specs);
  const bool second = std::string(GetParam()) == "polar_f2";
  EXPECT_EQ(checkpoint.format(), second ? PublishedFormat::f2 : PublishedFormat::f1);
  EXPECT_EQ(checkpoint.skipped_vision(), second ? 1 : 0);
  EXPECT_EQ(checkpoint.skipped_mtp(), second ? 2 : 0);
  for (const TensorSpec& spec : specs) {
    const SourceTensor& source = checkpoint.tensor(spec);
    const auto codes = expected.find(base_name(spec) + ".codes");
    if (codes == expected.end()) {
      EXPECT_EQ(source.bits, 0) << spec.name;
      continue;
    }
    const int64_t blocks = spec.cols / 128;
    std::vector<uint8_t> packed(static_cast<size_t>(spec.rows * blocks * 16 * source.bits));
    std::vector<uint16_t> norms(static_cast<size_t>(spec.rows * blocks));
    checkpoint.read_codes(spec, 0, spec.rows, 0, blocks, packed.data(), norms.data(), nullptr);
    EXPECT_EQ(unpacked(packed, source.bits), codes->second) << spec.name;
    EXPECT_EQ(std::memcmp(norms.data(), expected.at(base_name(spec) + ".norms").data(), norms.size() * 2), 0) << spec.name;
    const std::vector<float> table = floats(expected.at(base_name(spec) + ".table"));
    ASSERT_EQ(table.size(), source.codebook->centroids.size());
    // F1 holds the table itself; F2 divides by sqrt(128) in fp32, half an ulp, which the product rounds once more.
    for (size_t i = 0; i < table.size(); ++i)
      EXPECT_NEAR(source.codebook->centroids[i], table[i], second ? std::abs(table[i]) * 0x1.8p-23f : 0) << spec.name;
  }
}

TEST_P(Published, SourceDeliversTheSameCodesAndDecodedKeptTensors) {
  const std::string directory = kData + "/" + GetParam();
  const auto expected = golden(directory + "/expected.bin");
  const std::vector<TensorSpec> specs = fixture_specs();
  const std::unique_ptr<Backend> backend = make_backend("cpu");
  QuantizingSource source(directory, specs, Recipe{}, *backend);
  for (const TensorSpec& spec : specs) {
    const WeightInfo info = source.info(spec);
    const testing::Loaded loaded = testing::load_pieces(source, spec, 0, spec.pieces);
    if (!spec.matrix) {
      EXPECT_EQ(info.format, WeightFormat::f32);
      const bool coded = expected.count(base_name(spec) + ".decoded") != 0;
      const std::vector<float> wanted = floats(expected.at(coded ? base_name(spec) + ".decoded" : spec.name));
      const std::vector<float> got = floats(loaded.data);
      ASSERT_EQ(wanted.size(), got.size());
      // Decoded values are rounded to BF16: half an ulp, at most 2^-8 of the value, and fp32 rounding before.
      for (size_t i = 0; i < got.size(); ++i)
        EXPECT_NEAR(got[i], wanted[i], coded ? std::abs(wanted[i]) * 0x1.01p-8f : 0) << spec.name;
      continue;
    }
    EXPECT_EQ(info.format, WeightFormat::polar) << spec.name;
    EXPECT_EQ(info.codebook->kind, TableKind::file);
    // Decoding the delivered matrix, pieces and all, gives the published decoder's values up to fp32 rounding of 128-term sums.
    const std::vector<float> wanted = floats(expected.at(base_name(spec) + ".decoded"));
    std::vector<float> got(wanted.size());
    const Matrix matrix{.format = info.format,
                        .rows = spec.rows,
                        .cols = spec.cols,
                        .units = spec.split == Split::cols ? spec.pieces : 1,
                        .data = loaded.data.data(),
                        .scales = loaded.scales.data(),
                        .codebook = info.codebook};
    backend->decode({.w = got.data(), .matrix = matrix});
    float largest = 0;
    for (const float value : wanted) largest = std::max(largest, std::abs(value));
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], wanted[i], largest * 16 * 0x1p-23f) << spec.name << " " << i;
  }
}

TEST_P(Published, AnotherFormatIsMadeFromTheDecodedWeights) {
  const std::string directory = kData + "/" + GetParam();
  const auto expected = golden(directory + "/expected.bin");
  Encoding bf16;
  ASSERT_TRUE(try_parse_encoding("bf16", &bf16));
  Recipe recipe;
  recipe.policy = Policy(bf16);
  const std::vector<TensorSpec> specs = fixture_specs();
  const std::unique_ptr<Backend> backend = make_backend("cpu");
  QuantizingSource source(directory, specs, recipe, *backend);
  const TensorSpec& spec = specs[1];
  const testing::Loaded loaded = testing::load_pieces(source, spec, 0, spec.pieces);
  const std::vector<float> wanted = floats(expected.at(base_name(spec) + ".decoded"));
  const uint16_t* values = reinterpret_cast<const uint16_t*>(loaded.data.data());
  for (size_t i = 0; i < wanted.size(); ++i) EXPECT_NEAR(bf16_to_f32(values[i]), wanted[i], std::abs(wanted[i]) * 0x1.01p-8f);
}

INSTANTIATE_TEST_SUITE_P(Formats, Published, ::testing::Values("polar_f1", "polar_f2"));

// Every byte of every F2 packing is met: codes 0..31 in turn against the definition.
TEST(PublishedBlock, FiveBitsAreLeastSignificantFirst) {
  uint8_t packed[80] = {}, codes[128];
  for (int k = 0; k < 128; ++k) {
    const int code = (k * 7 + 3) % 32;
    for (int bit = 0; bit < 5; ++bit)
      if (code >> bit & 1) packed[(5 * k + bit) / 8] |= static_cast<uint8_t>(1 << (5 * k + bit) % 8);
  }
  unpack_published_block(CodePacking::five, packed, codes);
  for (int k = 0; k < 128; ++k) EXPECT_EQ(codes[k], (k * 7 + 3) % 32);
}

TEST(PublishedBlock, NibblesAreHalfBlocks) {
  uint8_t packed[64], codes[128];
  for (int i = 0; i < 64; ++i) packed[i] = static_cast<uint8_t>(i * 37);
  unpack_published_block(CodePacking::nibbles, packed, codes);
  for (int i = 0; i < 64; ++i) {
    EXPECT_EQ(codes[i], packed[i] % 16);
    EXPECT_EQ(codes[64 + i], packed[i] / 16);
  }
}

// A copy of the F1 fixture with one byte of tensor `name` changed at `at`.
std::string damaged(const TempDir& dir, const std::string& name, int64_t at, const std::string& bytes) {
  const std::string copy = dir / "f1";
  std::filesystem::remove_all(copy);
  std::filesystem::copy(kData + "/polar_f1", copy);
  const std::string path = copy + "/model-00000-of-00001.safetensors";
  const SafetensorsFile file = SafetensorsFile::open(path);
  for (const SafetensorsEntry& entry : file.entries())
    if (entry.name == name) File::open_update(path).write_at(bytes.data(), static_cast<int64_t>(bytes.size()), entry.offset + at);
  return copy;
}

TEST(PublishedAbuse, CodesAndNormsAreChecked) {
  const TempDir dir;
  const std::vector<TensorSpec> specs = fixture_specs();
  const std::unique_ptr<Backend> backend = make_backend("cpu");
  const auto load_error = [&](const std::string& name, int64_t at, const std::string& bytes) {
    const std::string copy = damaged(dir, name, at, bytes);
    return error_of(ErrorKind::input, [&] {
      QuantizingSource source(copy, specs, Recipe{}, *backend);
      for (const TensorSpec& spec : specs) testing::load_pieces(source, spec, 0, spec.pieces);
    });
  };
  EXPECT_HAS(load_error("model.embed_tokens.codes", 130, "\x20"), "code 32 in row 1");
  EXPECT_HAS(load_error("model.embed_tokens.codes", 0, "\xff"), "code 255 in row 0");
  EXPECT_HAS(load_error("model.embed_tokens.norms", 2, std::string("\x00\x7c", 2)), "norm inf in row 1");
  EXPECT_HAS(load_error("model.embed_tokens.norms", 0, std::string("\x00\xbc", 2)), "norm -1 in row 0");
  EXPECT_HAS(load_error("lm_head.ct", 0, std::string("\x00\x00\x00\x00", 4)), "ascend");
}

TEST(PublishedAbuse, KeysMustBeComplete) {
  const TempDir dir;
  const std::vector<TensorSpec> specs = fixture_specs();
  // The header is edited in place, the index names the new key.
  const auto open_error = [&](const std::string& from, const std::string& to) {
    const std::string copy = dir / "f1";
    std::filesystem::remove_all(copy);
    std::filesystem::copy(kData + "/polar_f1", copy);
    for (const char* file : {"/model-00000-of-00001.safetensors", "/model.safetensors.index.json"}) {
      std::string bytes = slurp(copy + file);
      const size_t at = bytes.find(from);
      EXPECT_NE(at, std::string::npos);
      bytes.replace(at, from.size(), to);
      spit(copy + file, bytes);
    }
    return error_of(ErrorKind::input, [&] { Checkpoint::open(copy, specs); });
  };
  EXPECT_HAS(open_error("lm_head.norms", "lm_head.nxrms"), "has codes and no norms");
  EXPECT_HAS(open_error("lm_head.ct", "lm_head.xt"), "has codes and no table");
  EXPECT_HAS(open_error("lm_head.codes", "lm_head.cxdes"), "lacks \"lm_head.weight\"");
}

// The published recipe, plain norms: codes and norms of an independent NumPy encoder, on weights whose coordinates keep a distance
// from every decision boundary that fp32 rounding cannot cross.
TEST(PublishedEncoder, CodesEqualTheIndependentEncoder) {
  const auto tensors = golden(kData + "/encoder/published.safetensors");
  for (const char* device : {"reference", "cpu"}) {
    const std::unique_ptr<Backend> backend = make_backend(device);
    for (const TableKind kind : {TableKind::published, TableKind::bounded}) {
      for (int bits = 2; bits <= (kind == TableKind::published ? 8 : 6); ++bits) {
        const std::string key = (kind == TableKind::published ? "A" : "B") + std::to_string(bits);
        const std::vector<float> w = floats(tensors.at(key + ".w"));
        const std::vector<float> table = floats(tensors.at(key + ".table"));
        const Codebook codebook = make_codebook(bits, kind);
        // A is iterated in fp64 and rounded once. B is iterated in fp32, so that two mathematics libraries differ in it; its codes
        // below are what counts.
        for (size_t i = 0; i < table.size() && kind == TableKind::published; ++i)
          ASSERT_NEAR(codebook.centroids[i], table[i], std::abs(table[i]) * 0x1p-23f) << key << " " << i;
        const int64_t rows = 3, cols = 256, blocks = rows * cols / 128;
        ASSERT_EQ(static_cast<int64_t>(w.size()), rows * cols);
        std::vector<uint8_t> codes(static_cast<size_t>(blocks * 16 * bits));
        std::vector<uint16_t> norms(static_cast<size_t>(blocks));
        backend->polar_encode({.codes = codes.data(),
                               .norms = norms.data(),
                               .w = w.data(),
                               .rows = rows,
                               .cols = cols,
                               .codebook = &codebook,
                               .scale_search = false,
                               .error = nullptr});
        EXPECT_EQ(unpacked(codes, bits), tensors.at(key + ".codes")) << device << " " << key;
        EXPECT_EQ(std::memcmp(norms.data(), tensors.at(key + ".norms").data(), norms.size() * 2), 0) << device << " " << key;
      }
    }
  }
}

}  // namespace
}  // namespace pq
