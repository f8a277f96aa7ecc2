// Timed loops of bench.h; those of single operations are in bench_kernels.cpp.
#include "eval/bench.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/random.h"
#include "eval/bench_timing.h"
#include "eval/roofs.h"

namespace pq {
namespace {

constexpr int kPatternPasses = 1;
constexpr int kDevicePatternPasses = 3;  // the first of them while the clocks still rise
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

Roofs measure_roofs(Communicator& comm, const BackendOptions& options, Backend& backend, int64_t bytes) {
  DeviceMeasure* device = device_of(backend);
  const std::unique_ptr<RankRoofs> rank = make_rank_roofs(backend, options, bytes);
  Roofs roofs;
  roofs.device = device != nullptr;
  const double moved = static_cast<double>(sum_over_ranks(comm, rank->bytes()));
  const auto pass = [&](int pattern) {
    const double rate = moved / timed_on(device, comm, [&] { rank->move(pattern); });
    if (rate <= roofs.read_bytes_per_second) return;
    roofs.read_bytes_per_second = rate;
    roofs.pattern = pattern;
  };
  for (int i = 0; i < (device != nullptr ? kDevicePatternPasses : kPatternPasses); ++i)
    for (int pattern = 0; pattern < rank->patterns(); ++pattern) pass(pattern);
  for (int i = 0; i < kBestPasses; ++i) pass(roofs.pattern);
  roofs.read_pattern = rank->pattern_name(roofs.pattern);
  const double macs = static_cast<double>(sum_over_ranks(comm, rank->macs()));
  for (int i = 0; i < kDotPasses; ++i)
    roofs.macs_per_second = std::max(roofs.macs_per_second, macs / timed_on(device, comm, [&] { rank->multiply(); }));
  roofs.dot_instruction = rank->instruction();
  return roofs;
}

// A device is its process's own and keeps its speed: nothing is measured again, and no memory is held.
struct RoofMeter::Impl {
  Impl(Communicator& c, const BackendOptions& options, Backend& backend, const Roofs& r, int64_t bytes) : comm(c), roofs(r) {
    if (device_of(backend) != nullptr) return;
    rank = make_rank_roofs(backend, options, bytes);
    total_bytes = static_cast<double>(sum_over_ranks(comm, rank->bytes()));
    total_macs = static_cast<double>(sum_over_ranks(comm, rank->macs()));
  }

  Communicator& comm;
  Roofs roofs;
  std::unique_ptr<RankRoofs> rank;  // null of a device
  double total_bytes = 0;
  double total_macs = 0;
};

RoofMeter::RoofMeter(Communicator& comm, const BackendOptions& options, Backend& backend, const Roofs& roofs, int64_t bytes)
    : impl_(std::make_unique<Impl>(comm, options, backend, roofs, bytes)) {}

RoofMeter::~RoofMeter() = default;

double RoofMeter::read() {
  if (!impl_->rank) return impl_->roofs.read_bytes_per_second;
  return impl_->total_bytes / timed(impl_->comm, [&] { impl_->rank->move(impl_->roofs.pattern); });
}

double RoofMeter::dot() {
  if (!impl_->rank) return impl_->roofs.macs_per_second;
  return impl_->total_macs / timed(impl_->comm, [&] { impl_->rank->multiply(); });
}

int64_t RoofMeter::bytes() const { return impl_->rank ? impl_->rank->bytes() : 0; }

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

std::vector<BenchRow> bench_breakdown(Transformer& model, StepTrace& trace, Communicator& comm, int64_t depth, int64_t steps) {
  Random random(1);
  int64_t position = std::max<int64_t>(depth, 1);
  run_prompt(model, 0, position, &random);
  std::vector<BenchRow> rows(kStepKinds.size() + 1);
  for (size_t kind = 0; kind < kStepKinds.size(); ++kind) rows[kind].name = kStepKinds[kind];
  BenchRow& whole = rows.back();
  whole.name = fmt::format("decode at depth {}, operation by operation", depth);
  whole.tokens = 1;
  for (int64_t i = 0; i < steps; ++i) {
    Step step;
    step.tokens.push_back(static_cast<int32_t>(random.below(model.config().vocab)));
    step.spans.push_back({0, 1, position++, 0});
    step.logit_rows.push_back(0);
    std::array<double, kStepKinds.size()> mine{};
    whole.seconds.push_back(timed(comm, [&] {
      trace.begin();
      model.run(step, [](int64_t, const float*) {});
      mine = trace.end();
    }));
    std::vector<double> all(mine.size() * static_cast<size_t>(comm.size()));
    comm.all_gather(mine.data(), static_cast<int64_t>(sizeof mine), all.data());
    for (size_t kind = 0; kind < mine.size(); ++kind) {
      for (size_t rank = 0; rank < static_cast<size_t>(comm.size()); ++rank)
        mine[kind] = std::max(mine[kind], all[rank * mine.size() + kind]);
      rows[kind].seconds.push_back(mine[kind]);
    }
  }
  const double step = whole.median_seconds();
  for (BenchRow& row : rows) row.share = row.median_seconds() / step;
  // What this model has none of.
  rows.erase(std::remove_if(rows.begin(), rows.end(), [](const BenchRow& row) { return row.share == 0; }), rows.end());
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
    // The bandwidth of a device says nothing of what comes over the bus.
    if (device_of(backend) == nullptr) rows[i == 0 ? 0 : 1].read.push_back(meter->read());
    rows[i == 0 ? 0 : 1].seconds.push_back(timed(comm, [&] {
      weights = load_weights(config, backend, source, comm.rank(), comm.size(), nullptr);
      backend.synchronize();
    }));
  }
  return rows;
}

}  // namespace pq
