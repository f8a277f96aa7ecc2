// Connections between rank 0 and the ranks that do not share its board (base/activity.h), by which each side hears what the other
// is doing, and at once when its process has ended. Who is late or dead is judged by comm/watchdog.h.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "base/activity.h"

namespace pq {

// The other end of a connection.
struct NodeLink {
  int fd = -1;  // -1: lost, without a word of its process
  int rank = 0;
  std::string host;
  RankRecord record;  // as last heard; process is 0
  std::chrono::steady_clock::time_point heard = std::chrono::steady_clock::now();
  bool ended = false;  // the other process has closed it

  // Messages under way.
  RankNews in{};
  size_t received = 0;  // bytes of `in`
  RankNews out{};
  size_t unsent = 0;  // last bytes of `out`
};

class NodeLinks {
 public:
  // Collective over MPI_COMM_WORLD, on the main thread; makes no connection when all ranks share the board of rank 0. TCP over
  // IPv4, to whichever address of rank 0's machine answers, within seconds; both ends prove themselves by a number that rank 0 has
  // sent through MPI. Ranks that cannot be reached are left out (missing()). PQ_NODES=unlinked in rank 0's environment: none is
  // tried.
  explicit NodeLinks(bool shares_board_of_rank_0);
  // Tells the other ends how this rank stands, and closes.
  ~NodeLinks();
  NodeLinks(const NodeLinks&) = delete;
  NodeLinks& operator=(const NodeLinks&) = delete;

  // On rank 0 one for each rank that is apart, in order; on these one, to rank 0.
  const std::vector<std::unique_ptr<NodeLink>>& links() const { return links_; }
  // Ranks apart without a connection; on rank 0.
  const std::vector<int>& missing() const { return missing_; }

  // Whether this rank is the one to say that the other end of a link is gone or silent: rank 0, or when it is rank 0 itself the
  // lowest of the others, where rank 0 has no neighbours to say it.
  bool speaks_first() const { return speaks_first_; }

  // For one thread. Own news to all; never waits.
  void send();
  // What has come; also notes on this rank's board that the job ends, or is to stop.
  void receive();

 private:
  void accept_all(int listener, uint64_t token, const std::vector<int>& apart, const std::vector<char>& hosts);
  void receive(NodeLink& link);
  void publish() const;

  std::vector<std::unique_ptr<NodeLink>> links_;
  std::vector<int> missing_;
  bool speaks_first_ = true;
};

}  // namespace pq
