// The programs on emulated GPUs: links to them beside a plugin of kernels/cuda compiled for the host (tests/support/simt), opened
// as that of a GPU is. Each process has its own devices; host memory is all that processes share.
#pragma once

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/demo_model.h"
#include "support/process.h"

namespace pq::test {

using Words = std::vector<std::string>;

// `command` on that machine: entries of the environment, as tests/support/simt/cuda_runtime.h has them.
inline Words on_machine(const Words& machine, const Words& command) {
  Words words = {"env"};
  words.insert(words.end(), machine.begin(), machine.end());
  words.insert(words.end(), command.begin(), command.end());
  return words;
}

// `program` on `ranks` ranks, 0: without mpirun.
inline ProcessResult run_emulated(const std::string& program, int ranks, const Words& arguments, const Words& machine = {}) {
  return run_process(on_machine(machine, program_command(ranks, "emulated/" + program, arguments)), "", 240);
}

// The demo model as a store made by the CPU: the emulated encoder takes half a minute.
class DemoStore {
 public:
  explicit DemoStore(const Words& recipe = {}) {
    Words words = {demo_path(), path()};
    words.insert(words.end(), recipe.begin(), recipe.end());
    const ProcessResult made = run_process(program_command(0, "pq-quantize", words));
    if (made.code != 0) throw std::runtime_error(made.err);
  }
  std::string path() const { return directory_.path() + "/store"; }

 private:
  TemporaryDirectory directory_;
};

// pq-run, a few tokens.
inline Words short_run(const std::string& model, const Words& more) {
  Words words = {"-m", model, "-p", "Once upon a time", "-n", "4", "--temp", "0"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

inline std::string logits_hash(const ProcessResult& result) {
  EXPECT_EQ(result.code, 0) << result.err;
  const std::string hash = nlohmann::json::parse(result.out, nullptr, false).value("logits_hash", "");
  EXPECT_EQ(hash.size(), 16u);
  return hash;
}

}  // namespace pq::test
