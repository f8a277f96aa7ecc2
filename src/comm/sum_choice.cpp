// The choice and the trials of sum_choice.h.
#include "comm/sum_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <iterator>

#include "base/activity.h"
#include "base/error.h"

namespace pq {
namespace {

constexpr double kProbeLimitSeconds = 5;
constexpr double kAsGood = 1.05;
constexpr int kTimedSums = 50;
constexpr int kRounds = 4;

// Small integers: their sums over up to 64 ranks are exact, whatever the order.
float probe_value(int rank, int round, int64_t i) { return static_cast<float>((i * 7 + round * 131 + rank * 1009) % 4093 - 2046); }

class Prober {
 public:
  Prober(Backend& backend, Communicator& comm, int64_t residual, const MakeSum& make)
      : backend_(backend), comm_(comm), residual_(residual), make_(make) {}

  SumProbe run(const std::string& method) {
    SumProbe probe;
    probe.method = method;
    std::unique_ptr<DeviceSum> sum;
    if (method != "mpi") {
      probe.problem = agreed([&] { sum = make_(method, kProbeLimitSeconds); });
      if (!probe.problem.empty()) return probe;
    }
    int64_t wrong_sums = 0, wrong_norms = 0;
    probe.problem = agreed([&] { wrong_sums = check(sum.get(), &probe.checked_sums); });
    if (!probe.problem.empty()) return probe;
    probe.problem = agreed([&] { wrong_norms = sum ? check_norms(*sum, &probe.checked_norms) : 0; });
    if (!probe.problem.empty()) return probe;
    double us = 0;
    probe.problem = agreed([&] { us = time(sum.get()); });
    for (const int64_t other : gathered(wrong_sums)) probe.wrong_sums = std::max(probe.wrong_sums, other);
    for (const int64_t other : gathered(wrong_norms)) probe.wrong_norms = std::max(probe.wrong_norms, other);
    for (const double other : gathered(us)) probe.us = std::max(probe.us, other);
    return probe;
  }

 private:
  template <typename T>
  std::vector<T> gathered(const T& mine) {
    std::vector<T> all(static_cast<size_t>(comm_.size()));
    comm_.all_gather(&mine, sizeof mine, all.data());
    return all;
  }

  // Runs `work` everywhere; the reason of the lowest rank that failed, or nothing.
  template <typename Work>
  std::string agreed(const Work& work) {
    struct Reason {
      char text[400];
    };
    Reason mine{};
    try {
      work();
    } catch (const Error& error) {
      std::strncpy(mine.text, error.what(), sizeof mine.text - 1);
    }
    for (const Reason& reason : gathered(mine)) {
      if (reason.text[0] != '\0') return reason.text;
    }
    return {};
  }

  void add(DeviceSum* sum, float* data, int64_t count) {
    if (sum != nullptr) return sum->all_reduce_sum(data, count);
    staging_.resize(static_cast<size_t>(count));
    backend_.download(staging_.data(), data, 4 * count);
    comm_.all_reduce_sum(staging_.data(), count);
    backend_.upload(data, staging_.data(), 4 * count);
  }

  int64_t check(DeviceSum* sum, int64_t* checked) {
    int64_t wrong = 0;
    const int64_t sizes[] = {1, residual_, residual_ + 1, 16 * residual_ + 3};
    const Buffer buffer = backend_.allocate(4 * sizes[3]);
    std::vector<float> values(static_cast<size_t>(sizes[3]));
    for (int round = 0; round < kRounds; ++round) {
      for (const int64_t count : sizes) {
        for (int64_t i = 0; i < count; ++i) values[static_cast<size_t>(i)] = probe_value(comm_.rank(), round, i);
        backend_.upload(buffer.data(), values.data(), 4 * count);
        add(sum, buffer.as<float>(), count);
        backend_.download(values.data(), buffer.data(), 4 * count);
        bool right = true;
        for (int64_t i = 0; i < count && right; ++i) right = values[static_cast<size_t>(i)] == known_sum(round, i);
        wrong += right ? 0 : 1;
        ++*checked;
      }
    }
    return wrong;
  }

  float known_sum(int round, int64_t i) const {
    float sum = 0.0f;
    for (int rank = 0; rank < comm_.size(); ++rank) sum += probe_value(rank, round, i);
    return sum;
  }

  // As the model calls it: the norm of the residual stream, which the sum joins, and its coded form, in the two modes by turns.
  int64_t check_norms(DeviceSum& sum, int64_t* checked) {
    constexpr int64_t kRows[] = {1, 4, 12}, kMostRows = 12;
    const int64_t most = kMostRows * residual_;
    const Buffer part = backend_.allocate(4 * most), stream = backend_.allocate(4 * most),
                 weight = backend_.allocate(4 * residual_);
    // The norm, its coded form, and the scales of that.
    const Buffer made = backend_.allocate(12 * most);
    const bool coded = residual_ % kBlock == 0;
    std::vector<float> parts(static_cast<size_t>(most)), sums(parts), others(parts);
    int64_t wrong = 0;
    for (int round = 0; round < kRounds; ++round) {
      for (int64_t i = 0; i < most; ++i) {
        parts[static_cast<size_t>(i)] = probe_value(comm_.rank(), round, i);
        sums[static_cast<size_t>(i)] = known_sum(round, i);
        others[static_cast<size_t>(i)] = probe_value(comm_.size(), round, i) / 64;
      }
      backend_.upload(weight.data(), others.data(), 4 * residual_);
      for (const int64_t rows : kRows) {
        const int64_t count = rows * residual_;
        RmsNormArgs args{.y = made.as<float>(),
                         .x = stream.as<float>(),
                         .weight = weight.as<float>(),
                         .rows = rows,
                         .dim = residual_,
                         .eps = 1e-6f,
                         .weight_offset = 1.0f,
                         .added = part.as<float>(),
                         .sum = stream.as<float>()};
        if (coded && round % 2 == 0) {
          args.prepared = {.mode = ActivationMode::int8,
                           .codes = reinterpret_cast<int8_t*>(made.as<float>() + most),
                           .scales = made.as<float>() + 2 * most};
        } else if (coded) {
          args.prepared = {.mode = ActivationMode::f32, .rotated = made.as<float>() + most};
        }
        const auto place = [&](const std::vector<float>& added) {
          backend_.upload(part.data(), added.data(), 4 * count);
          backend_.upload(stream.data(), others.data(), 4 * count);
          backend_.zero(made.data(), 12 * most);
        };
        const auto results = [&] {
          std::vector<char> bytes(static_cast<size_t>(4 * count + 12 * most));
          backend_.download(bytes.data(), stream.data(), 4 * count);
          backend_.download(bytes.data() + 4 * count, made.data(), 12 * most);
          return bytes;
        };
        place(parts);
        if (!sum.try_sum_and_norm(args)) continue;
        const std::vector<char> fused = results();
        place(sums);
        backend_.rms_norm(args);
        wrong += fused == results() ? 0 : 1;
        ++*checked;
      }
    }
    return wrong;
  }

  double time(DeviceSum* sum) {
    const Buffer buffer = backend_.allocate(4 * residual_);
    for (int i = 0; i < 3; ++i) add(sum, buffer.as<float>(), residual_);
    backend_.synchronize();
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kTimedSums; ++i) add(sum, buffer.as<float>(), residual_);
    backend_.synchronize();
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() / kTimedSums;
  }

  Backend& backend_;
  Communicator& comm_;
  const int64_t residual_;
  const MakeSum& make_;
  std::vector<float> staging_;
};

class DeviceCommunicator : public Communicator {
 public:
  DeviceCommunicator(Communicator& host, DeviceSum& sum) : host_(host), sum_(sum) {}
  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  std::string name() const override { return host_.name() + ", sums by " + sum_.name(); }
  void announce_sum(int64_t count) override { host_.announce_sum(count); }
  void all_reduce_sum(float* data, int64_t count) override {
    announce_sum(count);
    const CollectiveScope scope(Collective::all_reduce);
    wait_for_rank(kWaitsForAny);
    sum_.all_reduce_sum(data, count);
  }
  bool sums_on_device() const override { return true; }
  bool try_sum_and_norm(const RmsNormArgs& args) override {
    announce_sum(args.rows * args.dim);
    const CollectiveScope scope(Collective::all_reduce);
    wait_for_rank(kWaitsForAny);
    return sum_.try_sum_and_norm(args);
  }
  void all_gather(const void* data, int64_t bytes, void* out) override { host_.all_gather(data, bytes, out); }
  void gather(const void* data, int64_t bytes, void* out) override { host_.gather(data, bytes, out); }
  void broadcast(void* data, int64_t bytes) override { host_.broadcast(data, bytes); }
  void barrier() override { host_.barrier(); }

 private:
  Communicator& host_;
  DeviceSum& sum_;
};

void check_name(const std::string& requested) {
  if (requested == "auto" || std::find(std::begin(kSumMethods), std::end(kSumMethods), requested) != std::end(kSumMethods)) return;
  throw Error(ErrorKind::usage,
              "there is no way to add over ranks called '" + requested + "'; ways are auto, nccl, p2p, host and mpi");
}

}  // namespace

SumChoice choose_sum(const std::string& requested, const std::vector<SumProbe>& probes) {
  check_name(requested);
  SumChoice choice;
  const SumProbe* best = nullptr;
  for (const SumProbe& probe : probes) {
    const bool wanted = probe.method == requested;
    if (!probe.problem.empty()) {
      if (wanted)
        throw Error(ErrorKind::environment, fmt::format("--allreduce {}: {}; take --allreduce auto", requested, probe.problem));
      continue;
    }
    if (probe.wrong_sums > 0 || probe.wrong_norms > 0) {
      const std::string what = probe.wrong_sums > 0 ? fmt::format("sums by {} were wrong {} of {} times", probe.method,
                                                                  probe.wrong_sums, probe.checked_sums)
                                                    : fmt::format("sums fused with a norm by {} were wrong {} of {} times",
                                                                  probe.method, probe.wrong_norms, probe.checked_norms);
      if (wanted) throw Error(ErrorKind::environment, fmt::format("--allreduce {}: {}; take --allreduce auto", requested, what));
      choice.remarks.push_back(what + ": not used");
      continue;
    }
    if (wanted || (requested == "auto" && (best == nullptr || probe.us * kAsGood < best->us))) best = &probe;
  }
  if (best == nullptr) throw Error(ErrorKind::environment, "no way to add over ranks gives right sums on these devices");
  choice.method = best->method;
  return choice;
}

std::vector<SumProbe> probe_sums(Backend& backend, Communicator& comm, const std::string& requested, int64_t residual,
                                 const MakeSum& make) {
  check_name(requested);
  Prober prober(backend, comm, residual, make);
  std::vector<SumProbe> probes;
  for (const char* method : kSumMethods) {
    if (requested == "auto" || requested == method) probes.push_back(prober.run(method));
  }
  return probes;
}

std::unique_ptr<Communicator> make_device_communicator(Communicator& host, DeviceSum& sum) {
  return std::make_unique<DeviceCommunicator>(host, sum);
}

}  // namespace pq
