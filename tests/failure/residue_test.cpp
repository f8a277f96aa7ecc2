// What a killed job leaves on the machine: nothing where launch/pq survives it, otherwise one directory, which the next job
// removes.
#include <chrono>

#include "failure/failing_job.h"

namespace pq {
namespace {

namespace fs = std::filesystem;
using test::Words;

Words generation() { return {"-m", test::demo_path(), "-p", "Once upon a time", "-n", "8", "--temp", "0"}; }

// The directory of a job whose processes have `entry` in their environment.
fs::path job_directory(const std::string& entry) {
  for (const pid_t process : test::pids_with(entry)) {
    const std::string environment = test::read_file("/proc/" + std::to_string(process) + "/environ");
    const std::string name = "PQ_LAST_WORDS=";
    if (const size_t at = environment.find(name); at != std::string::npos)
      return fs::path(environment.substr(at + name.size(), environment.find('\0', at) - at - name.size())).parent_path();
  }
  return {};
}

size_t segments_in(const fs::path& directory) {
  size_t count = 0;
  for (const auto& entry : fs::directory_iterator(directory))
    count += entry.path().filename().string().rfind("vader_segment.", 0) == 0;
  return count;
}

// Kills the processes that `is_to_die` picks of a job whose ranks all hang, and returns its directory.
fs::path killed_job(const std::function<bool(pid_t launcher, pid_t process)>& is_to_die) {
  test::TemporaryDirectory directory;
  const std::string mark = "PQ_FAULT_MARK=" + directory.path() + "/acted";
  test::LiveJob job(test::launched(2, "pq-run", generation()), {"PQ_FAULT=hang:decode:step=2", mark});
  EXPECT_TRUE(job.wait_until([&] { return fs::exists(directory.path() + "/acted"); })) << job.err();
  fs::path left = job_directory(mark);
  EXPECT_NE(left, fs::path());
  EXPECT_EQ(segments_in(left), 2u) << left;
  for (const pid_t process : test::pids_with(mark))
    if (is_to_die(job.process(), process)) kill(process, SIGKILL);
  job.finish();
  EXPECT_TRUE(job.wait_until([&] { return test::processes_with(mark) == 0; }));
  return left;
}

TEST(Residue, NothingOfAJobWhoseRanksAreKilled) {
  const fs::path left = killed_job([](pid_t launcher, pid_t process) {
    return fs::read_symlink("/proc/" + std::to_string(process) + "/exe").filename() == "pq-run" && process != launcher;
  });
  EXPECT_FALSE(fs::exists(left)) << left;
}

TEST(Residue, TheNextJobRemovesWhatAJobKilledWithItsLauncherLeft) {
  const fs::path left = killed_job([](pid_t, pid_t) { return true; });
  EXPECT_TRUE(fs::exists(left));
  // What is younger than a minute may belong to a launcher that has not locked it yet.
  fs::last_write_time(left, fs::file_time_type::clock::now() - std::chrono::minutes(2));
  const auto next = test::run_process(test::launched(1, "pq-run", generation()));
  EXPECT_EQ(next.code, 0) << next.err;
  EXPECT_FALSE(fs::exists(left)) << left;
}

}  // namespace
}  // namespace pq
