// A thread that ends the job when a rank stops making progress or is gone, with a line that names it. It reads the board of
// base/activity.h and, on rank 0, what ranks of other nodes say of themselves (comm/node_links.h); these watch their own node and
// rank 0.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "comm/node_links.h"

namespace pq {

class Watchdog {
 public:
  // `end_job(code)` ends every rank; it runs on the watchdog's thread, without what needs the main one, and does not return.
  // `links`: may be null. `sees_all`: the board and the links hold every rank of the job.
  Watchdog(double limit_seconds, bool sees_all, std::unique_ptr<NodeLinks> links, std::function<void(int code)> end_job);
  // Stops the thread.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // 0: stalls are never reported, dead ranks still are.
  void set_limit(double seconds);

 private:
  struct Peer;
  void run();
  void watch_peers();
  void look_for_stalls();
  double tick() const;
  bool linked() const { return links_ != nullptr && !links_->links().empty(); }
  void on_death(const Peer& peer);
  void report_stall(const Peer& peer);

  std::atomic<double> limit_seconds_;
  const bool sees_all_;
  const std::unique_ptr<NodeLinks> links_;
  const std::function<void(int)> end_job_;
  int wake_ = -1;  // an eventfd
  std::atomic<bool> stop_{false};
  std::vector<Peer> peers_;  // by place on the board, then those of the links
  std::thread thread_;
};

}  // namespace pq
