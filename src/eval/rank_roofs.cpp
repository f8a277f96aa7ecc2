// The limits of a rank (RankRoofs in roofs.h), on the host and on a device.
#include <algorithm>

#include "eval/bench_timing.h"
#include "eval/roofs.h"
#include "kernels/device_measure.h"

namespace pq {
namespace {

class HostRoofs : public RankRoofs {
 public:
  HostRoofs(const std::string& backend, const BackendOptions& options, int64_t bytes)
      : pool_(options.threads, options.pin, options.spin), memory_(bytes, &pool_), products_(backend, &pool_) {}
  int patterns() const override { return memory_.patterns(); }
  std::string pattern_name(int pattern) const override { return memory_.name(pattern); }
  int64_t bytes() const override { return memory_.bytes(); }
  void move(int pattern) override { memory_.read(pattern); }
  std::string instruction() const override { return products_.instruction(); }
  int64_t macs() const override { return products_.macs(); }
  void multiply() override { products_.run(); }

 private:
  ThreadPool pool_;
  ReadRoof memory_;
  DotRoof products_;
};

// One half of the memory is copied to the other: what is read and what is written count.
class DeviceRoofs : public RankRoofs {
 public:
  DeviceRoofs(Backend& backend, DeviceMeasure& device, int64_t bytes)
      : device_(device),
        half_(std::max<int64_t>(16, bytes / 32 * 16)),
        rounds_(std::clamp<int64_t>(bytes >> 16, 1, 8192)),
        from_(backend.allocate(half_)),
        to_(backend.allocate(half_)),
        macs_(device.multiply(rounds_)) {}
  int patterns() const override { return 2; }
  std::string pattern_name(int pattern) const override {
    return pattern == 0 ? "copy by the driver, read and written" : "copy by a kernel, read and written";
  }
  int64_t bytes() const override { return 2 * half_; }
  void move(int pattern) override { device_.copy(to_.data(), from_.data(), half_, pattern == 1); }
  std::string instruction() const override { return device_.multiply_name(); }
  int64_t macs() const override { return macs_; }
  void multiply() override { device_.multiply(rounds_); }

 private:
  DeviceMeasure& device_;
  int64_t half_;
  int64_t rounds_;
  Buffer from_;
  Buffer to_;
  int64_t macs_;
};

}  // namespace

std::unique_ptr<RankRoofs> make_rank_roofs(Backend& backend, const BackendOptions& options, int64_t bytes) {
  DeviceMeasure* device = device_of(backend);
  if (device != nullptr) return std::make_unique<DeviceRoofs>(backend, *device, bytes);
  return std::make_unique<HostRoofs>(backend.name(), options, bytes);
}

}  // namespace pq
