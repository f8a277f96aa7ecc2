// Timed loops of bench.h. Every repetition starts after a barrier and counts the slowest rank, because a step ends when all ranks
// have.
#include "eval/bench.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <numeric>
#include <set>

#include "base/error.h"
#include "base/random.h"
#include "eval/roofs.h"

namespace pq {
namespace {

constexpr int64_t kRoofBytes = int64_t{1} << 29;

double timed(Communicator& comm, const std::function<void()>& work) {
  comm.barrier();
  const auto start = std::chrono::steady_clock::now();
  work();
  const double mine = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::vector<double> all(static_cast<size_t>(comm.size()));
  comm.all_gather(&mine, sizeof mine, all.data());
  return *std::max_element(all.begin(), all.end());
}

template <typename T>
T sum_over_ranks(Communicator& comm, T value) {
  std::vector<T> all(static_cast<size_t>(comm.size()));
  comm.all_gather(&value, sizeof value, all.data());
  return std::accumulate(all.begin(), all.end(), T{});
}

// The prompt in steps of at most the batch; logits of the last token only.
void run_prompt(Transformer& model, int64_t tokens, Random* random) {
  for (int64_t done = 0; done < tokens;) {
    const int64_t count = std::min(model.options().batch, tokens - done);
    Step step;
    for (int64_t i = 0; i < count; ++i) step.tokens.push_back(static_cast<int32_t>(random->below(model.config().vocab)));
    step.spans.push_back({0, count, done, 0});
    done += count;
    if (done == tokens) step.logit_rows.push_back(static_cast<int32_t>(count - 1));
    model.run(step, [](int64_t, const float*) {});
  }
}

}  // namespace

double BenchRow::median_seconds() const {
  std::vector<double> sorted = seconds;
  std::sort(sorted.begin(), sorted.end());
  const size_t middle = sorted.size() / 2;
  return sorted.size() % 2 == 1 ? sorted[middle] : 0.5 * (sorted[middle - 1] + sorted[middle]);
}

Roofs measure_roofs(Communicator& comm) {
  Roofs roofs;
  comm.barrier();
  roofs.read_bytes_per_second = sum_over_ranks(comm, measure_read_bandwidth(kRoofBytes, 5));
  comm.barrier();
  const DotRate rate = measure_dot_rate();
  roofs.macs_per_second = sum_over_ranks(comm, rate.macs_per_second);
  roofs.dot_instruction = rate.instruction;
  return roofs;
}

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

BenchRow bench_decode(Transformer& model, Communicator& comm, int64_t depth, int64_t steps, TokenCost cost) {
  Random random(1);
  BenchRow row;
  row.name = fmt::format("decode at depth {}", depth);
  row.tokens = 1;
  row.bytes = sum_over_ranks(comm, cost.bytes);
  row.macs = sum_over_ranks(comm, cost.macs);
  run_prompt(model, std::max<int64_t>(depth, 1), &random);
  for (int64_t i = 0; i < steps; ++i) {
    Step step;
    step.tokens = {static_cast<int32_t>(random.below(model.config().vocab))};
    step.spans = {{0, 1, std::max<int64_t>(depth, 1) + i, 0}};
    step.logit_rows = {0};
    row.seconds.push_back(timed(comm, [&] { model.run(step, [](int64_t, const float*) {}); }));
  }
  return row;
}

BenchRow bench_prefill(Transformer& model, Communicator& comm, int64_t tokens, int64_t repetitions, TokenCost cost) {
  BenchRow row;
  row.name = fmt::format("prefill {}", tokens);
  row.tokens = tokens;
  row.macs = sum_over_ranks(comm, cost.macs) * tokens;
  for (int64_t i = 0; i < repetitions; ++i) {
    Random random(static_cast<uint64_t>(i));
    row.seconds.push_back(timed(comm, [&] { run_prompt(model, tokens, &random); }));
  }
  return row;
}

std::vector<BenchRow> bench_kernels(const ModelConfig& config, WeightSource& source, Backend& backend, Communicator& comm,
                                    ActivationMode mode, int64_t working_set_bytes, int64_t repetitions) {
  std::vector<BenchRow> rows;
  std::set<std::pair<int64_t, int64_t>> seen;
  for (const TensorSpec& spec : tensor_specs(config)) {
    if (!spec.matrix) continue;
    const PieceRange owned = owned_pieces(spec, comm.rank(), comm.size());
    const WeightInfo info = source.info(spec);
    Matrix m;
    m.format = info.format;
    m.codebook = info.codebook;
    m.units = spec.split == Split::cols ? owned.count : 1;
    m.rows = spec.split == Split::rows ? spec.rows / spec.pieces * owned.count : spec.rows;
    m.cols = spec.split == Split::cols ? spec.cols / spec.pieces * owned.count : spec.cols;
    if (!seen.insert({m.rows, m.cols}).second) continue;
    const int64_t bytes = m.data_bytes() + m.scale_bytes();
    const int64_t copies = std::max<int64_t>(1, working_set_bytes / bytes);
    std::vector<Buffer> buffers;
    for (int64_t i = 0; i < copies; ++i) {
      buffers.push_back(backend.allocate(bytes + 256));
      auto* scales = reinterpret_cast<uint16_t*>(buffers.back().as<std::byte>() + (m.data_bytes() + 255) / 256 * 256);
      source.load(spec, owned.first, owned.count, buffers.back().data(), m.format == WeightFormat::polar ? scales : nullptr,
                  nullptr);
    }
    for (const int64_t tokens : {1, 2, 4, 8, 128}) {
      const Buffer x = backend.allocate(4 * tokens * m.cols);
      const Buffer y = backend.allocate(4 * tokens * m.rows);
      const Buffer codes = backend.allocate(tokens * m.cols);
      const Buffer scales = backend.allocate(4 * tokens * m.cols / kBlock);
      Random random(2);
      std::vector<float> values(static_cast<size_t>(tokens * m.cols));
      for (float& v : values) v = static_cast<float>(random.normal());
      backend.upload(x.data(), values.data(), 4 * tokens * m.cols);
      Activation a{.mode = mode, .tokens = tokens, .dim = m.cols, .raw = x.as<float>(), .rotated = x.as<float>()};
      if (m.format == WeightFormat::polar && mode == ActivationMode::int8) {
        backend.prepare({.x = x.as<float>(),
                         .tokens = tokens,
                         .dim = m.cols,
                         .prepared = {.mode = mode, .rotated = nullptr, .codes = codes.as<int8_t>(), .scales = scales.as<float>()}});
        a.codes = codes.as<int8_t>();
        a.scales = scales.as<float>();
      }
      BenchRow row;
      row.name = fmt::format("{} {}x{}, {} tokens a pass", spec.tensor_class, m.rows, m.cols, tokens);
      row.bytes = sum_over_ranks(comm, bytes);
      row.macs = sum_over_ranks(comm, m.rows * m.cols * tokens);
      for (int64_t i = -1; i < repetitions; ++i) {
        const auto* base = buffers[static_cast<size_t>((i + copies) % copies)].as<std::byte>();
        m.data = base;
        m.scales = m.format == WeightFormat::polar ? reinterpret_cast<const uint16_t*>(base + (m.data_bytes() + 255) / 256 * 256)
                                                   : nullptr;
        const double seconds = timed(comm, [&] {
          backend.linear({.y = y.as<float>(), .x = a, .w = m});
          backend.synchronize();
        });
        if (i >= 0) row.seconds.push_back(seconds);
      }
      rows.push_back(row);
    }
  }
  return rows;
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

int64_t peak_rss_bytes() {
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * int64_t{1024};
}

}  // namespace pq
