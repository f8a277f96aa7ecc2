// The MPI communicator of mpi_comm.h.
#include "comm/mpi_comm.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/activity.h"
#include "base/error.h"
#include "comm/shared_window.h"
#include "comm/tree_sum.h"

namespace pq {
namespace {

constexpr int kReduceTag = 1;
constexpr int kGatherTag = 2;
constexpr int kBroadcastTag = 3;
// A received part is added while it is still in the second-level cache.
constexpr int64_t kReducePieceBytes = int64_t{512} << 10;

bool is_power_of_two(int n) { return (n & (n - 1)) == 0; }

class MpiCommunicator : public Communicator {
 public:
  MpiCommunicator(MPI_Comm parent, const MpiOptions& options) : piece_bytes_(std::min(options.piece_bytes, kMpiPieceBytes)) {
    check_mpi(MPI_Comm_dup(parent, &comm_), "MPI_Comm_dup");
    check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
    if (options.window_bytes > 0 && size_ > 1) open_window(options);
  }
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;
  ~MpiCommunicator() override {
    window_.reset();
    int finalised = 0;
    if (MPI_Finalized(&finalised) == MPI_SUCCESS && !finalised) MPI_Comm_free(&comm_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string name() const override {
    if (!window_) return "mpi";
    return nodes_ == 1 ? "mpi, shared window" : "mpi, shared window in each of " + std::to_string(nodes_) + " nodes";
  }

  void all_reduce_sum(float* data, int64_t count) override {
    if (size_ == 1) return;
    const CollectiveScope scope(Collective::all_reduce);
    if (!is_power_of_two(size_)) {
      throw Error(ErrorKind::usage, "sums need a power of two of ranks, not " + std::to_string(size_));
    }
    const int64_t piece_bytes = window_ ? window_->piece_bytes() : std::min(piece_bytes_, kReducePieceBytes);
    const int64_t piece = piece_bytes / static_cast<int64_t>(sizeof(float));
    for (int64_t first = 0; first < count; first += piece) {
      const int64_t length = std::min(piece, count - first);
      if (window_)
        reduce_in_window(data + first, length);
      else
        reduce_between(1, data + first, length);
    }
  }

  void all_gather(const void* data, int64_t bytes, void* out) override {
    const CollectiveScope scope(Collective::all_gather);
    if (shared_by_all()) {
      gather_in_window(data, bytes, out, true);
      return;
    }
    wait_for_rank(kWaitsForAny);
    for (int64_t first = 0; first < bytes; first += piece_bytes_) {
      const int64_t length = std::min(piece_bytes_, bytes - first);
      const char* in = static_cast<const char*>(data) + first;
      char* to = static_cast<char*>(out) + first;
      if (length == bytes) {
        check_mpi(MPI_Allgather(in, static_cast<int>(length), MPI_BYTE, to, static_cast<int>(length), MPI_BYTE, comm_),
                  "MPI_Allgather");
        continue;
      }
      // The pieces of the ranks lie `bytes` apart in `out`.
      MPI_Datatype part = MPI_DATATYPE_NULL;
      MPI_Datatype spaced = MPI_DATATYPE_NULL;
      check_mpi(MPI_Type_contiguous(static_cast<int>(length), MPI_BYTE, &part), "MPI_Type_contiguous");
      check_mpi(MPI_Type_create_resized(part, 0, static_cast<MPI_Aint>(bytes), &spaced), "MPI_Type_create_resized");
      check_mpi(MPI_Type_commit(&spaced), "MPI_Type_commit");
      check_mpi(MPI_Allgather(in, static_cast<int>(length), MPI_BYTE, to, 1, spaced, comm_), "MPI_Allgather");
      check_mpi(MPI_Type_free(&spaced), "MPI_Type_free");
      check_mpi(MPI_Type_free(&part), "MPI_Type_free");
    }
  }

  void gather(const void* data, int64_t bytes, void* out) override {
    const CollectiveScope scope(Collective::gather);
    if (shared_by_all()) {
      gather_in_window(data, bytes, out, false);
      return;
    }
    if (rank_ != 0) {
      for (int64_t first = 0; first < bytes; first += piece_bytes_)
        send(static_cast<const char*>(data) + first, std::min(piece_bytes_, bytes - first), 0, kGatherTag);
      return;
    }
    if (bytes > 0) std::memcpy(out, data, static_cast<size_t>(bytes));
    for (int other = 1; other < size_; ++other) {
      wait_for_rank(other);
      for (int64_t first = 0; first < bytes; first += piece_bytes_) {
        const int length = static_cast<int>(std::min(piece_bytes_, bytes - first));
        check_mpi(MPI_Recv(static_cast<char*>(out) + other * bytes + first, length, MPI_BYTE, other, kGatherTag, comm_,
                           MPI_STATUS_IGNORE),
                  "MPI_Recv");
      }
    }
  }

  void broadcast(void* data, int64_t bytes) override {
    const CollectiveScope scope(Collective::broadcast);
    const int64_t piece_bytes = shared_by_all() ? window_->piece_bytes() : piece_bytes_;
    for (int64_t first = 0; first < bytes; first += piece_bytes) {
      char* piece = static_cast<char*>(data) + first;
      const int64_t length = std::min(piece_bytes, bytes - first);
      if (shared_by_all()) {
        broadcast_in_window(piece, length);
      } else if (rank_ == 0) {
        for (int other = 1; other < size_; ++other) send(piece, length, other, kBroadcastTag);
      } else {
        receive_without_spinning(piece, length);
      }
    }
  }

  void barrier() override {
    const CollectiveScope scope(Collective::barrier);
    if (!shared_by_all()) {
      wait_for_rank(kWaitsForAny);
      check_mpi(MPI_Barrier(comm_), "MPI_Barrier");
      return;
    }
    window_->begin_piece();
    window_->publish();
    window_->wait_all();
  }

 private:
  void open_window(const MpiOptions& options) {
    MPI_Comm machine = MPI_COMM_NULL;
    MPI_Comm node = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &machine), "MPI_Comm_split_type");
    check_mpi(MPI_Comm_split(machine, options.node, rank_, &node), "MPI_Comm_split");
    check_mpi(MPI_Comm_free(&machine), "MPI_Comm_free");
    // The tree of a node must be a part of the tree over all ranks.
    int place = 0, ranks = 1;
    check_mpi(MPI_Comm_rank(node, &place), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(node, &ranks), "MPI_Comm_size");
    const std::array<int, 2> mine{ranks, rank_ - place};
    std::vector<std::array<int, 2>> all(static_cast<size_t>(size_));
    check_mpi(MPI_Allgather(mine.data(), 2, MPI_INT, all.data(), 2, MPI_INT, comm_), "MPI_Allgather");
    bool fits = ranks > 1 && ranks <= kMaxTreeInputs;
    for (int other = 0; other < size_; ++other) {
      fits = fits && all[static_cast<size_t>(other)] == std::array<int, 2>{ranks, other / ranks * ranks};
    }
    if (!fits) {
      check_mpi(MPI_Comm_free(&node), "MPI_Comm_free");
      return;
    }
    nodes_ = size_ / ranks;
    window_ = SharedWindow::try_make(node, options.window_bytes, [this, first = rank_ - place](int other) {
      wait_for_rank(first + other);
      make_progress();
    });
    int opened = window_ ? 1 : 0, everywhere = 0;
    check_mpi(MPI_Allreduce(&opened, &everywhere, 1, MPI_INT, MPI_MIN, comm_), "MPI_Allreduce");
    if (everywhere == 0) window_.reset();
  }

  // Whether one window reaches every rank.
  bool shared_by_all() const { return window_ && nodes_ == 1; }

  // While this rank waits in shared memory, a message it has sent may still need its help to leave.
  void make_progress() {
    if (nodes_ == 1) return;
    int found = 0;
    check_mpi(MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, comm_, &found, MPI_STATUS_IGNORE), "MPI_Iprobe");
  }

  void send(const char* data, int64_t bytes, int to, int tag) {
    wait_for_rank(to);
    check_mpi(MPI_Send(data, static_cast<int>(bytes), MPI_BYTE, to, tag, comm_), "MPI_Send");
  }

  // A blocking receive burns a core. Between two steps the next message is microseconds away, so pauses start short and are never
  // longer than the time already waited.
  void receive_without_spinning(char* data, int64_t bytes) {
    constexpr int kEagerProbes = 64;
    constexpr int kLongestPauseUs = 1000;
    MPI_Message found = MPI_MESSAGE_NULL;
    int pause_us = 1;
    wait_for_rank(0);
    for (int probe = 0;; ++probe) {
      int ready = 0;
      check_mpi(MPI_Improbe(0, kBroadcastTag, comm_, &ready, &found, MPI_STATUS_IGNORE), "MPI_Improbe");
      if (ready) break;
      if (probe < kEagerProbes) {
        sched_yield();
      } else {
        usleep(static_cast<useconds_t>(pause_us));
        pause_us = std::min(2 * pause_us, kLongestPauseUs);
      }
    }
    check_mpi(MPI_Mrecv(data, static_cast<int>(bytes), MPI_BYTE, &found, MPI_STATUS_IGNORE), "MPI_Mrecv");
  }

  // Partners at distance `nearest`, 2 * nearest, ... exchange partial sums; both add the lower ranks' to the upper ranks', so both
  // hold the same bits and after the last step every rank holds the root of one tree.
  void reduce_between(int nearest, float* data, int64_t count) {
    const int length = static_cast<int>(count);
    received_.resize(std::max(received_.size(), static_cast<size_t>(count)));
    for (int distance = nearest; distance < size_; distance *= 2) {
      const int partner = rank_ ^ distance;
      wait_for_rank(partner);
      check_mpi(MPI_Sendrecv(data, length, MPI_FLOAT, partner, kReduceTag, received_.data(), length, MPI_FLOAT, partner, kReduceTag,
                             comm_, MPI_STATUS_IGNORE),
                "MPI_Sendrecv");
      float* values[2] = {data, received_.data()};
      if (partner < rank_) std::swap(values[0], values[1]);
      tree_sum(values, 2, 0, count);
    }
  }

  // Elements [first, end) of `count` that rank `place` of the node adds: whole cache lines.
  std::array<int64_t, 2> share(int64_t count, int place) const {
    const auto bound = [&](int64_t p) {
      return p == window_->size() ? count : count * p / window_->size() / kLineFloats * kLineFloats;
    };
    return {bound(place), bound(place + 1)};
  }

  // Every rank shows the others its values of their shares, each adds its share and puts the sums where it found the values.
  void reduce_in_window(float* data, int64_t count) {
    const int ranks = window_->size(), place = window_->rank();
    float* own = reinterpret_cast<float*>(window_->begin_piece());
    const auto [first, end] = share(count, place);
    std::memcpy(own, data, static_cast<size_t>(first) * sizeof(float));
    std::memcpy(own + end, data + end, static_cast<size_t>(count - end) * sizeof(float));
    window_->publish();
    float* values[kMaxTreeInputs];
    for (int other = 0; other < ranks; ++other)
      values[other] = other == place ? data : reinterpret_cast<float*>(window_->area(other));
    window_->wait_all();
    tree_sum(values, ranks, first, end);
    if (nodes_ > 1) {
      reduce_between(ranks, data + first, end - first);
      for (int other = 0; other < ranks; ++other) {
        if (other != place) std::memcpy(values[other] + first, data + first, static_cast<size_t>(end - first) * sizeof(float));
      }
    }
    window_->publish();
    for (int step = 1; step < ranks; ++step) {
      const int other = (place + step) % ranks;
      const auto [from, to] = share(count, other);
      window_->wait(other);
      take_over(own + from, to - from, data + from);
    }
    window_->settle();
  }

  void gather_in_window(const void* data, int64_t bytes, void* out, bool everywhere) {
    const bool reads = everywhere || rank_ == 0;
    if (reads && bytes > 0) std::memcpy(static_cast<char*>(out) + rank_ * bytes, data, static_cast<size_t>(bytes));
    for (int64_t first = 0; first < bytes; first += window_->piece_bytes()) {
      const auto length = static_cast<size_t>(std::min(window_->piece_bytes(), bytes - first));
      std::byte* own = window_->begin_piece();
      if (everywhere || rank_ != 0) std::memcpy(own, static_cast<const char*>(data) + first, length);
      window_->publish();
      for (int other = 0; reads && other < size_; ++other) {
        if (other == rank_) continue;
        window_->wait(other);
        std::memcpy(static_cast<char*>(out) + other * bytes + first, window_->area(other), length);
      }
    }
  }

  void broadcast_in_window(char* data, int64_t bytes) {
    std::byte* own = window_->begin_piece();
    if (rank_ == 0) std::memcpy(own, data, static_cast<size_t>(bytes));
    window_->publish();
    if (rank_ == 0) return;
    window_->wait(0);
    std::memcpy(data, window_->area(0), static_cast<size_t>(bytes));
  }

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
  int nodes_ = 0;
  const int64_t piece_bytes_;
  std::vector<float> received_;
  std::unique_ptr<SharedWindow> window_;
};

}  // namespace

void check_mpi(int result, const char* call) {
  if (result == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(result, text, &length);
  throw Error(ErrorKind::peer, std::string(call) + ": " + text);
}

std::unique_ptr<Communicator> make_mpi_communicator(MPI_Comm parent, const MpiOptions& options) {
  return std::make_unique<MpiCommunicator>(parent, options);
}

}  // namespace pq
