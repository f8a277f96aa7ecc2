// The golden files of scripts/make_goldens.py, and models run from their directories by steps: what golden_test and coded_test
// share. What must agree with what is left to them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "comm/communicator.h"
#include "kernels/backend.h"
#include "model/config.h"
#include "model/partition.h"
#include "model/transformer.h"
#include "store/policy.h"
#include "store/quantize_source.h"
#include "store/safetensors.h"
#include "tests/support/simt/emulated_backend.h"

namespace pq {

// Two fp32 implementations that sum in different orders differ by rounding: the oracle's own chunked and recurrent forms by up to
// 2.7e-5 on these models and a float64 evaluation from either by up to 3.7e-5. The bound leaves a factor of five; a wrong
// convention costs more than 1 and a lost weight more than 0.05 (asserted by the script).
inline constexpr double kTolerance = 2e-4;

struct Golden {
  std::string model;  // directory
  std::vector<int32_t> tokens;
  std::vector<int32_t> positions;  // of the rows of logits, ascending
  std::vector<float> logits;       // [positions, vocab]
  std::vector<int32_t> windows;    // demo only: [windows, window] tokens of the perplexity cross-check
  int64_t window = 0;
  int64_t prefill = 0;  // tokens of the first step of the oracle; the others were decoded one by one
  std::map<std::string, std::string> metadata;
};

template <typename T>
std::vector<T> read_tensor(const SafetensorsFile& file, const std::string& name, DType dtype,
                           std::vector<int64_t>* shape = nullptr) {
  for (const SafetensorsEntry& entry : file.entries()) {
    if (entry.name != name) continue;
    EXPECT_EQ(entry.dtype, dtype) << name;
    std::vector<T> values(static_cast<size_t>(entry.bytes) / sizeof(T));
    file.file().read_at(values.data(), entry.bytes, entry.offset);
    if (shape) *shape = entry.shape;
    return values;
  }
  return {};
}

inline Golden read_golden(const std::string& model, const std::string& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  Golden golden;
  golden.model = model;
  golden.tokens = read_tensor<int32_t>(file, "tokens", DType::i32);
  golden.positions = read_tensor<int32_t>(file, "positions", DType::i32);
  golden.logits = read_tensor<float>(file, "logits", DType::f32);
  std::vector<int64_t> shape{0, 0};
  golden.windows = read_tensor<int32_t>(file, "windows", DType::i32, &shape);
  golden.window = shape[1];
  golden.metadata = file.metadata();
  golden.prefill = std::atoll(golden.metadata.at("prefill").c_str());
  return golden;
}

inline Golden tiny_golden(const std::string& name) {
  const std::string directory = std::string(PQ_TEST_DATA) + "/golden/" + name;
  return read_golden(directory, directory + "/golden.safetensors");
}

inline Golden demo_golden() {
  return read_golden(std::string(PQ_TEST_DATA) + "/demo", std::string(PQ_TEST_DATA) + "/golden/demo.safetensors");
}

struct RunSetup {
  std::string model;
  std::string format = "bf16";
  // Of make_backend, or cuda-emulated: the CUDA kernels as fibers of this process; or cublas-emulated, with products of many tokens
  // by the stand-in for cuBLAS.
  std::string device = "cpu";
  int ranks = 1;
  bool scale_search = false;  // the encoder's; a tenth of the time without, and no test here depends on it
  RuntimeOptions options{.context = 512, .slots = 1, .batch = 128, .activations = ActivationMode::f32, .kv_type = KvType::f32};
};

// Runs the steps on a fresh model and returns the wanted rows of all of them, one after the other.
inline std::vector<float> run_steps(const RunSetup& setup, const std::vector<Step>& steps) {
  const ModelConfig config = load_model_config(setup.model);
  std::vector<float> logits;
  const auto body = [&](Communicator& comm) {
    const std::unique_ptr<Backend> backend = setup.device == "cuda-emulated" ? make_emulated_cuda_backend()
                                             : setup.device == "cublas-emulated"
                                                 ? make_emulated_cuda_backend(0, 0, int64_t{64} << 10)
                                                 : make_backend(setup.device);
    const std::unique_ptr<Backend> encoder = make_backend(setup.device == "reference" ? "reference" : "cpu");
    Encoding encoding;
    require(try_parse_encoding(setup.format, &encoding), "format of a test setup");
    QuantizingSource source(setup.model, tensor_specs(config),
                            Recipe{.policy = Policy(encoding), .scale_search = setup.scale_search}, *encoder);
    Transformer transformer(config, setup.options, *backend, comm, source, {});
    std::function<void(int64_t, const float*)> consume;
    if (comm.rank() == 0) consume = [&](int64_t, const float* row) { logits.insert(logits.end(), row, row + config.vocab); };
    for (const Step& step : steps) transformer.run(step, consume);
  };
  if (setup.ranks == 1) {
    const std::unique_ptr<Communicator> self = make_self_communicator();
    body(*self);
  } else {
    run_threads(setup.ranks, body);
  }
  return logits;
}

// The tokens of one sequence in `slot`, cut into steps of the given sizes; the last size is repeated. Every row's logits are
// wanted.
inline std::vector<Step> cut_steps(const std::vector<int32_t>& tokens, const std::vector<int64_t>& sizes, int64_t slot = 0) {
  std::vector<Step> steps;
  const int64_t count = static_cast<int64_t>(tokens.size());
  for (int64_t position = 0; position < count; position += steps.back().spans[0].tokens) {
    const int64_t size = std::min(sizes[std::min(steps.size(), sizes.size() - 1)], count - position);
    Step step;
    step.tokens.assign(tokens.begin() + position, tokens.begin() + position + size);
    step.spans = {{.row = 0, .tokens = size, .position = position, .slot = slot}};
    for (int32_t row = 0; row < size; ++row) step.logit_rows.push_back(row);
    steps.push_back(std::move(step));
  }
  return steps;
}

// As the oracle ran: one prefill, then a step a token.
inline std::vector<Step> oracle_steps(const Golden& golden) { return cut_steps(golden.tokens, {golden.prefill, 1}); }

// Largest difference between the golden rows and the same rows of `logits` [tokens, vocab]; infinity when a value is not finite or
// the sizes differ.
inline double golden_error(const Golden& golden, const std::vector<float>& logits) {
  const size_t vocab = golden.logits.size() / golden.positions.size();
  if (logits.size() != golden.tokens.size() * vocab) return INFINITY;
  double worst = 0;
  for (size_t i = 0; i < golden.positions.size(); ++i)
    for (size_t v = 0; v < vocab; ++v) {
      const double error = std::abs(static_cast<double>(golden.logits[i * vocab + v]) -
                                    logits[static_cast<size_t>(golden.positions[i]) * vocab + v]);
      worst = std::isfinite(error) ? std::max(worst, error) : INFINITY;
    }
  return worst;
}

// Index of the first value whose bits differ, -1 when there is none, -2 when the sizes differ.
inline int64_t first_difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return -2;
  for (size_t i = 0; i < a.size(); ++i)
    if (std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i])) return static_cast<int64_t>(i);
  return -1;
}

}  // namespace pq
