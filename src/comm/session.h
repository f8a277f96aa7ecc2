// The life of a parallel job: MPI start and end, agreement of all ranks on an error, one-sided abort, the wait of idle workers, the
// watchdog. Data moves through the communicator it holds.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "comm/communicator.h"

namespace pq {

// What can be asked of every job.
struct JobOptions {
  double watchdog_seconds = 60;    // without progress until the job is ended; 0: for ever
  bool check_collectives = false;  // comm/checked_comm.h
};

class Session {
 public:
  // Initialises MPI when the process was started by a launcher (OMPI_COMM_WORLD_SIZE, PMIX_RANK or PMI_RANK is set), else stays
  // alone (no MPI call at all). Sets the log identity. Throws ErrorKind::usage when SLURM_STEP_NUM_TASKS > 1 but the MPI world has
  // one rank (N copies of rank 0). Installs the handlers of base/signals.h and starts the watchdog. PQ_COMM=mpi in the environment
  // keeps the ranks from sharing memory (same bits, slower);
  // PQ_NODES=N makes N ranks take each other for a node, for tests.
  Session(std::string program, int* argc, char*** argv);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  int rank() const;
  int ranks() const;
  // Ranks on this node and the place among them.
  int local_rank() const;
  int local_ranks() const;
  // The CPUs this rank may run on: its affinity mask, shared out in order among the ranks of the node that have the same one. Empty
  // when those are more than the CPUs, or the mask is unknown.
  const std::vector<int>& cpus() const;
  // Not to be kept across configure().
  Communicator& comm();

  // Collective: every rank has the same options.
  void configure(const JobOptions& options);
  const JobOptions& options() const;

  // Runs `work` on every rank, then all ranks learn whether any threw: all throw the error of the lowest failing rank (its message
  // prefixed with "rank R: " when R is not this rank), or none does. A symmetric point: every rank must call it, and `work` does
  // not communicate. std::bad_alloc becomes ErrorKind::environment, other exceptions ErrorKind::internal, both naming `where`.
  void agree(const std::string& where, const std::function<void()>& work);

  // Broadcast of a variable-sized message from rank 0; the other ranks wait without spinning. At most 1 GiB; replaces *message on
  // ranks other than 0.
  void broadcast_message(std::vector<uint8_t>* message);

  // Flushes stdout and ends every rank of the job with `code` at once; the caller has printed its line.
  [[noreturn]] void abort(int code);

  // The same when every rank calls it: rank 0 ends the job, the others wait to be ended.
  [[noreturn]] void end_together(int code);

  // Collective, the last call of a job that succeeded.
  void close();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The frame of every main: runs `body(session)`, maps errors to exit codes and prints exactly one line for them. Errors thrown by
// Session::agree are printed by rank 0 only and end every rank with the same code; any other error prints one line on the rank that
// threw (of several on a node, on the first) and ends the job by MPI_Abort with its code. Output that could not be written is
// ErrorKind::io. Never returns control to a half-finished MPI job.
int run_program(const std::string& program, int argc, char** argv, const std::function<int(Session&)>& body);

}  // namespace pq
