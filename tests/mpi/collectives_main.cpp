// MPI collectives and the session's own exchange under mpirun: the checks of collective_cases.h over shared memory, MPI and both,
// agree with each rank failing in turn, messages of many sizes, places on the node, and what waiting costs.
#include <mpi.h>
#include <sched.h>
#include <unistd.h>

#include <cstdio>
#include <ctime>
#include <vector>

#include "base/signals.h"
#include "comm/mpi_comm.h"
#include "comm/session.h"
#include "comm/shared_window.h"
#include "support/collective_cases.h"
#include "support/process.h"

namespace {

void expect(const std::string& problem) {
  if (!problem.empty()) throw pq::Error(pq::ErrorKind::internal, problem);
}

void expect_true(bool condition, const std::string& problem) { expect(condition ? "" : problem); }

double processor_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// A rank that waits for rank 0's next message must leave its processor alone. Processor time, unlike time, does not depend on what
// else the machine does.
void check_idle(pq::Communicator& comm) {
  constexpr double kWaitSeconds = 0.5;
  // A rank that spins takes all of the wait, one that polls every millisecond some percent, and a virtual machine counts the time
  // that its host takes away as well.
  constexpr double kAllowedSeconds = 0.2 * kWaitSeconds;
  comm.barrier();
  if (comm.rank() == 0) usleep(static_cast<useconds_t>(1e6 * kWaitSeconds));
  const double before = processor_seconds();
  char byte = 0;
  comm.broadcast(&byte, 1);
  const double used = processor_seconds() - before;
  if (comm.rank() != 0)
    expect_true(used < kAllowedSeconds, comm.name() + ": waiting took " + std::to_string(used) + " s of processor time");
}

struct Transport {
  pq::MpiOptions options;
  std::string name;
};

// Every way the ranks can be spread over nodes, with whole and with small pieces, must pass the same checks; one that may not use
// shared memory must say so.
void check_transports(int rank, int ranks) {
  const std::string window = "mpi, shared window";
  const std::string two_nodes = "mpi, shared window in each of 2 nodes";
  const Transport transports[] = {
      {{}, window},
      {{.window_bytes = 4096}, window},
      {{.window_bytes = 0}, "mpi"},
      {{.piece_bytes = 1000, .window_bytes = 0}, "mpi"},
      {{.node = rank}, "mpi"},
      // Neighbours share a node.
      {{.window_bytes = 8192, .node = rank / 2}, ranks == 2 ? window : two_nodes},
      {{.node = rank / 2}, ranks == 2 ? window : two_nodes},
      // Nodes that break the tree: ranks dealt in turn, and one rank apart from the rest.
      {{.node = rank % 2}, "mpi"},
      {{.node = rank == 0 ? 0 : 1}, "mpi"},
  };
  for (const Transport& transport : transports) {
    const auto comm = pq::make_mpi_communicator(MPI_COMM_WORLD, transport.options);
    expect_true(comm->name() == transport.name, comm->name() + " instead of " + transport.name);
    expect(pq::test::check_collectives(*comm));
    expect(pq::test::check_tree_order(*comm));
    check_idle(*comm);
  }
}

// MPI gives a rank's part of a window at any address, while sums work on whole cache lines of it.
void check_window_alignment(pq::Session& session) {
  MPI_Comm node = MPI_COMM_NULL;
  expect_true(MPI_Comm_dup(MPI_COMM_WORLD, &node) == MPI_SUCCESS, "MPI_Comm_dup");
  const auto window = pq::SharedWindow::try_make(node, 100, [](int) {});
  expect_true(window != nullptr, "MPI gave no shared window");
  for (int piece = 0; piece < 3; ++piece) {
    window->begin_piece()[0] = static_cast<std::byte>(session.rank() + piece);
    window->publish();
    for (int other = 0; other < session.ranks(); ++other) {
      window->wait(other);
      expect_true(reinterpret_cast<uintptr_t>(window->area(other)) % 4096 == 0, "an area is not aligned to 4096 bytes");
      expect_true(window->area(other)[0] == static_cast<std::byte>(other + piece), "an area is not the same for two ranks");
    }
  }
}

void check_agree(pq::Session& session) {
  int runs = 0;
  session.agree("success", [&] { ++runs; });
  expect_true(runs == 1, "agree did not run its work once");
  for (int failing = 0; failing < session.ranks(); ++failing) {
    // Every rank from `failing` on throws: the lowest one's error must reach all.
    const std::string text = "rank " + std::to_string(failing) + " could not";
    bool thrown = false;
    try {
      session.agree("trial", [&] {
        if (session.rank() == failing) throw pq::Error(pq::ErrorKind::io, text);
        if (session.rank() > failing) throw pq::Error(pq::ErrorKind::usage, "a later rank");
      });
    } catch (const pq::Error& error) {
      thrown = true;
      expect_true(error.kind() == pq::ErrorKind::io, "agree changed the kind of the error");
      const std::string prefix =
          session.rank() == failing ? "" : "rank " + std::to_string(failing) + " on " + pq::host_name() + ": ";
      expect_true(error.what() == prefix + text, std::string("agree changed the message: ") + error.what());
    }
    expect_true(thrown, "agree threw nothing");
  }
  try {
    session.agree("allocation", [] { throw std::bad_alloc(); });
    expect("bad_alloc was lost");
  } catch (const pq::Error& error) {
    expect_true(error.kind() == pq::ErrorKind::environment, "bad_alloc is not ErrorKind::environment");
  }
}

// Ranks of one node with one affinity mask: parts that do not meet, of equal size up to one, unless there are too few CPUs.
void check_cpus(pq::Session& session) {
  std::vector<int> taken(CPU_SETSIZE);
  for (const int cpu : session.cpus()) taken[static_cast<size_t>(cpu)] = 1;
  std::vector<int> all(taken.size() * static_cast<size_t>(session.ranks()));
  session.comm().all_gather(taken.data(), static_cast<int64_t>(sizeof(int) * taken.size()), all.data());
  cpu_set_t mask;
  expect_true(sched_getaffinity(0, sizeof mask, &mask) == 0, "sched_getaffinity");
  for (size_t cpu = 0; cpu < taken.size(); ++cpu) {
    int owners = 0;
    for (int rank = 0; rank < session.ranks(); ++rank) owners += all[static_cast<size_t>(rank) * taken.size() + cpu];
    const bool enough = CPU_COUNT(&mask) >= session.ranks();
    expect_true(owners == (enough && CPU_ISSET(cpu, &mask) ? 1 : 0), "a CPU belongs to one rank");
  }
}

void check_messages(pq::Session& session) {
  for (const int64_t bytes : {0, 1, 100, 503, 504, 505, 4096, 70000, 3000000}) {
    std::vector<uint8_t> message;
    if (session.rank() == 0) {
      for (int64_t i = 0; i < bytes; ++i) message.push_back(pq::test::byte_input(9, i));
    }
    session.broadcast_message(&message);
    expect_true(static_cast<int64_t>(message.size()) == bytes, "a message changed its size");
    for (int64_t i = 0; i < bytes; ++i)
      expect_true(message[static_cast<size_t>(i)] == pq::test::byte_input(9, i), "a message changed");
  }
}

}  // namespace

int main(int argc, char** argv) {
  return pq::run_program("collectives", argc, argv, [](pq::Session& session) {
    // What comes out of a collective is compared without a word to the watchdog, which takes long under a sanitizer.
    session.configure({.watchdog_seconds = 60 * pq::test::kTimeFactor});
    check_window_alignment(session);
    expect_true(session.comm().size() == session.ranks() && session.comm().rank() == session.rank(),
                "session and communicator differ");
    expect_true(session.local_ranks() == session.ranks() && session.local_rank() == session.rank(), "ranks of one node");
    expect(pq::test::check_collectives(session.comm()));
    expect(pq::test::check_tree_order(session.comm()));
    if (session.ranks() > 1) check_transports(session.rank(), session.ranks());
    check_cpus(session);
    check_agree(session);
    check_messages(session);
    return 0;
  });
}
