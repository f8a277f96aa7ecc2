// The MPI communicator of mpi_comm.h.
#include "comm/mpi_comm.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "base/error.h"

namespace pq {
namespace {

constexpr int kReduceTag = 1;
constexpr int kGatherTag = 2;
// A received part is added while it is still in the second-level cache.
constexpr int64_t kReducePieceBytes = int64_t{512} << 10;

class MpiCommunicator : public Communicator {
 public:
  MpiCommunicator(MPI_Comm parent, int64_t piece_bytes) : piece_bytes_(piece_bytes) {
    check_mpi(MPI_Comm_dup(parent, &comm_), "MPI_Comm_dup");
    check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
  }
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;
  ~MpiCommunicator() override {
    int finalised = 0;
    if (MPI_Finalized(&finalised) == MPI_SUCCESS && !finalised) MPI_Comm_free(&comm_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string name() const override { return "mpi"; }

  void all_reduce_sum(float* data, int64_t count) override {
    if (size_ == 1) return;
    if ((size_ & (size_ - 1)) != 0) {
      throw Error(ErrorKind::usage, "sums need a power of two of ranks, not " + std::to_string(size_));
    }
    const int64_t piece = std::min(piece_bytes_, kReducePieceBytes) / static_cast<int64_t>(sizeof(float));
    received_.resize(static_cast<size_t>(std::min(piece, count)));
    for (int64_t first = 0; first < count; first += piece) reduce_piece(data + first, std::min(piece, count - first));
  }

  void all_gather(const void* data, int64_t bytes, void* out) override {
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
    if (rank_ != 0) {
      for (int64_t first = 0; first < bytes; first += piece_bytes_) {
        const int length = static_cast<int>(std::min(piece_bytes_, bytes - first));
        check_mpi(MPI_Send(static_cast<const char*>(data) + first, length, MPI_BYTE, 0, kGatherTag, comm_), "MPI_Send");
      }
      return;
    }
    if (bytes > 0) std::memcpy(out, data, static_cast<size_t>(bytes));
    for (int other = 1; other < size_; ++other) {
      for (int64_t first = 0; first < bytes; first += piece_bytes_) {
        const int length = static_cast<int>(std::min(piece_bytes_, bytes - first));
        check_mpi(MPI_Recv(static_cast<char*>(out) + other * bytes + first, length, MPI_BYTE, other, kGatherTag, comm_,
                           MPI_STATUS_IGNORE),
                  "MPI_Recv");
      }
    }
  }

  void broadcast(void* data, int64_t bytes) override {
    for (int64_t first = 0; first < bytes; first += piece_bytes_) {
      const int length = static_cast<int>(std::min(piece_bytes_, bytes - first));
      check_mpi(MPI_Bcast(static_cast<char*>(data) + first, length, MPI_BYTE, 0, comm_), "MPI_Bcast");
    }
  }

  void barrier() override { check_mpi(MPI_Barrier(comm_), "MPI_Barrier"); }

 private:
  // Partners at distance 1, 2, 4, ... exchange partial sums; both add the lower ranks' to the upper ranks', so both hold the same
  // bits and after the last step every rank holds the root of one tree.
  void reduce_piece(float* data, int64_t count) {
    const int length = static_cast<int>(count);
    for (int distance = 1; distance < size_; distance *= 2) {
      const int partner = rank_ ^ distance;
      check_mpi(MPI_Sendrecv(data, length, MPI_FLOAT, partner, kReduceTag, received_.data(), length, MPI_FLOAT, partner, kReduceTag,
                             comm_, MPI_STATUS_IGNORE),
                "MPI_Sendrecv");
      const float* received = received_.data();
      if (partner > rank_) {
        for (int64_t i = 0; i < count; ++i) data[i] = data[i] + received[i];
      } else {
        for (int64_t i = 0; i < count; ++i) data[i] = received[i] + data[i];
      }
    }
  }

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
  const int64_t piece_bytes_;
  std::vector<float> received_;
};

}  // namespace

void check_mpi(int result, const char* call) {
  if (result == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(result, text, &length);
  throw Error(ErrorKind::peer, std::string(call) + ": " + text);
}

std::unique_ptr<Communicator> make_mpi_communicator(MPI_Comm parent, int64_t piece_bytes) {
  return std::make_unique<MpiCommunicator>(parent, std::min(piece_bytes, kMpiPieceBytes));
}

}  // namespace pq
