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
#include <tuple>
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
// At most, between news to other nodes.
constexpr double kNewsPeriod = 0.25;
// A rank that ends with a line of its own has said it before it is gone. News of another node may take three times as long, and
// where another rank is to say it this one is ended by the launcher before its time has come.
constexpr auto kGrace = std::chrono::milliseconds(100);
constexpr int kRemoteGraces = 3;
constexpr int kSilentGraces = 30;
// Rank 0 sees more ranks than those of other nodes, and is to speak first; or another one, whose word has the launcher end the job
// within this time.
constexpr double kDeference = 0.5;
constexpr double kLaunchersTime = 3;

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

bool is_stopped(const RankRecord& record) { return process_state(record.process) == 'T'; }

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
  const RankRecord* record = nullptr;
  const NodeLink* link = nullptr;  // a rank of another node; null: of this one
  int pidfd = -1;
  uint64_t activity = 0;
  uint32_t beats = 0;
  Clock::time_point changed{};
  bool gone = false;
};

Watchdog::Watchdog(double limit_seconds, bool sees_all, std::unique_ptr<NodeLinks> links, std::function<void(int)> end_job)
    : limit_seconds_(limit_seconds),
      sees_all_(sees_all),
      links_(std::move(links)),
      end_job_(std::move(end_job)),
      wake_(eventfd(0, EFD_CLOEXEC)) {
  if (wake_ < 0)
    throw Error(ErrorKind::environment, std::string("cannot start the watchdog: ") + std::system_category().message(errno));
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

// Where the kernel has no pidfd the launcher alone notices deaths on this node.
void Watchdog::watch_peers() {
  const JobBoard& board = job_board();
  for (int place = 0; place < board.records; ++place) {
    Peer peer;
    peer.record = &board.record[place];
    peer.changed = Clock::now();
#ifdef SYS_pidfd_open
    const int process = peer.record->process;
    if (process > 0 && process != getpid()) peer.pidfd = static_cast<int>(syscall(SYS_pidfd_open, process, 0));
    peer.gone = process > 0 && process != getpid() && peer.pidfd < 0 && errno == ESRCH;
#endif
    peers_.push_back(peer);
  }
  if (links_ == nullptr) return;
  for (const auto& link : links_->links()) {
    Peer peer;
    peer.record = &link->record;
    peer.link = link.get();
    peer.changed = Clock::now();
    peers_.push_back(peer);
  }
}

// Seconds; below 0: until something happens.
double Watchdog::tick() const {
  const double limit = limit_seconds_, longest = linked() ? kNewsPeriod : kLongestTick;
  if (limit > 0) return std::clamp(limit / kTicksALimit, kShortestTick, longest);
  return linked() ? longest : -1;
}

void Watchdog::run() {
  for (Peer& peer : peers_) {
    if (peer.gone) on_death(peer);
  }
  auto judged = Clock::now();
  auto next = judged;
  bool told = false;
  while (!stop_) {
    const double period = tick();
    std::vector<pollfd> polls{{wake_, POLLIN, 0}};
    std::vector<Peer*> polled{nullptr};
    for (Peer& peer : peers_) {
      const int fd = peer.link != nullptr ? peer.link->fd : peer.pidfd;
      if (fd < 0 || peer.gone) continue;
      polls.push_back({fd, POLLIN, 0});
      polled.push_back(&peer);
    }
    const double left = std::max(0.0, std::chrono::duration<double>(next - Clock::now()).count());
    if (poll(polls.data(), polls.size(), period < 0 ? -1 : static_cast<int>(std::ceil(left * 1e3))) < 0 && errno != EINTR) return;
    if (polls[0].revents != 0) {
      uint64_t count = 0;
      [[maybe_unused]] const ssize_t got = read(wake_, &count, sizeof count);
      next = judged = Clock::now();
      continue;
    }
    if (linked()) links_->receive();
    for (size_t i = 1; i < polls.size(); ++i) {
      Peer& peer = *polled[i];
      if (polls[i].revents == 0 || (peer.link != nullptr && !peer.link->ended)) continue;
      on_death(peer);
      peer.gone = true;
    }
    // What one node has said of the end of the job goes to all at once.
    const bool spoken = job_board().ended != 0 || job_board().stop_signal != 0;
    if (linked() && spoken && !told) links_->send();
    told = spoken;
    const auto now = Clock::now();
    if (period < 0 || now < next) continue;
    next = now + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(period));
    if (linked()) links_->send();
    // Far longer since the last time than asked for: this process was itself stopped, or the machine asleep. Nobody is late then.
    const bool slept = std::chrono::duration<double>(now - judged).count() > 3 * std::max(period, 0.1);
    judged = now;
    if (slept) {
      for (Peer& peer : peers_) peer.changed = now;
    } else if (limit_seconds_ > 0) {
      look_for_stalls();
    }
  }
}

void Watchdog::on_death(const Peer& peer) {
  const JobBoard& board = job_board();
  const RankRecord& record = *peer.record;
  // Other nodes are to know it as well.
  const auto leave = [&] {
    if (linked()) links_->send();
    _exit(board.ended - 1);
  };
  // The rank itself may be about to end in order.
  if (record.finished != 0 || own_record().finished != 0) return;
  // Neighbours of a rank of another node say it first; the launcher ends ranks meanwhile.
  const int graces = peer.link == nullptr ? 1 : links_->speaks_first() ? kRemoteGraces : kSilentGraces;
  for (int waited = 0; waited < graces; ++waited) {
    if (board.ended != 0) leave();
    std::this_thread::sleep_for(kGrace);
    if (stop_) return;
    if (linked()) links_->receive();
  }
  if (peer.link != nullptr && board.ended != 0) leave();
  const int code = static_cast<int>(ErrorKind::peer);
  LineBuffer line;
  line << "rank " << int64_t{record.rank} << " on " << (peer.link != nullptr ? peer.link->host.c_str() : host_name())
       << " ended without a word" << (peer.link != nullptr ? ", last heard in " : " in ") << activity_of(record)
       << "; killed, perhaps for lack of memory";
  // Whoever has the word needs a moment for it before the launcher ends everybody.
  if (!say_last_words({line.data(), line.size()})) std::this_thread::sleep_for(kGrace);
  expect_end(code);
  // Not by MPI_Abort: the launcher has the dead rank's code for the job.
  _exit(code);
}

// A rank is to blame when it has not changed for the limit and waits for nobody or is stopped, or, on another node, is not heard
// from. When all that owe progress wait for each other, any of them is: for who sees all of them, or cannot hear of the others.
void Watchdog::look_for_stalls() {
  const auto now = Clock::now();
  const double limit = limit_seconds_ + (sees_all_ ? 0.0 : tick() + kDeference);
  const auto late = [&](Clock::time_point since, double more = 0.0) {
    return std::chrono::duration<double>(now - since).count() >= limit + more;
  };
  bool all_wait = true;
  const Peer* waiting = nullptr;
  std::vector<const Peer*> blamed;
  for (Peer& peer : peers_) {
    const RankRecord& record = *peer.record;
    const uint64_t word = record.activity.load(std::memory_order_relaxed);
    const uint32_t beats = record.beats.load(std::memory_order_relaxed);
    if (word != peer.activity || beats != peer.beats) {
      peer.activity = word;
      peer.beats = beats;
      peer.changed = now;
    }
    const Activity activity = unpack_activity(word);
    if (peer.gone || record.finished != 0 || !activity.owes_progress()) continue;
    const bool silent =
        peer.link != nullptr && late(std::max(peer.link->heard, peer.changed), links_->speaks_first() ? 0.0 : kLaunchersTime);
    // What rank 0 waits for is its own to judge.
    const bool to_blame = peer.link == nullptr || sees_all_ ? record.waits_for == kWaitsForNobody : false;
    const bool stopped = peer.link == nullptr && late(peer.changed) && is_stopped(record);
    if (late(peer.changed) && (silent || to_blame || stopped)) blamed.push_back(&peer);
    if (!late(peer.changed)) all_wait = false;
    if (late(peer.changed) && (waiting == nullptr || &record == &own_record())) waiting = &peer;
  }
  // Of several, those that are behind: a rank with a device may wait for others where it says nothing of it, as in launching what
  // its device has no room for yet.
  const auto place = [](const Peer* peer) {
    const Activity activity = activity_of(*peer->record);
    return std::tuple(peer->link != nullptr || !is_stopped(*peer->record), activity.step, activity.layer);
  };
  const auto worst =
      std::min_element(blamed.begin(), blamed.end(), [&](const Peer* a, const Peer* b) { return place(a) < place(b); });
  if (worst != blamed.end()) report_stall(**worst);
  if (waiting == nullptr || !all_wait || (linked() && !sees_all_)) return;
  // Where nothing is heard of other nodes: loading and quantising take their ranks as long as it takes.
  const Phase phase = activity_of(*waiting->record).phase;
  if (sees_all_ || (phase != Phase::start && phase != Phase::load && phase != Phase::quantise)) report_stall(*waiting);
}

void Watchdog::report_stall(const Peer& late) {
  const RankRecord& mine = own_record();
  // A rank of another node is named with that node, although this one may be all that is known to be late.
  const auto awaited = std::find_if(peers_.begin(), peers_.end(), [&](const Peer& other) {
    return other.link != nullptr && late.record == &mine && other.record->rank == mine.waits_for;
  });
  const Peer& peer = awaited != peers_.end() ? *awaited : late;
  const RankRecord& record = *peer.record;
  if (const int ended = job_board().ended; ended != 0) end_job_(ended - 1);
  // Stopped in the middle of a limit, it may have said something since it last changed.
  const auto silent = [&](const Peer& other) {
    return other.link != nullptr && std::chrono::duration<double>(Clock::now() - other.link->heard).count() > limit_seconds_ / 2;
  };
  const auto state = [&](const Peer& other) {
    if (other.link == nullptr) return state_text(process_state(other.record->process));
    return silent(other) ? "; nothing is heard from its process, which is stopped or cut off" : "";
  };
  char seconds[32];
  std::snprintf(seconds, sizeof seconds, "%g s", limit_seconds_.load());
  LineBuffer line;
  line << "no progress for " << seconds;
  if (&record == &mine) {
    line << " in " << activity_of(record) << " on " << host_name();
    const int waits_for = record.waits_for;
    if (waits_for == kWaitsForAny) line << "; waits for the other ranks";
    if (waits_for >= 0) line << "; waits for rank " << int64_t{waits_for};
    for (const Peer& other : peers_) {
      if (waits_for >= 0 && other.record->rank == waits_for) line << ", which is in " << activity_of(*other.record) << state(other);
    }
  } else {
    // This rank may have its own work, or none, and not wait for the other yet.
    if (activity_of(mine).owes_progress() && mine.waits_for != kWaitsForNobody)
      line << " in " << activity_of(mine) << ": waits for ";
    else
      line << " by ";
    line << "rank " << int64_t{record.rank} << ", which is in " << activity_of(record) << " on "
         << (peer.link != nullptr ? peer.link->host.c_str() : host_name()) << state(peer);
  }
  const int code = static_cast<int>(ErrorKind::peer);
  // Whoever has the word needs a moment for it before the launcher ends everybody.
  if (!say_last_words({line.data(), line.size()})) std::this_thread::sleep_for(kGrace);
  expect_end(code);
  end_job_(code);
}

}  // namespace pq
