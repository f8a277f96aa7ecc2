// The watchdog of watchdog.h. The thread sleeps in poll on the processes of its peers (pidfd) and wakes some times a limit to see
// who has changed.
#include "comm/watchdog.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <system_error>
#include <utility>

#include "base/activity.h"
#include "base/error.h"
#include "base/signals.h"

namespace pq {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kShortestTick = 0.02;
constexpr double kLongestTick = 1;
constexpr double kTicksALimit = 10;
// A rank that ends with a line of its own has said it before it is gone; a rank of another node may take this long to have its say.
constexpr auto kGrace = std::chrono::milliseconds(100);

// The letter of /proc/PID/stat; '?' when unknown.
char process_state(int process) {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%d/stat", process);
  std::FILE* file = std::fopen(path, "re");
  if (file == nullptr) return '?';
  char state = '?';
  // The name of the program, in parentheses, has no space here: programs of pq.
  if (std::fscanf(file, "%*d %*s %c", &state) != 1) state = '?';
  std::fclose(file);
  return state;
}

const char* state_text(char state) {
  switch (state) {
    case 'T':
    case 't':
      return "; its process is stopped";
    case 'D':
      return "; its process waits for a disk or a network";
    default:
      return "";
  }
}

}  // namespace

struct Watchdog::Peer {
  int pidfd = -1;
  int process = 0;
  uint64_t activity = 0;
  uint32_t beats = 0;
  Clock::time_point changed{};
  bool gone = false;
};

Watchdog::Watchdog(double limit_seconds, bool one_node, std::function<void(int)> end_job)
    : limit_seconds_(limit_seconds), one_node_(one_node), end_job_(std::move(end_job)), wake_(eventfd(0, EFD_CLOEXEC)) {
  if (wake_ < 0)
    throw Error(ErrorKind::environment, std::string("cannot start the watchdog: ") + std::system_category().message(errno));
  peers_.resize(static_cast<size_t>(job_board().records));
  watch_peers();
  // Signals belong to the threads that work.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    thread_ = std::thread([this] { run(); });
  } catch (const std::system_error& error) {
    close(wake_);
    throw Error(ErrorKind::environment, std::string("cannot start the watchdog's thread: ") + error.what());
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Watchdog::~Watchdog() {
  stop_ = true;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(wake_, &one, sizeof one);
  thread_.join();
  for (const Peer& peer : peers_)
    if (peer.pidfd >= 0) close(peer.pidfd);
  close(wake_);
}

void Watchdog::set_limit(double seconds) {
  limit_seconds_ = seconds;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(wake_, &one, sizeof one);
}

// Where the kernel has no pidfd the launcher alone notices deaths.
void Watchdog::watch_peers() {
  const JobBoard& board = job_board();
  for (size_t place = 0; place < peers_.size(); ++place) {
    Peer& peer = peers_[place];
    peer.changed = Clock::now();
    peer.process = board.record[place].process;
#ifdef SYS_pidfd_open
    if (peer.process > 0 && peer.process != getpid()) peer.pidfd = static_cast<int>(syscall(SYS_pidfd_open, peer.process, 0));
#endif
  }
}

void Watchdog::run() {
  while (!stop_) {
    const double limit = limit_seconds_;
    const double tick = limit > 0 ? std::clamp(limit / kTicksALimit, kShortestTick, kLongestTick) : -1;
    std::vector<pollfd> polls{{wake_, POLLIN, 0}};
    std::vector<size_t> places{0};
    for (size_t place = 0; place < peers_.size(); ++place) {
      if (peers_[place].pidfd < 0 || peers_[place].gone) continue;
      polls.push_back({peers_[place].pidfd, POLLIN, 0});
      places.push_back(place);
    }
    const auto before = Clock::now();
    if (poll(polls.data(), polls.size(), tick < 0 ? -1 : static_cast<int>(std::lround(tick * 1e3))) < 0 && errno != EINTR) return;
    if (polls[0].revents != 0) {
      uint64_t count = 0;
      [[maybe_unused]] const ssize_t got = read(wake_, &count, sizeof count);
      continue;
    }
    for (size_t i = 1; i < polls.size(); ++i)
      if (polls[i].revents != 0) on_death(peers_[places[i]]);
    for (size_t i = 1; i < polls.size(); ++i)
      if (polls[i].revents != 0) peers_[places[i]].gone = true;
    // A wait that took far longer than asked for: this process was itself stopped, or the machine asleep. Nobody is late then.
    if (std::chrono::duration<double>(Clock::now() - before).count() > 3 * std::max(tick, 0.1)) {
      for (Peer& peer : peers_) peer.changed = Clock::now();
      continue;
    }
    if (limit > 0) look_for_stalls();
  }
}

void Watchdog::on_death(const Peer& peer) {
  const JobBoard& board = job_board();
  const auto place = static_cast<size_t>(&peer - peers_.data());
  const RankRecord& record = board.record[place];
  // The rank itself may be about to end in order.
  if (record.finished != 0 || own_record().finished != 0) return;
  if (const int ended = board.ended; ended != 0) _exit(ended - 1);
  std::this_thread::sleep_for(kGrace);
  if (stop_) return;
  const int code = static_cast<int>(ErrorKind::peer);
  expect_end(code);
  LineBuffer line;
  line << "rank " << int64_t{record.rank} << " on " << host_name() << " ended without a word in " << activity_of(record)
       << "; killed, perhaps for lack of memory";
  say_last_words({line.data(), line.size()});
  // Not by MPI_Abort: the launcher has the dead rank's code for the job.
  _exit(code);
}

// A rank is to blame when it has not changed for the limit and waits for nobody. When all that owe progress wait for each other,
// any of them is.
void Watchdog::look_for_stalls() {
  const JobBoard& board = job_board();
  const double limit = limit_seconds_;
  const auto now = Clock::now();
  bool all_wait = true;
  int waiting = -1;
  for (size_t place = 0; place < peers_.size(); ++place) {
    Peer& peer = peers_[place];
    const RankRecord& record = board.record[place];
    const uint64_t word = record.activity.load(std::memory_order_relaxed);
    const uint32_t beats = record.beats.load(std::memory_order_relaxed);
    if (word != peer.activity || beats != peer.beats) {
      peer.activity = word;
      peer.beats = beats;
      peer.changed = now;
    }
    const Activity activity = unpack_activity(word);
    if (peer.gone || record.finished != 0 || !activity.owes_progress()) continue;
    const bool late = std::chrono::duration<double>(now - peer.changed).count() >= limit;
    const int waits_for = record.waits_for;
    if (late && waits_for == kWaitsForNobody) report_stall(static_cast<int>(place), limit);
    if (!late) all_wait = false;
    if (late && (waiting < 0 || record.rank == own_record().rank)) waiting = static_cast<int>(place);
  }
  if (waiting < 0 || !all_wait) return;
  // Ranks of other nodes cannot be seen; loading takes them as long as it takes.
  const Phase phase = activity_of(board.record[waiting]).phase;
  if (one_node_ || (phase != Phase::start && phase != Phase::load)) report_stall(waiting, limit);
}

void Watchdog::report_stall(int place, double limit) {
  const JobBoard& board = job_board();
  const RankRecord& record = board.record[place];
  const RankRecord& mine = own_record();
  char seconds[32];
  std::snprintf(seconds, sizeof seconds, "%g s", limit);
  LineBuffer line;
  line << "no progress for " << seconds << " in ";
  if (&record == &mine) {
    line << activity_of(record) << " on " << host_name();
    const int waits_for = record.waits_for;
    if (waits_for == kWaitsForAny) line << "; waits for the other ranks";
    if (waits_for >= 0) line << "; waits for rank " << int64_t{waits_for};
    for (int other = 0; waits_for >= 0 && other < board.records; ++other)
      if (board.record[other].rank == waits_for)
        line << ", which is in " << activity_of(board.record[other]) << state_text(process_state(board.record[other].process));
  } else {
    if (activity_of(mine).owes_progress() && mine.waits_for != kWaitsForNobody) line << activity_of(mine) << ": waits for ";
    line << "rank " << int64_t{record.rank} << ", which is in " << activity_of(record) << " on " << host_name()
         << state_text(process_state(record.process));
  }
  const int code = static_cast<int>(ErrorKind::peer);
  expect_end(code);
  say_last_words({line.data(), line.size()});
  end_job_(code);
}

}  // namespace pq
