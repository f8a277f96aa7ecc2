// The factory of sums.h.
#include "comm/nccl_comm.h"
#include "kernels/cuda/push_sum.h"
#include "kernels/cuda/sums.h"

namespace pq::cuda {
namespace {

// Watches for the backend as long as it lives.
class WatchedSum : public DeviceSum {
 public:
  WatchedSum(CudaBackend& backend, std::unique_ptr<DeviceSum> sum, double time_limit_seconds)
      : backend_(backend), sum_(std::move(sum)) {
    backend_.watch([this, time_limit_seconds](double waited) {
      sum_->check();
      // Sums of our own have a limit themselves; the margin lets them speak first.
      if (waited < time_limit_seconds + 5) return;
      sum_->abort();
      throw Error(ErrorKind::peer, "a sum over ranks (" + sum_->name() + ") did not end within " +
                                       std::to_string(static_cast<int64_t>(waited)) + " s: another rank did not arrive");
    });
  }
  WatchedSum(const WatchedSum&) = delete;
  WatchedSum& operator=(const WatchedSum&) = delete;
  ~WatchedSum() override { backend_.watch({}); }
  std::string name() const override { return sum_->name(); }
  void all_reduce_sum(float* data, int64_t count) override { sum_->all_reduce_sum(data, count); }
  bool try_sum_and_norm(const RmsNormArgs& args) override { return sum_->try_sum_and_norm(args); }
  void check() override { sum_->check(); }
  void abort() override { sum_->abort(); }

 private:
  CudaBackend& backend_;
  std::unique_ptr<DeviceSum> sum_;
};

std::unique_ptr<DeviceSum> make_unwatched(CudaBackend& backend, const std::string& method, const RankExchange& exchange,
                                          double time_limit_seconds) {
  const auto limit_ns = static_cast<uint64_t>(1e9 * time_limit_seconds);
  if (method == "p2p") return make_push_sum(backend, PushMemory::peer, exchange, limit_ns);
  if (method == "host") return make_push_sum(backend, PushMemory::host, exchange, limit_ns);
  require(method == "nccl", "a sum over ranks of an unknown name");
  return make_nccl_sum({.stream = backend.stream(),
                        .allocate = [&backend](int64_t bytes) { return backend.allocate(bytes); },
                        .add_ranks = [&backend](float* y, const float* parts, int ranks,
                                                int64_t count) { launch_unit_tree(y, parts, ranks, count, backend.stream()); },
                        .forget_graphs = [&backend] { return backend.forget_graphs(); }},
                       exchange, time_limit_seconds);
}

}  // namespace

std::unique_ptr<DeviceSum> make_sum(CudaBackend& backend, const std::string& method, const RankExchange& exchange,
                                    double time_limit_seconds) {
  return std::make_unique<WatchedSum>(backend, make_unwatched(backend, method, exchange, time_limit_seconds), time_limit_seconds);
}

}  // namespace pq::cuda
