// The benchmark on a device, which the emulated CUDA backend stands in for: what is counted, on whose clock, and what a device does
// besides operations (kernels/device_measure.h). How fast anything is, is not checked.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>
#include <thread>

#include "base/random.h"
#include "eval/bench.h"
#include "eval/bench_report.h"
#include "eval/bench_timing.h"
#include "eval/roofs.h"
#include "eval/synthetic_source.h"
#include "kernels/reference/reference_backend.h"
#include "tests/support/simt/emulated_backend.h"

namespace pq {
namespace {

using testing::EndsWith;
using testing::HasSubstr;

ModelConfig tiny() {
  ModelConfig c;
  c.model_type = "qwen3_5_text";
  c.hidden = 128;
  c.intermediate = 256;
  c.layers = 2;
  c.layer_kinds = {LayerKind::delta, LayerKind::attention};
  c.heads = 2;
  c.kv_heads = 2;
  c.head_dim = 128;
  c.rotary_dim = 32;
  c.rope_theta = 1e6;
  c.key_heads = 2;
  c.value_heads = 4;
  c.key_dim = 32;
  c.value_dim = 64;
  c.vocab = 96;
  c.max_position = 512;
  c.rms_norm_eps = 1e-6f;
  return c;
}

MakeSum emulated_sums(Backend& backend, Communicator& comm) {
  const RankExchange exchange{
      .rank = comm.rank(),
      .ranks = comm.size(),
      .one_node = true,
      .all_gather = [&comm](const void* data, int64_t bytes, void* out) { comm.all_gather(data, bytes, out); }};
  return
      [&backend, exchange](const std::string& method, double limit) { return make_emulated_sum(backend, method, exchange, limit); };
}

TEST(DeviceMeasure, MarksGiveTheTimeBetweenThem) {
  const std::unique_ptr<Backend> backend = make_emulated_cuda_backend();
  DeviceMeasure* device = device_of(*backend);
  ASSERT_NE(device, nullptr);
  EXPECT_EQ(device_of(*make_backend("cpu")), nullptr);
  for (int repeat = 0; repeat < 2; ++repeat) {
    device->mark();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    device->mark();
    device->mark();
    const std::vector<double> seconds = device->intervals();
    ASSERT_EQ(seconds.size(), 2u);
    EXPECT_GE(seconds[0], 0.02);
    EXPECT_LT(seconds[1], seconds[0]);
    EXPECT_TRUE(device->intervals().empty());
  }
}

TEST(DeviceMeasure, CopiesAndFillsMemory) {
  const std::unique_ptr<Backend> backend = make_emulated_cuda_backend();
  DeviceMeasure* device = device_of(*backend);
  for (const int64_t words : {1, 2, 255, 4096, 5003}) {
    const Buffer from = backend->allocate(8 * words + 16);
    device->fill_random(from.as<uint64_t>(), words, 42);
    std::vector<uint64_t> values(static_cast<size_t>(words) + 1);
    backend->download(values.data(), from.data(), 8 * words + 8);
    Random random(42);
    for (int64_t i = 0; i < words; ++i) ASSERT_EQ(values[static_cast<size_t>(i)], random.next_u64()) << i;
    EXPECT_EQ(values.back(), 0u);
    uint16_t choices[256];
    for (uint16_t i = 0; i < 256; ++i) choices[i] = static_cast<uint16_t>(257 * i + 5);
    const Buffer chosen = backend->allocate(2 * words + 2);
    device->fill_choices(chosen.as<uint16_t>(), words, choices, 42);
    std::vector<uint16_t> picked(static_cast<size_t>(words) + 1);
    backend->download(picked.data(), chosen.data(), 2 * words + 2);
    for (size_t i = 0; i < picked.size() - 1; ++i) ASSERT_EQ(picked[i], choices[values[i] >> 56]) << i;
    EXPECT_EQ(picked.back(), 0u);
    float numbers[256];
    for (int i = 0; i < 256; ++i) numbers[i] = 0.37f * static_cast<float>(i) - 40.0f;
    const Buffer drawn = backend->allocate(4 * words + 4);
    device->fill_choices(drawn.as<float>(), words, numbers, 42);
    std::vector<float> of_numbers(static_cast<size_t>(words) + 1);
    backend->download(of_numbers.data(), drawn.data(), 4 * words + 4);
    for (size_t i = 0; i < of_numbers.size() - 1; ++i) ASSERT_EQ(of_numbers[i], numbers[values[i] >> 56]) << i;
    EXPECT_EQ(of_numbers.back(), 0.0f);
    for (const bool by_kernel : {false, true}) {
      const Buffer to = backend->allocate(8 * words + 16);
      const int64_t bytes = 8 * words / 16 * 16;
      device->copy(to.data(), from.data(), bytes, by_kernel);
      std::vector<uint64_t> copied(values.size());
      backend->download(copied.data(), to.data(), 8 * words + 8);
      for (int64_t i = 0; i <= words; ++i)
        ASSERT_EQ(copied[static_cast<size_t>(i)], 8 * i < bytes ? values[static_cast<size_t>(i)] : 0u) << i;
    }
  }
}

TEST(DeviceMeasure, CountsMultiplyAddsAndBytes) {
  const std::unique_ptr<Backend> backend = make_emulated_cuda_backend();
  DeviceMeasure* device = device_of(*backend);
  const int64_t before = device->held_bytes();
  {
    const Buffer buffer = backend->allocate(1000);
    EXPECT_EQ(device->held_bytes(), before + 1000);
  }
  EXPECT_EQ(device->held_bytes(), before);
  EXPECT_EQ(device->peak_bytes(), before + 1000);
  EXPECT_GE(device->taken_bytes(), before);
  // 16 x 8 x 32 an instruction, 8 of them a warp and round, 8 warps a block, 2 blocks on each of the 4 units.
  EXPECT_EQ(device->multiply(3), int64_t{3} * 16 * 8 * 32 * 8 * 8 * 2 * 4);
}

TEST(DeviceRoofs, AreOfTheDevice) {
  Roofs seen[2];
  run_threads(2, [&](Communicator& comm) {
    const std::unique_ptr<Backend> backend = make_emulated_cuda_backend(comm.rank());
    const int64_t before = device_of(*backend)->held_bytes();
    seen[comm.rank()] = measure_roofs(comm, {}, *backend, 1 << 16);
    comm.barrier();
    // A word of scratch stays.
    EXPECT_EQ(device_of(*backend)->held_bytes(), before + 4);
    RoofMeter meter(comm, {}, *backend, seen[comm.rank()], 1 << 16);
    EXPECT_EQ(meter.bytes(), 0);
    EXPECT_EQ(meter.read(), seen[0].read_bytes_per_second);
    EXPECT_EQ(meter.dot(), seen[0].macs_per_second);
    comm.barrier();
  });
  EXPECT_TRUE(seen[0].device);
  EXPECT_GT(seen[0].read_bytes_per_second, 0);
  EXPECT_GT(seen[0].macs_per_second, 0);
  EXPECT_EQ(seen[0].read_bytes_per_second, seen[1].read_bytes_per_second);
  EXPECT_THAT(seen[0].read_pattern, HasSubstr("read and written"));
  EXPECT_THAT(seen[0].dot_instruction, HasSubstr("mma"));
}

// All measurements of the program on one tiny model.
struct DeviceRun {
  std::vector<BenchRow> decode, kernels, sequence, breakdown, sums;
  BenchRow prefill;
  std::vector<std::string> remarks;
};

DeviceRun run_all(Communicator& comm, Backend& backend) {
  const ModelConfig config = tiny();
  RuntimeOptions options{.context = 48, .slots = 2, .batch = 20};
  DeviceRun out;
  SyntheticSource source(WeightFormat::polar, 5);
  Roofs roofs;
  roofs.read_bytes_per_second = roofs.macs_per_second = 1e9;
  roofs.device = true;
  RoofMeter meter(comm, {}, backend, roofs, 1 << 16);
  {
    Transformer model(config, options, backend, comm, source, {});
    const TokenCost cost = token_cost(config, source, comm.rank(), comm.size(), true);
    out.decode = bench_decode(model, comm, &meter, 3, {1, 2}, 2, cost);
    out.prefill = bench_prefill(model, comm, &meter, 30, 2, cost);
  }
  {
    StepTrace trace(backend);
    const std::unique_ptr<Backend> traced = make_traced_backend(backend, trace, config.vocab / comm.size());
    const std::unique_ptr<Communicator> traced_comm = make_traced_communicator(comm, trace);
    Transformer model(config, options, *traced, *traced_comm, source, {});
    out.breakdown = bench_breakdown(model, trace, comm, 17, 3);
  }
  const Weights weights = load_weights(config, backend, source, comm.rank(), comm.size(), nullptr);
  out.kernels = bench_kernels(weights, backend, comm, &meter, ActivationMode::int8, 20, 1 << 14, 2);
  out.sequence = bench_sequence(config, options, comm.size(), backend, comm, &meter, {24}, 1 << 18, 2);
  out.sums = bench_device_comm(backend, comm, "auto", emulated_sums(backend, comm), 64, 1, &out.remarks);
  return out;
}

void expect_times(const std::vector<BenchRow>& rows, size_t count, size_t repetitions, bool reads) {
  EXPECT_EQ(rows.size(), count);
  for (const BenchRow& row : rows) {
    EXPECT_EQ(row.seconds.size(), repetitions) << row.name;
    EXPECT_GT(row.median_seconds(), 0) << row.name;
    EXPECT_EQ(row.read_fraction() > 0, reads) << row.name;
  }
}

TEST(DeviceBench, MeasuresEverythingOnTheEmulatedDevice) {
  for (const int ranks : {1, 2}) {
    SCOPED_TRACE(std::to_string(ranks) + " ranks");
    std::vector<DeviceRun> runs(static_cast<size_t>(ranks));
    run_threads(ranks, [&](Communicator& comm) {
      const std::unique_ptr<Backend> backend = make_emulated_cuda_backend(comm.rank());
      runs[static_cast<size_t>(comm.rank())] = run_all(comm, *backend);
      comm.barrier();
    });
    const DeviceRun& run = runs[0];
    expect_times(run.decode, 2, 2, true);
    EXPECT_EQ(run.prefill.seconds.size(), 2u);
    EXPECT_GT(run.prefill.dot_fraction(), 0);
    EXPECT_GT(run.kernels.size(), 20u);
    expect_times(run.kernels, run.kernels.size(), 2, true);
    // Whole rows at 5.125 bits a weight, and as fp32; each rank looks up one of its own.
    const BenchRow& embed = run.kernels[run.kernels.size() - 2];
    EXPECT_EQ(embed.name, "embed, 1 token");
    EXPECT_EQ(embed.bytes, ranks * (128 / 64 * 41 + 128 * 4));
    // Norm, convolution, delta rule, its norm, these three at once, attention's input and attention, each of one token and of the
    // batch.
    expect_times(run.sequence, 14, 2, true);
    EXPECT_EQ(run.sequence[5].name, "attention_input, 1 token");
    // Queries of two heads read and written, keys and values read and stored in halves.
    EXPECT_EQ(run.sequence[5].bytes, 256 * (4 + 4) + 2 * 256 * (4 + 2));
    EXPECT_THAT(run.sequence[6].name, HasSubstr("attention over 24 positions, 1 token"));
    EXPECT_THAT(run.sequence[9].name, HasSubstr("gated_delta, 20 tokens"));
    // 2 kv heads over the ranks, keys and values of 24 positions in halves; and queries, gates and outputs.
    EXPECT_EQ(run.sequence[6].bytes, 2 * 2 * 24 * 256 + 16 * 256);
    if (ranks == 1) {
      EXPECT_TRUE(run.sums.empty());
      EXPECT_EQ(run.remarks.size(), 1u);
    } else {
      // Five sizes by peer memory, by the host's and through the host; the emulator has no NCCL. Three of them with the norm where
      // ranks push, which takes 16 rows at most.
      expect_times(run.sums, 15 + 2 * 3, 1, false);
      EXPECT_EQ(run.sums[0].name, "all_reduce 64 fp32 by p2p");
      EXPECT_EQ(run.sums[7].name, "sum and norm of 1024 fp32 by p2p");
      EXPECT_EQ(run.sums.back().name, "all_reduce 16384 fp32 by mpi");
      ASSERT_EQ(run.remarks.size(), 1u);
      EXPECT_THAT(run.remarks[0], HasSubstr("no sums by nccl"));
    }
    for (size_t rank = 1; rank < runs.size(); ++rank) {
      EXPECT_EQ(runs[rank].decode[0].seconds, run.decode[0].seconds);
      EXPECT_EQ(runs[rank].sums[3].seconds, run.sums[3].seconds);
    }
  }
}

// Of its products, each as the operation, the tokens and the rows of its matrices; they are not computed.
class Recorder : public ReferenceBackend {
 public:
  void linear(const LinearArgs& args) override { calls.push_back(fmt::format("linear {}: {}", args.x.tokens, args.w.rows)); }
  void linear_group(std::span<const LinearArgs> products) override {
    std::vector<int64_t> rows;
    std::set<float*> outputs;
    for (const LinearArgs& args : products) {
      rows.push_back(args.w.rows);
      outputs.insert(args.y);
    }
    EXPECT_EQ(outputs.size(), products.size());
    calls.push_back(fmt::format("group {}: {}", products[0].x.tokens, fmt::join(rows, " ")));
  }
  void swiglu(const SwigluArgs& args) override {
    calls.push_back(fmt::format("swiglu {}: {}{}", args.x.tokens, args.gate.rows, args.prepared.wanted() ? ", prepared" : ""));
  }
  std::vector<std::string> calls;
};

TEST(BenchKernels, AllProductsInOrderAreTheCallsOfAStep) {
  const ModelConfig config = tiny();
  SyntheticSource source(WeightFormat::polar, 5);
  run_threads(1, [&](Communicator& comm) {
    Recorder step, bench;
    {
      Transformer model(config, {.context = 48, .batch = 20}, step, comm, source, {});
      Step tokens{.tokens = std::vector<int32_t>(20, 1), .spans = {{0, 20, 0, 0}}, .logit_rows = {}};
      for (int32_t row = 0; row < 8; ++row) tokens.logit_rows.push_back(row);
      model.run(tokens, [](int64_t, const float*) {});
    }
    // The head follows for the rows that are wanted, which in the benchmark are all.
    const std::string head = fmt::format(": {}", config.vocab);
    ASSERT_EQ(step.calls.size(), 9u);
    ASSERT_THAT(step.calls.back(), EndsWith(head));
    step.calls.back() = "linear 20" + head;
    Roofs roofs;
    RoofMeter meter(comm, {}, bench, roofs, 1 << 16);
    const Weights weights = load_weights(config, bench, source, 0, 1, nullptr);
    bench_kernels(weights, bench, comm, &meter, ActivationMode::int8, 20, 1 << 14, 1);
    ASSERT_GT(bench.calls.size(), 9u);
    EXPECT_EQ(std::vector<std::string>(bench.calls.end() - 9, bench.calls.end()), step.calls);
  });
}

// Says that it summed and normed, and how often.
class FusedSums : public Communicator {
 public:
  explicit FusedSums(Communicator& comm) : comm_(comm) {}
  int rank() const override { return comm_.rank(); }
  int size() const override { return comm_.size(); }
  std::string name() const override { return comm_.name(); }
  void all_reduce_sum(float* data, int64_t count) override { comm_.all_reduce_sum(data, count); }
  bool try_sum_and_norm(const RmsNormArgs&) override { return ++fused > 0; }
  void all_gather(const void* data, int64_t bytes, void* out) override { comm_.all_gather(data, bytes, out); }
  void gather(const void* data, int64_t bytes, void* out) override { comm_.gather(data, bytes, out); }
  void broadcast(void* data, int64_t bytes) override { comm_.broadcast(data, bytes); }
  void barrier() override { comm_.barrier(); }
  int fused = 0;

 private:
  Communicator& comm_;
};

// A breakdown must show the step as it is, sums fused with norms.
TEST(Breakdown, PassesFusedSumsOn) {
  run_threads(1, [&](Communicator& comm) {
    const std::unique_ptr<Backend> backend = make_backend("cpu");
    StepTrace trace(*backend);
    FusedSums sums(comm);
    const std::unique_ptr<Communicator> traced = make_traced_communicator(sums, trace);
    trace.begin();
    EXPECT_TRUE(traced->try_sum_and_norm({}));
    EXPECT_EQ(sums.fused, 1);
    EXPECT_GT(trace.end()[static_cast<size_t>(StepKind::sums)], 0);
    EXPECT_FALSE(make_traced_communicator(comm, trace)->try_sum_and_norm({}));
  });
}

TEST(Breakdown, KindsAddUpToTheStep) {
  for (const bool device : {false, true}) {
    SCOPED_TRACE(device ? "device" : "host");
    std::vector<BenchRow> rows;
    run_threads(2, [&](Communicator& comm) {
      const std::unique_ptr<Backend> backend = device ? make_emulated_cuda_backend(comm.rank()) : make_backend("cpu");
      const ModelConfig config = tiny();
      SyntheticSource source(WeightFormat::polar, 5);
      StepTrace trace(*backend);
      const std::unique_ptr<Backend> traced = make_traced_backend(*backend, trace, config.vocab / 2);
      const std::unique_ptr<Communicator> traced_comm = make_traced_communicator(comm, trace);
      Transformer model(config, {.context = 48, .batch = 20}, *traced, *traced_comm, source, {});
      const std::vector<BenchRow> mine = bench_breakdown(model, trace, comm, 17, 3);
      if (comm.rank() == 0) rows = mine;
    });
    std::map<std::string, double> share;
    for (const BenchRow& row : rows) share[row.name] = row.share;
    for (const char* kind : {"embedding", "norms", "products", "delta rule", "attention", "sums", "head", "copies"})
      EXPECT_GT(share[kind], 0) << kind;
    EXPECT_EQ(rows.back().name, "decode at depth 17, operation by operation");
    EXPECT_EQ(rows.back().share, 1);
    EXPECT_EQ(rows.back().seconds.size(), 3u);
    // On each rank the kinds end where the step does; the slowest rank of each kind can only make the sum longer.
    double sum = 0;
    for (size_t i = 0; i + 1 < rows.size(); ++i) sum += rows[i].share;
    EXPECT_GT(sum, 0.5);
  }
}

TEST(DeviceReport, NamesTheMemoryOfTheDevice) {
  BenchReport report;
  report.before = {4e12, 1, "copy", 9e14, "mma", true};
  report.after = report.before;
  report.rows.resize(1);
  report.rows[0].name = "decode";
  report.rows[0].seconds = {0.01};
  report.peak_rss_bytes = {1'000'000};
  report.planned_bytes = {9'000'000'000};
  report.device_bytes = {{8'000'000'000, 8'500'000'000}};
  report.remarks = {"no sums by nccl: there is none"};
  const std::string text = format_report(report, "title", ReportFormat::markdown);
  EXPECT_THAT(text, HasSubstr("a device each: moved 4000.0 GB/s (copy)"));
  EXPECT_THAT(text, HasSubstr("rank 0: device buffers 8.000 GB at most, 8.500 GB of the device taken, planned 9.000 GB"));
  EXPECT_THAT(text, HasSubstr("no sums by nccl: there is none.\n"));
  EXPECT_THAT(format_report(report, "title", ReportFormat::json), HasSubstr("\"buffers\": 8000000000"));
}

}  // namespace
}  // namespace pq
