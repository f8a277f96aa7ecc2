// Timed loops of bench.h; those of single operations are in bench_kernels.cpp.
#include "eval/bench.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/random.h"
#include "eval/bench_timing.h"
#include "eval/roofs.h"
#include "kernels/cpu/thread_pool.h"

namespace pq {
namespace {

constexpr int kPatternPasses = 1;
constexpr int kBestPasses = 5;
constexpr int kDotPasses = 12;

// The prompt into `slot` in steps of at most the batch; logits of the last token only.
void run_prompt(Transformer& model, int64_t slot, int64_t tokens, Random* random) {
  for (int64_t done = 0; done < tokens;) {
    const int64_t count = std::min(model.options().batch, tokens - done);
    Step step;
    for (int64_t i = 0; i < count; ++i) step.tokens.push_back(static_cast<int32_t>(random->below(model.config().vocab)));
    step.spans.push_back({0, count, done, slot});
    done += count;
    if (done == tokens) step.logit_rows.push_back(static_cast<int32_t>(count - 1));
    model.run(step, [](int64_t, const float*) {});
  }
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : 0.5 * (values[middle - 1] + values[middle]);
}

double median_fraction(int64_t work, const std::vector<double>& seconds, const std::vector<double>& roof) {
  if (roof.empty()) return 0;
  std::vector<double> fractions;
  for (size_t i = 0; i < roof.size(); ++i) fractions.push_back(static_cast<double>(work) / seconds[i] / roof[i]);
  return median(fractions);
}

}  // namespace

double BenchRow::median_seconds() const { return median(seconds); }

double BenchRow::read_fraction() const { return median_fraction(bytes, seconds, read); }
double BenchRow::dot_fraction() const { return median_fraction(macs, seconds, dot); }

Roofs BenchReport::roofs() const {
  Roofs best = before;
  if (after.read_bytes_per_second > best.read_bytes_per_second) {
    best.read_bytes_per_second = after.read_bytes_per_second;
    best.pattern = after.pattern;
    best.read_pattern = after.read_pattern;
  }
  best.macs_per_second = std::max(best.macs_per_second, after.macs_per_second);
  return best;
}

Roofs measure_roofs(Communicator& comm, const BackendOptions& options, const std::string& backend, int64_t bytes) {
  Roofs roofs;
  ThreadPool pool(options.threads, options.pin, options.spin);
  {
    const ReadRoof memory(bytes, &pool);
    const double read = static_cast<double>(sum_over_ranks(comm, memory.bytes()));
    const auto pass = [&](int pattern) {
      const double rate = read / timed(comm, [&] { memory.read(pattern); });
      if (rate <= roofs.read_bytes_per_second) return;
      roofs.read_bytes_per_second = rate;
      roofs.pattern = pattern;
    };
    for (int i = 0; i < kPatternPasses; ++i)
      for (int pattern = 0; pattern < memory.patterns(); ++pattern) pass(pattern);
    for (int i = 0; i < kBestPasses; ++i) pass(roofs.pattern);
    roofs.read_pattern = memory.name(roofs.pattern);
  }
  const DotRoof dot(backend, &pool);
  const double macs = static_cast<double>(sum_over_ranks(comm, dot.macs()));
  for (int i = 0; i < kDotPasses; ++i)
    roofs.macs_per_second = std::max(roofs.macs_per_second, macs / timed(comm, [&] { dot.run(); }));
  roofs.dot_instruction = dot.instruction();
  return roofs;
}

struct RoofMeter::Impl {
  Impl(Communicator& c, const BackendOptions& options, const std::string& backend, const Roofs& roofs, int64_t bytes)
      : comm(c),
        pool(options.threads, options.pin, options.spin),
        memory(bytes, &pool),
        products(backend, &pool),
        pattern(roofs.pattern) {
    total_bytes = static_cast<double>(sum_over_ranks(comm, memory.bytes()));
    total_macs = static_cast<double>(sum_over_ranks(comm, products.macs()));
  }

  Communicator& comm;
  ThreadPool pool;
  ReadRoof memory;
  DotRoof products;
  int pattern;
  double total_bytes;
  double total_macs;
};

RoofMeter::RoofMeter(Communicator& comm, const BackendOptions& options, const std::string& backend, const Roofs& roofs,
                     int64_t bytes)
    : impl_(std::make_unique<Impl>(comm, options, backend, roofs, bytes)) {}

RoofMeter::~RoofMeter() = default;

double RoofMeter::read() {
  return impl_->total_bytes / timed(impl_->comm, [&] { impl_->memory.read(impl_->pattern); });
}

double RoofMeter::dot() {
  return impl_->total_macs / timed(impl_->comm, [&] { impl_->products.run(); });
}

int64_t RoofMeter::bytes() const { return impl_->memory.bytes(); }

TokenCost token_cost(const ModelConfig& config, const WeightSource& source, int rank, int ranks, bool head) {
  TokenCost cost;
  for (const TensorSpec& spec : tensor_specs(config)) {
    const bool embed = spec.name == "embed_tokens.weight";
    const bool is_head = spec.name == "lm_head.weight" || (embed && config.tied);
    if (embed && !is_head) continue;
    if (is_head && !head) continue;
    const int64_t owned = owned_pieces(spec, rank, ranks).count;
    cost.bytes += source.info(spec).bytes / spec.pieces * owned;
    if (spec.cols > 4) cost.macs += spec.rows * spec.cols / spec.pieces * owned;
  }
  return cost;
}

std::vector<BenchRow> bench_decode(Transformer& model, Communicator& comm, RoofMeter* meter, int64_t depth,
                                   const std::vector<int64_t>& sequences, int64_t steps, TokenCost cost) {
  Random random(1);
  const int64_t slots = *std::max_element(sequences.begin(), sequences.end());
  std::vector<int64_t> positions(static_cast<size_t>(slots), std::max<int64_t>(depth, 1));
  for (int64_t slot = 0; slot < slots; ++slot) run_prompt(model, slot, positions[static_cast<size_t>(slot)], &random);
  std::vector<BenchRow> rows;
  for (const int64_t count : sequences) {
    BenchRow row;
    row.name = fmt::format("decode at depth {}", depth) + (count == 1 ? "" : fmt::format(", {} sequences", count));
    row.tokens = count;
    row.bytes = sum_over_ranks(comm, cost.bytes);
    row.macs = sum_over_ranks(comm, cost.macs) * count;
    rows.push_back(row);
  }
  for (int64_t i = 0; i < steps; ++i) {
    for (BenchRow& row : rows) {
      Step step;
      for (int64_t slot = 0; slot < row.tokens; ++slot) {
        step.tokens.push_back(static_cast<int32_t>(random.below(model.config().vocab)));
        step.spans.push_back({slot, 1, positions[static_cast<size_t>(slot)]++, slot});
        step.logit_rows.push_back(static_cast<int32_t>(slot));
      }
      row.read.push_back(meter->read());
      row.dot.push_back(meter->dot());
      row.seconds.push_back(timed(comm, [&] { model.run(step, [](int64_t, const float*) {}); }));
    }
  }
  return rows;
}

BenchRow bench_prefill(Transformer& model, Communicator& comm, RoofMeter* meter, int64_t tokens, int64_t repetitions,
                       TokenCost cost) {
  BenchRow row;
  row.name = fmt::format("prefill {}", tokens);
  row.tokens = tokens;
  row.macs = sum_over_ranks(comm, cost.macs) * tokens;
  for (int64_t i = 0; i < repetitions; ++i) {
    Random random(static_cast<uint64_t>(i));
    const double before = meter->dot();
    row.seconds.push_back(timed(comm, [&] { run_prompt(model, 0, tokens, &random); }));
    row.dot.push_back(0.5 * (before + meter->dot()));
  }
  return row;
}

std::vector<BenchRow> bench_comm(Communicator& comm, int64_t hidden, int64_t repetitions) {
  std::vector<BenchRow> rows;
  for (const int64_t count : {hidden, 256 * hidden}) {
    std::vector<float> data(static_cast<size_t>(count), 1.0f);
    BenchRow row;
    row.name = fmt::format("all_reduce {} fp32", count);
    // One repetition is a train of calls: a single one is shorter than the barrier around it.
    const int64_t calls = count == hidden ? 100 : 4;
    for (int64_t i = 0; i < repetitions; ++i) {
      row.seconds.push_back(timed(comm,
                                  [&] {
                                    for (int64_t call = 0; call < calls; ++call) comm.all_reduce_sum(data.data(), count);
                                  }) /
                            static_cast<double>(calls));
      std::fill(data.begin(), data.end(), 1.0f);
    }
    rows.push_back(row);
  }
  return rows;
}

std::vector<BenchRow> bench_load(const ModelConfig& config, Backend& backend, Communicator& comm, RoofMeter* meter,
                                 WeightSource& source, int64_t weight_bytes, int64_t repetitions) {
  std::vector<BenchRow> rows(2);
  rows[0].name = "load, first";
  rows[1].name = "load again";
  for (BenchRow& row : rows) row.bytes = sum_over_ranks(comm, weight_bytes);
  for (int64_t i = 0; i <= repetitions; ++i) {
    Weights weights;
    rows[i == 0 ? 0 : 1].read.push_back(meter->read());
    rows[i == 0 ? 0 : 1].seconds.push_back(
        timed(comm, [&] { weights = load_weights(config, backend, source, comm.rank(), comm.size(), nullptr); }));
  }
  return rows;
}

}  // namespace pq
