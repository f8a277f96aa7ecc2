// The choice and the trials of sum_choice.h.
#include "comm/sum_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <iterator>

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
    int64_t wrong = 0;
    probe.problem = agreed([&] { wrong = check(sum.get(), &probe.checked_sums); });
    if (!probe.problem.empty()) return probe;
    double us = 0;
    probe.problem = agreed([&] { us = time(sum.get()); });
    for (const int64_t other : gathered(wrong)) probe.wrong_sums = std::max(probe.wrong_sums, other);
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
        for (int64_t i = 0; i < count && right; ++i) {
          float expected = 0.0f;
          for (int rank = 0; rank < comm_.size(); ++rank) expected += probe_value(rank, round, i);
          right = values[static_cast<size_t>(i)] == expected;
        }
        wrong += right ? 0 : 1;
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
  void all_reduce_sum(float* data, int64_t count) override { sum_.all_reduce_sum(data, count); }
  bool sums_on_device() const override { return true; }
  bool try_sum_and_norm(const RmsNormArgs& args) override { return sum_.try_sum_and_norm(args); }
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
    if (probe.wrong_sums > 0) {
      const std::string what =
          fmt::format("sums by {} were wrong {} of {} times", probe.method, probe.wrong_sums, probe.checked_sums);
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
