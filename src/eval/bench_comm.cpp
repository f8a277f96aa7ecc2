// Sums over ranks, timed: in host memory, and in device memory by each way there is.
#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <iterator>
#include <memory>

#include "base/error.h"
#include "eval/bench.h"
#include "eval/bench_timing.h"

namespace pq {
namespace {

constexpr double kLimitSeconds = 30;

// One repetition is a train of calls: a single one is shorter than the barrier around it.
int64_t calls_of(int64_t rows) { return std::max<int64_t>(4, 100 / rows); }

// Values of the device pass through the host and its communicator.
class SumThroughHost : public DeviceSum {
 public:
  SumThroughHost(Backend& backend, Communicator& comm) : backend_(backend), comm_(comm) {}
  std::string name() const override { return "mpi"; }
  void all_reduce_sum(float* data, int64_t count) override {
    values_.resize(static_cast<size_t>(count));
    backend_.download(values_.data(), data, 4 * count);
    comm_.all_reduce_sum(values_.data(), count);
    backend_.upload(data, values_.data(), 4 * count);
  }
  void check() override {}
  void abort() override {}

 private:
  Backend& backend_;
  Communicator& comm_;
  std::vector<float> values_;
};

// The reason why the lowest rank that failed did, or nothing; the same on every rank.
std::string reason_of(Communicator& comm, const std::string& mine) {
  constexpr size_t kBytes = 400;
  std::vector<char> all(kBytes * static_cast<size_t>(comm.size()));
  std::string text = mine.substr(0, kBytes - 1);
  text.resize(kBytes, '\0');
  comm.all_gather(text.data(), static_cast<int64_t>(kBytes), all.data());
  for (size_t at = 0; at < all.size(); at += kBytes) {
    if (all[at] != '\0') return &all[at];
  }
  return {};
}

}  // namespace

std::vector<BenchRow> bench_comm(Communicator& comm, int64_t hidden, int64_t repetitions) {
  std::vector<BenchRow> rows;
  const auto train = [&](BenchRow& row, int64_t calls, const auto& call) {
    const double seconds = timed(comm, [&] {
      for (int64_t i = 0; i < calls; ++i) call();
    });
    row.seconds.push_back(seconds / static_cast<double>(calls));
  };
  // What it takes to hear of one another, which a sum in the memory of a node does twice.
  rows.emplace_back().name = "barrier";
  for (int64_t i = 0; i < repetitions; ++i) train(rows.back(), calls_of(1), [&] { comm.barrier(); });
  for (const int64_t count : {hidden, 256 * hidden}) {
    std::vector<float> data(static_cast<size_t>(count), 1.0f);
    BenchRow row;
    row.name = fmt::format("all_reduce {} fp32", count);
    for (int64_t i = 0; i < repetitions; ++i) {
      train(row, calls_of(count / hidden), [&] { comm.all_reduce_sum(data.data(), count); });
      std::fill(data.begin(), data.end(), 1.0f);
    }
    rows.push_back(row);
  }
  return rows;
}

std::vector<BenchRow> bench_device_comm(Backend& backend, Communicator& comm, const std::string& requested, const MakeSum& make,
                                        int64_t hidden, int64_t repetitions, std::vector<std::string>* remarks) {
  std::vector<BenchRow> rows;
  DeviceMeasure* device = device_of(backend);
  if (comm.size() == 1) {
    remarks->push_back("one rank has nothing to add: start it with mpirun -np 2");
    return rows;
  }
  constexpr int64_t kRows[] = {1, 4, 16, 64, 256};
  const int64_t most = kRows[std::size(kRows) - 1];
  const Buffer data = backend.allocate(4 * most * hidden), stream = backend.allocate(4 * most * hidden);
  const Buffer normed = backend.allocate(4 * most * hidden), weight = backend.allocate(4 * hidden);
  const bool whole = hidden % kBlock == 0;
  const Buffer codes = backend.allocate(most * hidden), scales = backend.allocate(4 * most * (hidden / kBlock + 1));
  for (const std::string method : kSumMethods) {
    if (requested != "auto" && requested != method) continue;
    std::unique_ptr<DeviceSum> sum;
    std::string problem;
    try {
      sum = method == "mpi" ? std::make_unique<SumThroughHost>(backend, comm) : make(method, kLimitSeconds);
    } catch (const Error& error) {
      problem = error.what();
    }
    problem = reason_of(comm, problem);
    if (!problem.empty()) {
      remarks->push_back(fmt::format("no sums by {}: {}", method, problem));
      continue;
    }
    for (const int64_t count : kRows) {
      BenchRow row;
      row.name = fmt::format("all_reduce {} fp32 by {}", count * hidden, method);
      const int64_t calls = calls_of(count);
      const auto train = [&](int64_t n) {
        for (int64_t call = 0; call < n; ++call) sum->all_reduce_sum(data.as<float>(), count * hidden);
      };
      train(2);
      for (int64_t i = 0; i < repetitions; ++i)
        row.seconds.push_back(timed_on(device, comm, [&] { train(calls); }) / static_cast<double>(calls));
      rows.push_back(row);
    }
    for (const int64_t count : kRows) {
      RmsNormArgs args{.y = normed.as<float>(),
                       .x = stream.as<float>(),
                       .weight = weight.as<float>(),
                       .rows = count,
                       .dim = hidden,
                       .eps = 1e-6f,
                       .weight_offset = 1.0f,
                       .added = data.as<float>(),
                       .sum = stream.as<float>()};
      if (whole) args.prepared = {.mode = ActivationMode::int8, .codes = codes.as<int8_t>(), .scales = scales.as<float>()};
      if (!sum->try_sum_and_norm(args)) continue;
      BenchRow row;
      row.name = fmt::format("sum and norm of {} fp32 by {}", count * hidden, method);
      const int64_t calls = calls_of(count);
      for (int64_t i = 0; i < repetitions; ++i) {
        row.seconds.push_back(timed_on(device, comm,
                                       [&] {
                                         for (int64_t call = 0; call < calls; ++call) sum->try_sum_and_norm(args);
                                       }) /
                              static_cast<double>(calls));
      }
      rows.push_back(row);
    }
  }
  return rows;
}

}  // namespace pq
