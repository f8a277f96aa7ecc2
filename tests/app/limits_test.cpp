// Files of one byte more than base/limits.h allows, and of exactly that: each parser of a program refuses the first by its size and
// name, before it takes memory, and looks into the second. The files are holes, which no disk has to hold.
#include "base/limits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/demo_model.h"
#include "support/process.h"
#include "support/refusal.h"

namespace pq {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

using Words = std::vector<std::string>;

struct Limit {
  const char* file;
  int64_t bytes;
  const char* program;
  Words (*arguments)(const std::string& model);
  bool is_model_file = true;  // of the copy of the demo model, else of its own
};
void PrintTo(const Limit& limit, std::ostream* out) { *out << limit.file; }

Words generation(const std::string& model) { return {"-m", model, "-p", "x", "-n", "1"}; }
Words chat(const std::string& model) { return {"-m", model, "-p", "x", "-n", "1", "--chat"}; }
Words inspection(const std::string& model) { return {model}; }
Words quantisation(const std::string& model) { return {model, model + "/store"}; }

class FileLimit : public testing::TestWithParam<Limit> {};
INSTANTIATE_TEST_SUITE_P(Limits, FileLimit,
                         testing::Values(Limit{"config.json", kMaxConfigBytes, "pq-run", generation},
                                         Limit{"polar_config.json", kMaxConfigBytes, "pq-run", generation},
                                         Limit{"generation_config.json", kMaxGenerationConfigBytes, "pq-run", generation},
                                         Limit{"chat_template.jinja", kMaxTemplateBytes, "pq-run", chat},
                                         Limit{"tokenizer.json", kMaxTokenizerBytes, "pq-run", generation},
                                         Limit{"tokenizer_config.json", kMaxTokenizerBytes, "pq-run", generation},
                                         Limit{"model.safetensors.index.json", kMaxSafetensorsIndexBytes, "pq-run", generation},
                                         Limit{"manifest.json", kMaxManifestBytes, "pq-inspect", inspection},
                                         Limit{"vocab.json", kMaxCopiedBytes, "pq-quantize", quantisation},
                                         Limit{"policy.txt", kMaxPolicyBytes, "pq-quantize",
                                               [](const std::string& model) {
                                                 return Words{model, model + "/store", "--policy", model + "/policy.txt"};
                                               }},
                                         Limit{"prompt.txt", kMaxTextBytes, "pq-run",
                                               [](const std::string& model) {
                                                 return Words{"-m", model, "-f", model + "/prompt.txt", "-n", "1"};
                                               }},
                                         Limit{"base.json", kMaxNllFileBytes, "pq-ppl",
                                               [](const std::string& model) {
                                                 return Words{"-m", model,       "-f", model + "/eval.txt", "--ctx",
                                                              "64", "--windows", "1",  "--compare-nll",     model + "/base.json"};
                                               }}),
                         [](const auto& info) {
                           std::string name = info.param.file;
                           for (char& c : name)
                             if (!isalnum(static_cast<unsigned char>(c))) c = '_';
                           return name;
                         });

TEST_P(FileLimit, OneByteMoreIsRefusedByNameAndSize) {
  const Limit limit = GetParam();
  test::ModelCopy model(test::demo_path());
  model.replace(limit.file, "");
  const auto run = [&](int64_t bytes) {
    fs::resize_file(model.path() + "/" + limit.file, static_cast<uintmax_t>(bytes));
    return test::run_process(test::program_command(0, limit.program, limit.arguments(model.path())));
  };
  const std::string line = test::refusal_line(limit.program, run(limit.bytes + 1), {65});
  EXPECT_THAT(line, HasSubstr(std::string("/") + limit.file + " has " + std::to_string(limit.bytes + 1) + " bytes, the limit is " +
                              std::to_string(limit.bytes)));
  // Larger files take memory and seconds, which this test leaves to whoever has them.
  if (limit.bytes > kMaxTokenizerBytes) return;
  EXPECT_THAT(run(limit.bytes).err, Not(HasSubstr("the limit is")));
}

}  // namespace
}  // namespace pq
