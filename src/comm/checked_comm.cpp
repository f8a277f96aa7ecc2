// The comparison of checked_comm.h.
#include "comm/checked_comm.h"

#include <fmt/format.h>

#include <utility>
#include <vector>

#include "base/activity.h"
#include "base/error.h"

namespace pq {
namespace {

struct Call {
  int64_t operation;  // a Collective
  int64_t count;
  int64_t sequence;
  uint64_t activity;
};

std::string text(const Call& call, int64_t rank) {
  LineBuffer where;
  where << unpack_activity(call.activity);
  return fmt::format("rank {} calls {} of {} as its collective {} in {}", rank,
                     collective_name(static_cast<Collective>(call.operation)), call.count, call.sequence,
                     std::string(where.data(), where.size()));
}

}  // namespace

CheckedCommunicator::CheckedCommunicator(std::unique_ptr<Communicator> inner) : inner_(std::move(inner)) {}

int CheckedCommunicator::rank() const { return inner_->rank(); }
int CheckedCommunicator::size() const { return inner_->size(); }
std::string CheckedCommunicator::name() const { return inner_->name() + ", checked"; }

void CheckedCommunicator::compare(int operation, int64_t count) {
  const Call mine{operation, count, ++sequence_, own_record().activity.load(std::memory_order_relaxed)};
  std::vector<Call> all(static_cast<size_t>(size()));
  inner_->all_gather(&mine, sizeof mine, all.data());
  for (int other = 1; other < size(); ++other) {
    const Call& first = all[0];
    const Call& call = all[static_cast<size_t>(other)];
    if (call.operation == first.operation && call.count == first.count && call.sequence == first.sequence) continue;
    throw Error(ErrorKind::internal, "ranks have diverged: " + text(first, 0) + ", but " + text(call, other));
  }
}

void CheckedCommunicator::all_reduce_sum(float* data, int64_t count) {
  announce_sum(count);
  inner_->all_reduce_sum(data, count);
}

void CheckedCommunicator::announce_sum(int64_t count) { compare(static_cast<int>(Collective::all_reduce), count); }

void CheckedCommunicator::all_gather(const void* data, int64_t bytes, void* out) {
  compare(static_cast<int>(Collective::all_gather), bytes);
  inner_->all_gather(data, bytes, out);
}

void CheckedCommunicator::gather(const void* data, int64_t bytes, void* out) {
  compare(static_cast<int>(Collective::gather), bytes);
  inner_->gather(data, bytes, out);
}

void CheckedCommunicator::broadcast(void* data, int64_t bytes) {
  compare(static_cast<int>(Collective::broadcast), bytes);
  inner_->broadcast(data, bytes);
}

void CheckedCommunicator::barrier() {
  compare(static_cast<int>(Collective::barrier), 0);
  inner_->barrier();
}

void CheckedCommunicator::close() { compare(static_cast<int>(Collective::finalize), 0); }

}  // namespace pq
