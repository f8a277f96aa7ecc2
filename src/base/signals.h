// Signals and the last line of a job. A job that fails leaves one line, said by whichever rank of the node comes first; handlers
// say it with what the rank was doing. Requests to stop are only noted here: whoever has something to finish asks for them. How the
// other ranks are ended is left to comm/session.h.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

namespace pq {

// Writes `message` as the line of the job unless a rank of this node has said one. Fit for signal handlers. True when written.
// The file that PQ_LAST_WORDS names is then made, by which a wrapper of the launcher learns that somebody spoke.
bool say_last_words(std::string_view message);

// The job ends with `code`: from now on the end of another rank of the node, or a signal of the launcher, is no news. The other
// ends of links are told. Fit for signal handlers.
void expect_end(int code);

// Sockets to ranks of other nodes, at most kMostLinks: when the other end is closed its rank is gone. None after set_links({}).
inline constexpr size_t kMostLinks = 64;
void set_links(const std::vector<int>& sockets);

// "node7".
const char* host_name();

// After MPI_Init, which installs handlers of its own. Crashes (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT) say the line and then take
// the process with the same signal; SIGXFSZ and SIGXCPU are ignored, so that the calls that cause them fail instead. Also says the
// line for an exception that nobody catches and for exit() before finish_signals(). PQ_LAST_WORDS is read here.
void install_signal_handlers();

// The process may now exit as it likes.
void finish_signals();

// What the first SIGTERM or SIGUSR1 and the first SIGINT (a launcher passes it on as SIGUSR2) do in this process.
enum class StopMode : int {
  at_once,  // end the process, with the line
  finish,   // be noted for stop_signal()
  follow,   // as finish, but SIGINT is nothing: rank 0 knows what it means
  answer,   // SIGINT is noted for take_interrupt(), the others for stop_signal()
  prompt,   // at a prompt: the first SIGINT gives a hint, the second ends the process; the others end it
};
// A second SIGTERM, SIGUSR1 (or SIGINT, but in `follow` and `answer`) ends the process in every mode.
class StopModeScope {
 public:
  explicit StopModeScope(StopMode mode);
  ~StopModeScope();
  StopModeScope(const StopModeScope&) = delete;
  StopModeScope& operator=(const StopModeScope&) = delete;

 private:
  const int before_;
};

// The signal that asked this rank, or another one of the node, for an orderly stop; 0: none.
int stop_signal();
// Whether SIGINT came since the last call.
bool take_interrupt();
// 130 for SIGINT and SIGUSR2, 143 for SIGTERM and SIGUSR1.
int stop_exit_code(int signal);
// "SIGTERM".
const char* signal_name(int signal);

}  // namespace pq
