// Handlers of signals.h. Everything they touch is atomic or set before they are installed.
#include "base/signals.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

#include "base/activity.h"
#include "base/error.h"
#include "base/log.h"

namespace pq {
namespace {

// A crash code of the shell: 128 + signal.
constexpr int kSignalCode = 128;

std::atomic<int> stop_mode{static_cast<int>(StopMode::at_once)};
std::atomic<int> stops{0};
std::atomic<int> hints{0};
std::atomic<int> deferred{0};  // stops that wait for the watchdog
std::atomic<bool> interrupted{false};
std::atomic<bool> may_exit{false};
char marker_path[4096];
std::atomic<int> reserve{-1};  // given up for the marker where descriptors have run out
char host[256] = "?";
// A handler of a stack overflow needs a stack.
alignas(16) char handler_stack[64 << 10];

std::atomic<int> links[kMostLinks];
std::atomic<size_t> link_count{0};

void tell_links() {
  const RankNews news = own_news();
  for (size_t i = 0; i < link_count; ++i)
    [[maybe_unused]] const ssize_t sent = ::send(links[i], &news, sizeof news, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void write_line(std::string_view text) {
  // Nothing can be done about a failure.
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
}

bool claim() {
  int32_t nobody = 0;
  return job_board().speaker.compare_exchange_strong(nobody, own_record().rank.load(std::memory_order_relaxed) + 1);
}

void say_where(LineBuffer& line) { line << activity_of(own_record()) << " on " << host; }

void on_crash(int signal, siginfo_t* info, void*) {
  LineBuffer line;
  line << (info->si_code <= 0 && info->si_pid != getpid() ? "ended by " : "crashed with ") << signal_name(signal) << " in ";
  say_where(line);
  say_last_words({line.data(), line.size()});
  expect_end(kSignalCode + signal);
  std::signal(signal, SIG_DFL);
  raise(signal);
}

// Other nodes are to know it as well.
void leave_if_ended() {
  const int ended = job_board().ended;
  if (ended == 0) return;
  tell_links();
  _exit(ended - 1);
}

[[noreturn]] void end_by(int signal) {
  LineBuffer line;
  line << "ended by " << signal_name(signal) << " in ";
  say_where(line);
  say_last_words({line.data(), line.size()});
  expect_end(stop_exit_code(signal));
  _exit(stop_exit_code(signal));
}

// Without having said that it may end: of this node, or at the other end of a link.
bool a_rank_has_died() {
  for (size_t i = 0; i < link_count; ++i) {
    pollfd link{links[i], POLLRDHUP, 0};
    if (::poll(&link, 1, 0) > 0) return true;
  }
  const JobBoard& board = job_board();
  for (int place = 0; place < board.records; ++place) {
    const RankRecord& record = board.record[place];
    const int process = record.process;
    if (process > 0 && record.finished == 0 && kill(process, 0) != 0 && errno == ESRCH) return true;
  }
  return false;
}

// Whether the watchdog is about to say why a launcher ends this rank; does not return when it has been said. Elsewhere it may have
// been, and the word be on its way or not read yet: by a rank that was stopped until the launcher had it go on. Rank 0 is the first
// to give up waiting, where all are ended at once.
bool watchdog_will_tell() {
  constexpr int kTurns = 20, kFirst = 10, kOthers = 25;  // milliseconds
  const int turn = own_record().rank.load(std::memory_order_relaxed) == 0 ? kFirst : kOthers;
  for (int i = 0; !a_rank_has_died(); ++i) {
    if (link_count == 0 || i == kTurns) return false;
    ::poll(nullptr, 0, turn);
    leave_if_ended();
  }
  return true;
}

bool is_interrupt(int signal) { return signal == SIGINT || signal == SIGUSR2; }

void on_stop(int signal) {
  const int saved_errno = errno;
  leave_if_ended();
  const auto mode = static_cast<StopMode>(stop_mode.load());
  if (is_interrupt(signal) && mode == StopMode::answer) {
    interrupted = true;
  } else if (is_interrupt(signal) && mode == StopMode::prompt && hints++ == 0) {
    write_line("\nCtrl-C again, or /exit, leaves\n> ");
  } else if (is_interrupt(signal) && mode == StopMode::follow) {
    // rank 0 knows what it means
  } else if (is_interrupt(signal) && mode == StopMode::prompt) {
    expect_end(stop_exit_code(signal));
    write_line("\n");
    _exit(stop_exit_code(signal));
  } else if (mode == StopMode::at_once || mode == StopMode::prompt || stops++ > 0) {
    if (is_interrupt(signal) || deferred++ > 0 || !watchdog_will_tell()) end_by(signal);
  } else {
    int32_t none = 0;
    if (job_board().stop_signal.compare_exchange_strong(none, signal)) tell_links();
  }
  errno = saved_errno;
}

void on_terminate() {
  std::string what = "an exception that nobody caught";
  try {
    if (std::current_exception()) std::rethrow_exception(std::current_exception());
  } catch (const std::exception& error) {
    what = error.what();
  } catch (...) {
  }
  LineBuffer line;
  line << "internal error: " << what.c_str() << " in ";
  say_where(line);
  say_last_words({line.data(), line.size()});
  expect_end(static_cast<int>(ErrorKind::internal));
  _exit(static_cast<int>(ErrorKind::internal));
}

void on_exit_call() {
  if (may_exit || job_board().ended != 0) return;
  LineBuffer line;
  line << "exit was called in ";
  say_where(line);
  say_last_words({line.data(), line.size()});
  expect_end(static_cast<int>(ErrorKind::internal));
  _exit(static_cast<int>(ErrorKind::internal));
}

}  // namespace

bool say_last_words(std::string_view message) {
  if (!claim()) return false;
  // As log_line, in memory that is there already.
  char text[8192];
  size_t size = 0;
  for (const std::string_view part : {log_prefix(), message})
    for (const char c : part)
      if (size < sizeof text - 1) text[size++] = static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  text[size++] = '\n';
  write_line({text, size});
  if (marker_path[0] != '\0') {
    ::close(reserve.exchange(-1));
    const int marker = ::open(marker_path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (marker >= 0) ::close(marker);
  }
  return true;
}

void expect_end(int code) {
  int32_t open = 0;
  if (!job_board().ended.compare_exchange_strong(open, code + 1)) return;
  tell_links();
}

void set_links(const std::vector<int>& sockets) {
  link_count = 0;
  const size_t count = std::min(sockets.size(), kMostLinks);
  for (size_t i = 0; i < count; ++i) links[i] = sockets[i];
  link_count = count;
}

const char* host_name() { return host; }

void install_signal_handlers() {
  if (gethostname(host, sizeof host - 1) != 0) host[0] = '?';
  if (const char* path = std::getenv("PQ_LAST_WORDS"); path != nullptr && std::strlen(path) < sizeof marker_path)
    std::memcpy(marker_path, path, std::strlen(path) + 1);
  if (marker_path[0] != '\0') reserve = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  stack_t stack{};
  stack.ss_sp = handler_stack;
  stack.ss_size = sizeof handler_stack;
  sigaltstack(&stack, nullptr);
  struct sigaction action {};
  sigfillset(&action.sa_mask);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  // A sanitizer reports crashes itself.
  action.sa_sigaction = on_crash;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) sigaction(signal, &action, nullptr);
#endif
  action.sa_handler = on_stop;
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1, SIGUSR2}) sigaction(signal, &action, nullptr);
  std::signal(SIGXFSZ, SIG_IGN);
  std::signal(SIGXCPU, SIG_IGN);
  std::set_terminate(on_terminate);
  std::atexit(on_exit_call);
}

void finish_signals() { may_exit = true; }

StopModeScope::StopModeScope(StopMode mode) : before_(stop_mode.exchange(static_cast<int>(mode))) { hints = 0; }
StopModeScope::~StopModeScope() { stop_mode = before_; }

int stop_signal() { return job_board().stop_signal.load(std::memory_order_relaxed); }
bool take_interrupt() { return interrupted.exchange(false); }
int stop_exit_code(int signal) { return kSignalCode + (is_interrupt(signal) ? SIGINT : SIGTERM); }

const char* signal_name(int signal) {
  switch (signal) {
    case SIGSEGV:
      return "SIGSEGV";
    case SIGBUS:
      return "SIGBUS";
    case SIGFPE:
      return "SIGFPE";
    case SIGILL:
      return "SIGILL";
    case SIGABRT:
      return "SIGABRT";
    case SIGTERM:
      return "SIGTERM";
    case SIGINT:
      return "SIGINT";
    case SIGUSR1:
      return "SIGUSR1";
    case SIGUSR2:
      return "SIGUSR2";
    default:
      return "a signal";
  }
}

}  // namespace pq
