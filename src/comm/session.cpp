// The session of session.h over MPI. A process that no MPI launcher started makes no MPI call.
#include "comm/session.h"

#include <fcntl.h>
#include <mpi.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <optional>
#include <system_error>

#include "base/activity.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/signals.h"
#include "comm/checked_comm.h"
#include "comm/mpi_comm.h"
#include "comm/node_links.h"
#include "comm/shared_board.h"
#include "comm/watchdog.h"

namespace pq {
namespace {

constexpr int64_t kMaxMessageBytes = int64_t{1} << 30;
constexpr int64_t kMaxErrorBytes = 4096;
// A step of one token and what else is short travels with its length.
constexpr int64_t kShortMessageBytes = 504;

struct MessageStart {
  int64_t bytes;
  uint8_t data[kShortMessageBytes];
};

// An error that every rank throws at the same point, so that all of them can end in order.
struct AgreedError : Error {
  using Error::Error;
};

int64_t environment_number(const char* name, int64_t fallback) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return fallback;
  char* end = nullptr;
  const long long value = std::strtoll(text, &end, 10);
  return *end == '\0' ? value : fallback;
}

// mpirun of Open MPI; srun with a PMIx or PMI plugin, and the launchers of MPICH, which speak PMI.
bool launched_by_mpi() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"}) {
    if (std::getenv(name) != nullptr) return true;
  }
  return false;
}

bool on_one_node() {
  const int64_t world = environment_number("OMPI_COMM_WORLD_SIZE", -1);
  if (world > 0) return environment_number("OMPI_COMM_WORLD_LOCAL_SIZE", -2) == world;
  return environment_number("SLURM_STEP_NUM_NODES", -1) == 1;
}

// Inside one node shared memory is the transport. Naming it saves Open MPI 4 the probing of networks (0.2 s a start), and without
// single copy a 20 KB exchange takes a third of the time. A rank that waits yields its core: on a node shared with other work a
// spinning one keeps the rank it waits for from running (seen: 100 times slower). What the user has set stays.
void set_one_node_defaults() {
#if defined(OMPI_MAJOR_VERSION) && OMPI_MAJOR_VERSION == 4
  setenv("OMPI_MCA_pml", "ob1", 0);
  setenv("OMPI_MCA_btl", "vader,self", 0);
  setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
  setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
#endif
}

std::atomic<int> alarm_code{0};

// Ends every rank from any thread; what is in stdio's buffers is lost. Open MPI's MPI_Abort only sends a message to the launcher
// and may be called beside a main thread that is inside MPI, MPI_Finalize too: measured at 40 ms to the last rank's end, stopped
// ones included.
[[noreturn]] void end_job(int code, bool owns_mpi) {
  expect_end(code);
  int finalised = 0;
  if (owns_mpi && MPI_Finalized(&finalised) == MPI_SUCCESS && !finalised) {
    // Should MPI_Abort wait for something, the end of this rank must do.
    alarm_code = code;
    std::signal(SIGALRM, [](int) { _exit(alarm_code); });
    alarm(2);
    // Under srun MPI_Abort prints a banner that mpirun --quiet would swallow.
    const int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (nowhere >= 0) dup2(nowhere, STDERR_FILENO);
    MPI_Abort(MPI_COMM_WORLD, code);
  }
  std::_Exit(code);
}

// What an exception other than pq::Error comes to.
ErrorKind kind_of(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error)) return ErrorKind::environment;
  const auto* system = dynamic_cast<const std::system_error*>(&error);
  if (system == nullptr) return ErrorKind::internal;
  // Threads that cannot be started; files otherwise.
  const bool scarce = system->code() == std::errc::resource_unavailable_try_again || system->code() == std::errc::not_enough_memory;
  return scarce ? ErrorKind::environment : ErrorKind::io;
}

// " in decode, layer 3, step 12 on node7": for errors that do not say where they come from.
std::string where_text() {
  LineBuffer line;
  line << " in " << activity_of(own_record()) << " on " << host_name();
  return {line.data(), line.size()};
}

cpu_set_t affinity() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  // Leaves the mask empty where the machine has more CPUs than a cpu_set_t holds.
  sched_getaffinity(0, sizeof mask, &mask);
  return mask;
}

// The part of `mask` that the rank at `place` of `sharers` gets.
std::vector<int> share_of(const cpu_set_t& mask, int place, int sharers) {
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &mask)) cpus.push_back(cpu);
  }
  const int count = static_cast<int>(cpus.size());
  if (count < sharers) return {};
  return {cpus.begin() + count * place / sharers, cpus.begin() + count * (place + 1) / sharers};
}

}  // namespace

struct Session::Impl {
  std::string program;
  bool owns_mpi = false;
  int rank = 0;
  int ranks = 1;
  int local_rank = 0;
  int local_ranks = 1;
  std::vector<int> cpus;
  bool sees_all = true;              // what every rank reports
  std::unique_ptr<NodeLinks> links;  // until the watchdog has them
  std::unique_ptr<Communicator> comm;
  CheckedCommunicator* checked = nullptr;  // comm, when checked
  std::unique_ptr<Watchdog> watchdog;
  JobOptions options;

  void start_mpi(int* argc, char*** argv) {
    if (on_one_node()) set_one_node_defaults();
    int provided = 0;
    check_mpi(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
    owns_mpi = true;
    check_mpi(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &rank), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &ranks), "MPI_Comm_size");
    MPI_Comm node = MPI_COMM_NULL;
    if (const int64_t together = environment_number("PQ_NODES", 0); together > 0)
      check_mpi(MPI_Comm_split(MPI_COMM_WORLD, rank / static_cast<int>(together), 0, &node), "MPI_Comm_split");
    else
      check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node), "MPI_Comm_split_type");
    check_mpi(MPI_Comm_rank(node, &local_rank), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(node, &local_ranks), "MPI_Comm_size");
    own_record().rank = rank;
    const bool shared = share_job_board(node);
    int first = rank;
    check_mpi(MPI_Bcast(&first, 1, MPI_INT, 0, node), "MPI_Bcast");
    links = std::make_unique<NodeLinks>(rank == 0 || (shared && first == 0));
    sees_all = (shared && local_ranks == ranks) || (rank == 0 && links->missing().empty());
    cpus = share_cpus(node);
    check_mpi(MPI_Comm_free(&node), "MPI_Comm_free");
    MpiOptions options;
    if (const char* transport = std::getenv("PQ_COMM"); transport != nullptr && std::strcmp(transport, "mpi") == 0)
      options.window_bytes = 0;
    comm = make_mpi_communicator(MPI_COMM_WORLD, options);
  }

  std::vector<int> share_cpus(MPI_Comm node) const {
    const cpu_set_t mine = affinity();
    std::vector<cpu_set_t> all(static_cast<size_t>(local_ranks));
    check_mpi(MPI_Allgather(&mine, sizeof mine, MPI_BYTE, all.data(), sizeof mine, MPI_BYTE, node), "MPI_Allgather");
    int place = 0;
    int sharers = 0;
    for (int other = 0; other < local_ranks; ++other) {
      if (!CPU_EQUAL(&mine, &all[static_cast<size_t>(other)])) continue;
      place += other < local_rank;
      ++sharers;
    }
    return share_of(mine, place, sharers);
  }

  // Under srun MPI_Finalize lets a rank of one node go while one of another is stopped before it, and nobody would be left to
  // notice. Without spinning: rank 0 may wait for the reader of its output.
  static void meet() {
    constexpr useconds_t kLongestPauseUs = 1000;
    MPI_Request all = MPI_REQUEST_NULL;
    MPI_Ibarrier(MPI_COMM_WORLD, &all);
    int there = 0;
    for (useconds_t pause = 1; MPI_Test(&all, &there, MPI_STATUS_IGNORE) == MPI_SUCCESS && there == 0;
         pause = std::min(2 * pause, kLongestPauseUs))
      usleep(pause);
  }

  ~Impl() {
    if (owns_mpi) {
      const CollectiveScope scope(Collective::finalize);
      wait_for_rank(kWaitsForAny);
      meet();
      comm.reset();
      MPI_Finalize();
    }
    own_record().finished = 1;
    finish_signals();
  }
};

Session::Session(std::string program, int* argc, char*** argv) : impl_(std::make_unique<Impl>()) {
  impl_->program = std::move(program);
  own_record().process = getpid();
  if (launched_by_mpi()) {
    impl_->start_mpi(argc, argv);
  } else {
    impl_->cpus = share_of(affinity(), 0, 1);
    impl_->comm = make_self_communicator();
  }
  set_log_identity(impl_->program, impl_->rank, impl_->ranks);
  install_signal_handlers();
  if (impl_->links != nullptr && !impl_->links->missing().empty()) {
    log_line(
        "rank " + std::to_string(impl_->links->missing().front()) +
        " cannot connect to rank 0 by TCP: a rank of another node that stops while it loads will not be noticed; let the nodes "
        "connect to each other at any port");
  }
  try {
    impl_->watchdog = std::make_unique<Watchdog>(impl_->options.watchdog_seconds, impl_->sees_all, std::move(impl_->links),
                                                 [owns_mpi = impl_->owns_mpi](int code) { end_job(code, owns_mpi); });
  } catch (const Error& error) {
    // Not by unwinding, which would wait for the other ranks to finalise.
    say_last_words(error.what());
    abort(error.exit_code());
  }
  arm_fault(impl_->rank);
  enter_phase(Phase::start);
  // mpirun inside a SLURM step counts for itself; srun without MPI support starts copies that know nothing of each other.
  const int64_t tasks = environment_number("SLURM_STEP_NUM_TASKS", 1);
  if (impl_->ranks == 1 && tasks > 1 && std::getenv("OMPI_COMM_WORLD_SIZE") == nullptr) {
    throw AgreedError(ErrorKind::usage,
                      "srun started " + std::to_string(tasks) +
                          " tasks but each is alone in its MPI world; start them with srun --mpi=pmix, or with mpirun");
  }
}

Session::~Session() {
  // A rank that finalises while others still compute waits for them for ever.
  if (impl_->ranks > 1 && std::uncaught_exceptions() > 0) abort(static_cast<int>(ErrorKind::internal));
}

int Session::rank() const { return impl_->rank; }
int Session::ranks() const { return impl_->ranks; }
int Session::local_rank() const { return impl_->local_rank; }
int Session::local_ranks() const { return impl_->local_ranks; }
const std::vector<int>& Session::cpus() const { return impl_->cpus; }
Communicator& Session::comm() { return *impl_->comm; }

const JobOptions& Session::options() const { return impl_->options; }

void Session::configure(const JobOptions& options) {
  impl_->options = options;
  impl_->watchdog->set_limit(options.watchdog_seconds);
  if (!options.check_collectives || impl_->checked != nullptr) return;
  auto checked = std::make_unique<CheckedCommunicator>(std::move(impl_->comm));
  impl_->checked = checked.get();
  impl_->comm = std::move(checked);
}

void Session::close() {
  if (impl_->checked != nullptr) impl_->checked->close();
}

void Session::abort(int code) {
  std::fflush(nullptr);
  end_job(code, impl_->owns_mpi);
}

void Session::end_together(int code) {
  expect_end(code);
  if (impl_->rank == 0) abort(code);
  std::fflush(nullptr);
  // The launcher ends this rank within milliseconds.
  sleep(10);
  std::_Exit(code);
}

void Session::agree(const std::string& where, const std::function<void()>& work) {
  int kind = 0;
  std::string message;
  try {
    work();
  } catch (const Error& error) {
    kind = error.exit_code();
    message = error.what();
  } catch (const std::bad_alloc&) {
    kind = static_cast<int>(ErrorKind::environment);
    message = "out of memory in " + where;
  } catch (const std::exception& error) {
    kind = static_cast<int>(kind_of(error));
    message = where + ": " + error.what();
  }
  std::vector<int> kinds(static_cast<size_t>(impl_->ranks));
  impl_->comm->all_gather(&kind, sizeof kind, kinds.data());
  const auto failed = std::find_if(kinds.begin(), kinds.end(), [](int value) { return value != 0; });
  if (failed == kinds.end()) return;
  const std::string own = message;
  message = "rank " + std::to_string(impl_->rank) + " on " + host_name() + ": " + message;
  message.resize(kMaxErrorBytes - 1);
  message.push_back('\0');
  std::vector<char> messages(static_cast<size_t>(kMaxErrorBytes * impl_->ranks));
  impl_->comm->all_gather(message.data(), kMaxErrorBytes, messages.data());
  const int first = static_cast<int>(failed - kinds.begin());
  throw AgreedError(static_cast<ErrorKind>(*failed), first == impl_->rank ? own : messages.data() + first * kMaxErrorBytes);
}

void Session::broadcast_message(std::vector<uint8_t>* message) {
  std::optional<IdleScope> idle;
  if (impl_->rank != 0) idle.emplace();
  const auto bytes = static_cast<int64_t>(message->size());
  MessageStart start{bytes, {}};
  if (impl_->rank == 0) {
    if (bytes > kMaxMessageBytes) throw Error(ErrorKind::internal, "a message of " + std::to_string(bytes) + " bytes is too long");
    std::copy_n(message->begin(), std::min(bytes, kShortMessageBytes), start.data);
  }
  impl_->comm->broadcast(&start, sizeof start);
  if (start.bytes < 0 || start.bytes > kMaxMessageBytes)
    throw Error(ErrorKind::internal, "rank 0 announces a message of " + std::to_string(start.bytes) + " bytes");
  message->resize(static_cast<size_t>(start.bytes));
  if (impl_->rank != 0) std::copy_n(start.data, std::min(start.bytes, kShortMessageBytes), message->begin());
  if (start.bytes > kShortMessageBytes)
    impl_->comm->broadcast(message->data() + kShortMessageBytes, start.bytes - kShortMessageBytes);
}

int run_program(const std::string& program, int argc, char** argv, const std::function<int(Session&)>& body) {
  set_log_identity(program, 0, 1);
  try {
    Session session(program, &argc, &argv);
    int code = 0;
    std::string line;
    try {
      code = body(session);
      {
        const IdleScope idle;
        if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
          throw Error(ErrorKind::io, std::string("cannot write standard output: ") + std::strerror(errno));
      }
      enter_phase(Phase::exit);
      session.close();
      return code;
    } catch (const AgreedError& error) {
      // Every rank is here. Were they all to finalise and return the code, mpirun would take each for a failure and wait for its
      // kill timeout (1 to 60 s), so rank 0 ends the job.
      if (session.rank() == 0) say_last_words(error.what());
      session.end_together(error.exit_code());
    } catch (const Error& error) {
      code = error.exit_code();
      line = error.what();
      // A mistake in what was asked for is the same everywhere.
      if (error.kind() != ErrorKind::usage) line += " (" + where_text().substr(1) + ")";
    } catch (const std::bad_alloc&) {
      code = static_cast<int>(ErrorKind::environment);
      line = "out of memory" + where_text();
    } catch (const std::exception& error) {
      code = static_cast<int>(kind_of(error));
      line = (kind_of(error) == ErrorKind::internal ? "internal error: " : "") + std::string(error.what()) + where_text();
    } catch (...) {
      code = static_cast<int>(ErrorKind::internal);
      line = "internal error: an exception of unknown type" + where_text();
    }
    say_last_words(line);
    session.abort(code);
  } catch (const Error& error) {
    // Only a session that could not start comes here; of the copies under srun the first one speaks.
    if (environment_number("SLURM_PROCID", 0) == 0) say_last_words(error.what());
    return error.exit_code();
  } catch (const std::exception& error) {
    say_last_words(error.what() + where_text());
    return static_cast<int>(kind_of(error));
  }
}

}  // namespace pq
