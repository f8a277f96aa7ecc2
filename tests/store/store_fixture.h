// What the tests of the store share: a directory of their own, a small checkpoint written by the test, bytes of files.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "store/quantize_store.h"
#include "store/quantizer.h"
#include "store/safetensors.h"
#include "store/tensor_spec.h"
#include "store/weight_source.h"

namespace pq::testing {

// Removed with all it holds at the end of the test.
class TempDir {
 public:
  TempDir() {
    // Memory where there is some: stores sync every file, which a busy disk takes its time for.
    const std::string root = is_directory("/dev/shm") ? "/dev/shm" : std::filesystem::temp_directory_path().string();
    std::string pattern = root + "/pq_store_XXXXXX";
    if (mkdtemp(pattern.data()) == nullptr) throw Error(ErrorKind::io, "cannot make a temporary directory");
    path_ = pattern;
  }
  ~TempDir() {
    std::error_code code;
    std::filesystem::remove_all(path_, code);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline void spit(const std::string& path, const std::string& bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

// All files of a directory by name.
inline std::map<std::string, std::string> directory_bytes(const std::string& path) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(path))
    files[entry.path().filename().string()] = slurp(entry.path().string());
  return files;
}

// The message of the pq::Error that `work` throws; fails the test when it throws none or one of another kind.
inline std::string error_of(ErrorKind kind, const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& e) {
    EXPECT_EQ(static_cast<int>(e.kind()), static_cast<int>(kind)) << e.what();
    const std::string message = e.what();
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    return message;
  }
  ADD_FAILURE() << "no error was thrown";
  return "";
}

// Session::agree for ranks that are threads, where an exception wakes the other ranks out of the barrier.
inline Agree thread_agree(Communicator& comm) {
  return [&comm](const std::string&, const std::function<void()>& work) {
    work();
    comm.barrier();
  };
}

struct TinyModel {
  std::vector<TensorSpec> specs;
  std::map<std::string, DType> dtypes;  // by source; bf16 when absent
};

inline TensorSpec make_spec(const std::string& name, int64_t rows, int64_t cols, Split split, int64_t pieces, bool matrix,
                            int64_t shard) {
  TensorSpec spec;
  spec.name = spec.source = name;
  spec.rows = rows;
  spec.cols = cols;
  spec.source_shape = cols == 1 ? std::vector<int64_t>{rows} : std::vector<int64_t>{rows, cols};
  spec.split = split;
  spec.pieces = pieces;
  spec.matrix = matrix;
  spec.tensor_class = name.substr(0, name.rfind(".weight"));
  spec.shard = shard;
  return spec;
}

// One of each kind: rows and columns cut, a fused source with three parts, kept tensors of two types, three shards.
inline TinyModel tiny_model(bool tied = false) {
  TinyModel model;
  auto& s = model.specs;
  s.push_back(make_spec("embed_tokens.weight", 32, 128, Split::rows, 4, true, 0));
  s.push_back(make_spec("layers.0.input_layernorm.weight", 128, 1, Split::replicated, 1, false, 1));
  const std::string parts[] = {"q", "k", "v"};
  const int64_t rows[] = {8, 8, 16};
  int64_t row = 0;
  for (int i = 0; i < 3; ++i) {
    s.push_back(make_spec("layers.0.linear_attn.in_proj_" + parts[i] + ".weight", rows[i], 128, Split::rows, 4, true, 1));
    s.back().source = "layers.0.linear_attn.in_proj_qkv.weight";
    s.back().source_shape = {32, 128};
    s.back().source_row = row;
    s.push_back(make_spec("layers.0.linear_attn.conv1d_" + parts[i] + ".weight", rows[i], 4, Split::rows, 4, false, 1));
    s.back().source = "layers.0.linear_attn.conv1d.weight";
    s.back().source_shape = {32, 1, 4};
    s.back().source_row = row;
    row += rows[i];
  }
  s.push_back(make_spec("layers.0.linear_attn.in_proj_a.weight", 4, 128, Split::rows, 4, false, 1));
  s.push_back(make_spec("layers.0.linear_attn.A_log", 4, 1, Split::rows, 4, false, 1));
  model.dtypes["layers.0.linear_attn.A_log"] = DType::f32;
  s.push_back(make_spec("layers.0.mlp.gate_proj.weight", 512, 128, Split::rows, 4, true, 1));
  s.push_back(make_spec("layers.0.mlp.down_proj.weight", 128, 512, Split::cols, 4, true, 1));
  s.push_back(make_spec("norm.weight", 128, 1, Split::replicated, 1, false, 2));
  s.push_back(make_spec("lm_head.weight", 32, 128, Split::rows, 4, true, 2));
  if (tied) s.back().source = "embed_tokens.weight";
  return model;
}

// Writes the sources of `model` (random, seeded) as a Hugging Face directory of two files with an index and a config.json.
// `extra`: tensors of four BF16 zeros under these full names.
inline void write_checkpoint(const std::string& directory, const TinyModel& model, const std::string& prefix = "model.",
                             const std::vector<std::string>& extra = {}, double scale = 0.02) {
  std::filesystem::create_directories(directory);
  std::vector<SafetensorsWriter::Tensor> files[2];
  std::set<std::string> seen;
  for (const TensorSpec& spec : model.specs) {
    if (!seen.insert(spec.source).second) continue;
    const auto dtype = model.dtypes.find(spec.source);
    const std::string name = spec.source.rfind("lm_head", 0) == 0 ? spec.source : prefix + spec.source;
    files[seen.size() % 2].push_back({name, dtype == model.dtypes.end() ? DType::bf16 : dtype->second, spec.source_shape});
  }
  for (const std::string& name : extra) files[0].push_back({name, DType::bf16, {4}});
  std::string map;
  Random random(7);
  for (int f = 0; f < 2; ++f) {
    const std::string file = "model.safetensors-0000" + std::to_string(f + 1) + "-of-00002.safetensors";
    SafetensorsWriter writer(directory + "/" + file, files[f], {{"format", "pt"}});
    for (size_t i = 0; i < files[f].size(); ++i) {
      const SafetensorsWriter::Tensor& tensor = files[f][i];
      const bool is_extra = std::find(extra.begin(), extra.end(), tensor.name) != extra.end();
      std::vector<float> values(static_cast<size_t>(checked_count(tensor.shape)));
      for (float& v : values) v = is_extra ? 0.0f : static_cast<float>(random.normal() * scale);
      std::vector<uint8_t> bytes(values.size() * static_cast<size_t>(dtype_bytes(tensor.dtype)));
      convert_from_f32(values.data(), tensor.dtype, static_cast<int64_t>(values.size()), bytes.data());
      writer.write(static_cast<int64_t>(i), 0, bytes.data(), static_cast<int64_t>(bytes.size()));
      map += std::string(map.empty() ? "" : ", ") + "\"" + tensor.name + "\": \"" + file + "\"";
    }
    writer.finish();
  }
  spit(directory + "/model.safetensors.index.json", "{\"metadata\": {}, \"weight_map\": {" + map + "}}");
  spit(directory + "/config.json", "{\"model_type\": \"qwen3_5_text\"}");
  spit(directory + "/tokenizer.json", "{}");
}

// Planes of pieces [first, first + count), concatenated.
struct Loaded {
  std::vector<uint8_t> data;
  std::vector<uint16_t> scales;
  std::vector<uint16_t> zeros;
  bool operator==(const Loaded&) const = default;
};

inline Loaded load_pieces(WeightSource& source, const TensorSpec& spec, int64_t first, int64_t count) {
  const WeightInfo info = source.info(spec);
  const Encoding encoding{info.format, info.bits, info.has_zeros, DType::f32};
  Loaded loaded;
  loaded.data.resize(static_cast<size_t>(count * piece_bytes(spec, encoding, 0)));
  loaded.scales.resize(static_cast<size_t>(count * piece_bytes(spec, encoding, 1) / 2));
  loaded.zeros.resize(static_cast<size_t>(count * piece_bytes(spec, encoding, 2) / 2));
  source.load(spec, first, count, loaded.data.data(), loaded.scales.empty() ? nullptr : loaded.scales.data(),
              loaded.zeros.empty() ? nullptr : loaded.zeros.data());
  return loaded;
}

inline std::unique_ptr<Backend> make_host_backend() { return make_backend("cpu"); }

// Makes a store on `ranks` threads, each with a backend of its own; returns rank 0's report.
inline StoreReport make_store(const StoreJob& job, int ranks = 1, std::unique_ptr<Backend> (*make)() = make_host_backend) {
  StoreReport report;
  run_threads(ranks, [&](Communicator& comm) {
    const std::unique_ptr<Backend> backend = make();
    StoreReport mine = quantize_store(job, *backend, comm, thread_agree(comm));
    if (comm.rank() == 0) report = std::move(mine);
  });
  return report;
}

}  // namespace pq::testing
