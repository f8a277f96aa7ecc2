// A thread that ends the job when a rank of this node stops making progress or is gone, with a line that names it. It reads the
// board of base/activity.h; what it cannot see (ranks alone on another node) is left to that node's watchdogs and to the launcher.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

namespace pq {

class Watchdog {
 public:
  // `end_job(code)` ends every rank; it runs on the watchdog's thread, without what needs the main one, and does not return.
  // `one_node`: the board holds every rank of the job.
  Watchdog(double limit_seconds, bool one_node, std::function<void(int code)> end_job);
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
  void on_death(const Peer& peer);
  void report_stall(int place, double limit);

  std::atomic<double> limit_seconds_;
  const bool one_node_;
  const std::function<void(int)> end_job_;
  int wake_ = -1;  // an eventfd
  std::atomic<bool> stop_{false};
  std::vector<Peer> peers_;  // by place on the board
  std::thread thread_;
};

}  // namespace pq
