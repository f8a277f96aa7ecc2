// POSIX shared memory, unlinked as soon as every rank has it. An MPI window would end with MPI_Finalize, which is watched too.
#include "comm/shared_board.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>

#include "base/activity.h"
#include "comm/mpi_comm.h"

namespace pq {
namespace {

constexpr size_t kNameBytes = 64;

void* map_board(int fd, size_t bytes) {
  if (fd < 0) return nullptr;
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  ::close(fd);
  return memory == MAP_FAILED ? nullptr : memory;
}

// Process numbers mean the same to ranks that agree on this.
int64_t process_namespace() {
  struct stat info {};
  return ::stat("/proc/self/ns/pid", &info) == 0 ? static_cast<int64_t>(info.st_ino) : 0;
}

bool all_true(MPI_Comm node, bool mine) {
  int value = mine ? 1 : 0, all = 0;
  check_mpi(MPI_Allreduce(&value, &all, 1, MPI_INT, MPI_MIN, node), "MPI_Allreduce");
  return all != 0;
}

}  // namespace

bool share_job_board(MPI_Comm node) {
  int place = 0, ranks = 1;
  check_mpi(MPI_Comm_rank(node, &place), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(node, &ranks), "MPI_Comm_size");
  const size_t bytes = job_board_bytes(ranks);
  char name[kNameBytes] = "";
  void* memory = nullptr;
  if (place == 0) {
    const auto now = std::chrono::system_clock::now().time_since_epoch().count();
    std::snprintf(name, sizeof name, "/pq-%d-%lld", getpid(), static_cast<long long>(now));
    const int fd = ::shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    // posix_fallocate, because a full file system would otherwise show as SIGBUS later.
    if (fd >= 0 && ::posix_fallocate(fd, 0, static_cast<off_t>(bytes)) == 0) memory = map_board(fd, bytes);
  }
  check_mpi(MPI_Bcast(name, sizeof name, MPI_CHAR, 0, node), "MPI_Bcast");
  int64_t space = process_namespace();
  const int64_t mine = space;
  check_mpi(MPI_Bcast(&space, 1, MPI_INT64_T, 0, node), "MPI_Bcast");
  if (place != 0) memory = map_board(::shm_open(name, O_RDWR, 0), bytes);
  const bool shared = all_true(node, memory != nullptr && space == mine);
  if (place == 0) ::shm_unlink(name);
  if (!shared) {
    if (memory != nullptr) ::munmap(memory, bytes);
    return false;
  }
  use_job_board(memory, ranks, place);
  // Nobody looks at a record before its rank has moved in.
  check_mpi(MPI_Barrier(node), "MPI_Barrier");
  return true;
}

}  // namespace pq
