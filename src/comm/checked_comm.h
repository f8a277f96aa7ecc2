// A communicator that compares what the ranks are about to do before they do it, so that ranks that have diverged end with an error
// and not in a hang or with wrong sums. Costs one more exchange a call; --check-collectives puts it around the one of a session.
#pragma once

#include <memory>

#include "comm/communicator.h"

namespace pq {

// Before each operation every rank tells the others the operation, the count (elements or bytes) and how many came before it. Ranks
// that differ throw ErrorKind::internal that names both calls, all of them at the same call. close() is an operation too.
class CheckedCommunicator : public Communicator {
 public:
  explicit CheckedCommunicator(std::unique_ptr<Communicator> inner);
  int rank() const override;
  int size() const override;
  std::string name() const override;
  void all_reduce_sum(float* data, int64_t count) override;
  void announce_sum(int64_t count) override;
  void all_gather(const void* data, int64_t bytes, void* out) override;
  void gather(const void* data, int64_t bytes, void* out) override;
  void broadcast(void* data, int64_t bytes) override;
  void barrier() override;
  // The last operation of a rank that ends in order.
  void close();

 private:
  void compare(int operation, int64_t count);

  std::unique_ptr<Communicator> inner_;
  int64_t sequence_ = 0;
};

}  // namespace pq
