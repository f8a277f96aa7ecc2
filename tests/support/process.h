// Runs real programs from tests: standard input given, both outputs captured, a deadline, the MPI environment of a build machine.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace pq::test {

// Limits of time are multiplied by it: sanitizers slow everything, arithmetic most.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr double kTimeFactor = 10;
#else
inline constexpr double kTimeFactor = 1;
#endif

struct ProcessResult {
  int code = -1;  // exit code, 128 + signal, or -1 when the deadline passed
  std::string out;
  std::string err;
  double seconds = 0;
};

// Environment entries are added where they are not set already.
inline const std::vector<std::pair<std::string, std::string>>& mpi_environment() {
  static const std::vector<std::pair<std::string, std::string>> entries = {{"OMPI_ALLOW_RUN_AS_ROOT", "1"},
                                                                           {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"},
                                                                           {"OMPI_MCA_rmaps_base_oversubscribe", "1"},
                                                                           {"OMPI_MCA_hwloc_base_binding_policy", "none"},
                                                                           {"EVENT_NOEPOLL", "1"}};
  return entries;
}

// Runs `command` (argv, searched in PATH) in a process group of its own, which is killed when `limit_seconds` (by kTimeFactor)
// pass.
inline ProcessResult run_process(const std::vector<std::string>& command, const std::string& input = "",
                                 double limit_seconds = 60) {
  int in[2], out[2], err[2];
  if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0)
    throw std::runtime_error("pipe2 failed");
  std::vector<char*> argv;
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) {
    setpgid(0, 0);
    dup2(in[0], STDIN_FILENO);
    dup2(out[1], STDOUT_FILENO);
    dup2(err[1], STDERR_FILENO);
    for (const auto& [name, value] : mpi_environment()) setenv(name.c_str(), value.c_str(), 0);
    execvp(argv[0], argv.data());
    _exit(127);
  }
  close(in[0]);
  close(out[1]);
  close(err[1]);
  signal(SIGPIPE, SIG_IGN);
  fcntl(in[1], F_SETFL, O_NONBLOCK);
  ProcessResult result;
  size_t written = 0;
  int write_fd = in[1];
  std::vector<std::pair<int, std::string*>> streams = {{out[0], &result.out}, {err[0], &result.err}};
  bool late = false;
  while (!streams.empty() && !late) {
    if (write_fd >= 0 && written == input.size()) {
      close(write_fd);
      write_fd = -1;
    }
    std::vector<pollfd> polls;
    for (const auto& stream : streams) polls.push_back({stream.first, POLLIN, 0});
    if (write_fd >= 0) polls.push_back({write_fd, POLLOUT, 0});
    poll(polls.data(), polls.size(), 100);
    if (write_fd >= 0 && polls.back().revents != 0) {
      const ssize_t count = write(write_fd, input.data() + written, input.size() - written);
      written = count > 0 ? written + static_cast<size_t>(count) : input.size();
    }
    for (size_t i = streams.size(); i-- > 0;) {
      if (polls[i].revents == 0) continue;
      char buffer[65536];
      const ssize_t count = read(streams[i].first, buffer, sizeof buffer);
      if (count > 0) {
        streams[i].second->append(buffer, static_cast<size_t>(count));
      } else {
        close(streams[i].first);
        streams.erase(streams.begin() + static_cast<ptrdiff_t>(i));
      }
    }
    late = elapsed() > limit_seconds * kTimeFactor;
  }
  if (late) kill(-child, SIGKILL);
  for (const auto& stream : streams) close(stream.first);
  if (write_fd >= 0) close(write_fd);
  int status = 0;
  waitpid(child, &status, 0);
  result.seconds = elapsed();
  if (!late) result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

// `program` of the build with its arguments, under mpirun when ranks > 0, alone when ranks is 0.
inline std::vector<std::string> program_command(int ranks, const std::string& program, const std::vector<std::string>& arguments) {
  std::vector<std::string> command;
  if (ranks > 0) command = {PQ_MPIEXEC, "--quiet", "-n", std::to_string(ranks)};
  command.push_back(std::string(PQ_BIN_DIR) + "/" + program);
  command.insert(command.end(), arguments.begin(), arguments.end());
  return command;
}

// Lines of `text`, without the line ends; a last line without one counts.
inline std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

}  // namespace pq::test
