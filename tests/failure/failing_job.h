// Jobs that fail on demand: real programs under launch/pq with PQ_FAULT, and what is left of them afterwards.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "support/demo_model.h"
#include "support/process.h"

namespace pq::test {

using Words = std::vector<std::string>;

inline std::string launcher() { return std::string(PQ_TEST_DATA) + "/../../launch/pq"; }

// `program` of the build on `ranks` ranks under launch/pq.
inline Words launched(int ranks, const std::string& program, const Words& arguments) {
  Words words = {launcher(), "-np", std::to_string(ranks), std::string(PQ_BIN_DIR) + "/" + program};
  words.insert(words.end(), arguments.begin(), arguments.end());
  return words;
}

struct FailedJob {
  ProcessResult result;
  bool faulted = false;
  double seconds_to_end = 0;  // from the fault until no process of the job lives
  Words lines;                // of stderr, without what a healthy run says too
};

// Living processes whose environment holds `entry`. A zombie's is empty.
inline std::vector<pid_t> pids_with(const std::string& entry) {
  std::vector<pid_t> pids;
  std::error_code ignored;
  for (const auto& process : std::filesystem::directory_iterator("/proc", ignored)) {
    const std::string name = process.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    if (read_file(process.path().string() + "/environ").find(entry) != std::string::npos)
      pids.push_back(static_cast<pid_t>(std::stoi(name)));
  }
  return pids;
}

// Ranks of the job that was started with `entry` in its environment, by number.
inline std::vector<pid_t> ranks_with(const std::string& entry) {
  const std::string name = "OMPI_COMM_WORLD_RANK=";
  std::vector<pid_t> ranks;
  for (const pid_t process : pids_with(entry)) {
    const std::string environment = read_file("/proc/" + std::to_string(process) + "/environ");
    const size_t at = environment.find(name);
    if (at == std::string::npos) continue;
    const auto rank = static_cast<size_t>(std::atoi(environment.c_str() + at + name.size()));
    ranks.resize(std::max(ranks.size(), rank + 1), 0);
    ranks[rank] = process;
  }
  return ranks;
}

inline size_t processes_with(const std::string& entry) { return pids_with(entry).size(); }

inline double now_seconds() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Lines that a healthy run prints too.
inline bool is_news_of_a_healthy_run(const std::string& line) {
  const size_t colon = line.find(": ");
  if (colon == std::string::npos) return false;
  const std::string text = line.substr(colon + 2);
  for (const char* start : {"cpu (", "cuda (", "GPUs add by ", "loaded ", "prefill ", "reading the prompt "})
    if (text.rfind(start, 0) == 0) return true;
  return text.rfind("rank ", 0) == 0 && text.find(" weights, ") != std::string::npos;
}

// Runs `command` with PQ_FAULT=`fault`.
inline FailedJob run_with_fault(const std::string& fault, const Words& command) {
  TemporaryDirectory directory;
  const std::string mark = directory.path() + "/acted";
  Words words = {"env", "PQ_FAULT=" + fault, "PQ_FAULT_MARK=" + mark};
  words.insert(words.end(), command.begin(), command.end());
  FailedJob job;
  job.result = run_process(words, "", 60);
  const double limit = now_seconds() + 20 * kTimeFactor;
  while (processes_with(mark) > 0 && now_seconds() < limit) usleep(5000);
  const double end = now_seconds();
  struct stat info {};
  job.faulted = ::stat(mark.c_str(), &info) == 0;
  if (job.faulted)
    job.seconds_to_end = end - static_cast<double>(info.st_mtim.tv_sec) - 1e-9 * static_cast<double>(info.st_mtim.tv_nsec);
  for (const std::string& line : lines_of(job.result.err))
    if (!is_news_of_a_healthy_run(line)) job.lines.push_back(line);
  return job;
}

// One line that matches, that code, and the last end within `death_seconds`, or `stall_seconds` where the line says that nothing
// moves.
inline void expect_one_line(const FailedJob& job, int code, const char* line, double death_seconds, double stall_seconds) {
  EXPECT_TRUE(job.faulted) << "the fault never came";
  EXPECT_EQ(job.result.code, code) << job.result.err;
  ASSERT_EQ(job.lines.size(), 1u) << job.result.err;
  EXPECT_THAT(job.lines[0], testing::ContainsRegex(line));
  const bool stalls = job.lines[0].find("no progress") != std::string::npos;
  EXPECT_LT(job.seconds_to_end, (stalls ? stall_seconds : death_seconds) * kTimeFactor);
}

// A job that runs while the test talks to it. Ended with SIGKILL if the test leaves it behind.
class LiveJob {
 public:
  explicit LiveJob(const Words& command, const Words& environment = {}) {
    int in[2];
    if (pipe2(in, O_CLOEXEC) != 0) throw std::runtime_error("pipe2 failed");
    process_ = fork();
    if (process_ == 0) {
      dup2(in[0], STDIN_FILENO);
      dup2(open(path("out").c_str(), O_WRONLY | O_CREAT, 0600), STDOUT_FILENO);
      dup2(open(path("err").c_str(), O_WRONLY | O_CREAT, 0600), STDERR_FILENO);
      for (const auto& [name, value] : mpi_environment()) setenv(name.c_str(), value.c_str(), 0);
      for (const std::string& entry : environment) putenv(const_cast<char*>(entry.c_str()));
      std::vector<char*> argv;
      for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
      argv.push_back(nullptr);
      execvp(argv[0], argv.data());
      _exit(127);
    }
    close(in[0]);
    input_ = in[1];
  }
  ~LiveJob() {
    close(input_);
    if (process_ <= 0) return;
    kill(process_, SIGKILL);
    waitpid(process_, nullptr, 0);
  }
  LiveJob(const LiveJob&) = delete;
  LiveJob& operator=(const LiveJob&) = delete;

  std::string out() const { return read_file(path("out")); }
  std::string err() const { return read_file(path("err")); }
  void say(const std::string& text) { EXPECT_EQ(write(input_, text.data(), text.size()), static_cast<ssize_t>(text.size())); }
  void signal(int number) { kill(process_, number); }
  pid_t process() const { return process_; }
  // Until `condition` holds; false after 30 s (by kTimeFactor).
  template <typename Condition>
  bool wait_until(const Condition& condition) const {
    for (const double limit = now_seconds() + 30 * kTimeFactor; now_seconds() < limit; usleep(2000))
      if (condition()) return true;
    return false;
  }
  // The exit code.
  int finish() {
    int status = 0;
    waitpid(process_, &status, 0);
    process_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  std::string path(const std::string& name) const { return directory_.path() + "/" + name; }

  TemporaryDirectory directory_;
  pid_t process_ = -1;
  int input_ = -1;
};

}  // namespace pq::test
