// scripts/gpu_goals.sh on reports as pq-bench writes them: the table of goals that a run on a GPU ends with.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "eval/bench_report.h"
#include "support/process.h"

namespace pq {
namespace {

using testing::HasSubstr;

class GpuGoals : public testing::Test {
 protected:
  void SetUp() override {
    std::string path = testing::TempDir() + "gpu_goals.XXXXXX";
    ASSERT_NE(mkdtemp(path.data()), nullptr);
    directory_ = path;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  void write(const std::string& name, const BenchReport& report) {
    std::ofstream(directory_ + "/" + name) << format_report(report, "pq-bench", ReportFormat::json);
  }
  test::ProcessResult table(const std::vector<std::string>& more = {}) {
    std::vector<std::string> command = {std::string(PQ_TEST_DATA) + "/../../scripts/gpu_goals.sh", directory_};
    command.insert(command.end(), more.begin(), more.end());
    return test::run_process(command);
  }

  std::string directory_;
};

// bytes: of a device that copies 1000 of them a second.
BenchRow row(const std::string& name, double seconds, int64_t tokens = 0, int64_t bytes = 0) {
  BenchRow row;
  row.name = name;
  row.seconds = {seconds, seconds, seconds};
  row.tokens = tokens;
  row.bytes = bytes;
  row.read = {1000, 1000, 1000};
  return row;
}

TEST_F(GpuGoals, AreNotMeasuredWithoutReports) {
  const auto result = table();
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  size_t missing = 0;
  for (size_t at = 0; (at = result.out.find("| not measured |", at)) != std::string::npos; ++at) ++missing;
  EXPECT_EQ(missing, 7u) << result.out;
}

TEST_F(GpuGoals, TakeTheirFiguresFromTheReports) {
  BenchReport kernels;
  kernels.rows = {row("16 times 6144x5120 pq5 in 4 units, 1 token", 1, 0, 900),
                  row("16 times 6144x5120 pq5 in 4 units, 2 tokens", 1, 0, 100),
                  row("64 times gate and up 17408x5120 pq5, pq5, 1 token", 1, 0, 800),
                  row("48 times 48x5120 f32, 1 token", 1, 0, 10),
                  row("48 times 10240x5120 pq5 with 48x5120 f32, 1 token", 1, 0, 20),
                  row("all 417 products of a step, 1 token", 1, 0, 870),
                  row("all 417 products of a step, 4 tokens", 1.2, 0, 870),
                  row("gated_delta_layer, 1 token", 5.25e-6),
                  row("gated_delta_layer, 256 tokens", 1)};
  write("kernels.json", kernels);
  kernels.rows = {row("16 times 3072x5120 pq5 in 4 units, 1 token", 1, 0, 700)};
  write("slice.json", kernels);
  BenchReport steps;
  steps.rows = {row("decode at depth 1024", 0.005, 1)};
  write("decode.json", steps);
  steps.rows = {row("decode at depth 1024", 0.005, 1), row("decode at depth 1024, 4 sequences", 0.007, 4)};
  write("parallel.json", steps);
  steps.rows = {row("prefill 512", 0.1, 512), row("prefill 4096", 0.5, 4096), row("prefill 16384", 4, 16384)};
  write("prefill_cublas.json", steps);
  steps.device_bytes = {{9'000'000'000, 19'500'000'000}, {9'000'000'000, 19'600'000'000}};
  write("memory.json", steps);
  const auto result = table({"500000000", "2"});
  EXPECT_EQ(result.code, 0) << result.out << result.err;
  EXPECT_EQ(result.err, "");
  for (const char* cell :
       {"| 85.0 % over 2 shapes, the lowest 80.0 %; as a step calls them 87.0 % |", "| 70.0 % over 1 shapes, the lowest 70.0 % |",
        "| 200.0 tok/s |", "| 1.20 for the products of a step; 1.40 for a step of four sequences |", "| 8192 tok/s by cublas |",
        "| 5.25 us |", "| 9.500e9 bytes |"})
    EXPECT_THAT(result.out, HasSubstr(cell));
  // Alone on its device the same figure is that of one rank.
  const auto alone = table({"500000000", "1"});
  EXPECT_EQ(alone.code, 1) << alone.out;
  EXPECT_THAT(alone.out, HasSubstr("| 19.000e9 bytes |"));
}

TEST_F(GpuGoals, AByteMoreThanTheMemoryAllowedFails) {
  for (const int64_t more : {0, 1}) {
    BenchReport report;
    report.rows = {row("decode at depth 1024", 0.005, 1)};
    report.device_bytes = {{9'000'000'000, 10'000'000'000 + more}};
    write("memory.json", report);
    EXPECT_EQ(table().code, more);
  }
}

}  // namespace
}  // namespace pq
