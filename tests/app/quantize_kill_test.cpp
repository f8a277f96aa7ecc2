// pq-quantize killed without warning: real jobs of two ranks, real SIGKILL, at random moments; then the same command with another
// number of ranks.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "support/demo_model.h"
#include "support/process.h"
#include "support/refusal.h"
#include "support/store_files.h"

namespace pq {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::ends_with;
using test::Files;
using test::times_of;

// Processes whose parent is `parent`.
std::vector<pid_t> children_of(pid_t parent) {
  std::vector<pid_t> children;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const std::string stat = test::read_file(entry.path().string() + "/stat");
    const size_t end = stat.rfind(')');  // the name of the program may hold anything
    if (end != std::string::npos && stat.size() > end + 4 && std::atoi(stat.c_str() + end + 4) == parent) {
      children.push_back(static_cast<pid_t>(std::stoi(name)));
    }
  }
  return children;
}

// Gone, or dead and waiting for its parent.
bool is_dead(pid_t process) {
  const std::string stat = test::read_file("/proc/" + std::to_string(process) + "/stat");
  const size_t end = stat.rfind(')');
  return end == std::string::npos || stat[end + 2] == 'Z' || stat[end + 2] == 'X';
}

size_t notes_in(const std::string& store) {
  std::error_code absent;
  size_t count = 0;
  for (fs::directory_iterator entry(store, absent), end; !absent && entry != end; entry.increment(absent)) {
    const std::string name = entry->path().filename().string();
    count += name.rfind("shard-", 0) == 0 && ends_with(name, ".json");
  }
  return count;
}

// Starts a job and kills it without warning `delay` after `shards` of its shards are finished: one rank only, whose launcher then
// ends the other one, or ranks and launcher. Returns the number of ranks it found, when all of them are dead.
size_t kill_job(const std::vector<std::string>& command, const std::string& store, size_t shards, std::chrono::microseconds delay,
                bool one_rank) {
  const pid_t launcher = fork();
  if (launcher == 0) {
    for (const int stream : {0, 1, 2}) dup2(open("/dev/null", O_RDWR), stream);
    for (const auto& [name, value] : test::mpi_environment()) setenv(name.c_str(), value.c_str(), 0);
    std::vector<char*> argv;
    for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    execvp(argv[0], argv.data());
    _exit(127);
  }
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  const auto wait_until = [&](const auto& condition) {
    while (!condition() && std::chrono::steady_clock::now() < limit) usleep(500);
    EXPECT_TRUE(condition());
  };
  wait_until(
      [&] { return (fs::exists(store + "/job.json") && notes_in(store) >= shards) || fs::exists(store + "/manifest.json"); });
  std::this_thread::sleep_for(delay);
  const std::vector<pid_t> ranks = children_of(launcher);
  for (const pid_t rank : ranks) {
    kill(rank, SIGKILL);
    if (one_rank) break;
  }
  if (!one_rank) kill(launcher, SIGKILL);
  waitpid(launcher, nullptr, 0);
  for (const pid_t rank : ranks) wait_until([&] { return is_dead(rank); });
  return ranks.size();
}

TEST(KilledQuantize, GoesOnAtAnyRankCountAndKeepsWhatIsFinished) {
  test::TemporaryDirectory directory;
  const auto quantize = [](int ranks, const std::vector<std::string>& arguments) {
    return test::run_process(test::program_command(ranks, "pq-quantize", arguments));
  };
  const std::string clean = directory.path() + "/clean";
  ASSERT_EQ(quantize(0, {test::demo_path(), clean}).code, 0);
  const Files alone = test::files_of(clean);
  std::random_device random;
  // A shard takes the reference backend about 70 ms.
  for (const size_t shards : {0, 2, 5}) {
    const std::string store = directory.path() + "/killed" + std::to_string(shards);
    bool landed = false;
    for (int attempt = 0; attempt < 10 && !landed; ++attempt) {
      fs::remove_all(store);
      const std::chrono::microseconds delay(random() % 50'000);
      SCOPED_TRACE(std::to_string(delay.count()) + " us after shard " + std::to_string(shards));
      const size_t ranks = kill_job(test::program_command(2, "pq-quantize", {test::demo_path(), store, "--device", "reference"}),
                                    store, shards, delay, shards != 2);
      // The manifest comes last: with it the kill came too late.
      landed = ranks == 2 && fs::exists(store + "/job.json") && !fs::exists(store + "/manifest.json");
    }
    ASSERT_TRUE(landed) << "no kill came in time";
    SCOPED_TRACE("after shard " + std::to_string(shards));
    test::expect_only_whole_shards(store, alone);
    const size_t finished = notes_in(store);
    EXPECT_GE(finished, shards);
    std::map<std::string, fs::file_time_type> kept;
    for (const auto& [name, time] : times_of(store, ".h5")) {
      if (fs::exists(store + "/" + name.substr(0, name.size() - 3) + ".json")) kept[name] = time;
    }
    EXPECT_EQ(kept.size(), finished);
    EXPECT_THAT(test::refusal_line("pq-quantize", quantize(1, {test::demo_path(), store, "--format", "pq4"}), {64}),
                testing::HasSubstr("--force"));

    const int ranks = shards == 0 ? 1 : shards == 2 ? 3 : 4;
    const auto result = quantize(ranks, {test::demo_path(), store, "--json"});
    ASSERT_EQ(result.code, 0) << result.err;
    const json report = json::parse(result.out);
    EXPECT_EQ(report["shards_found_finished"], finished);
    EXPECT_EQ(report["already_complete"], false);
    test::expect_same(alone, test::files_of(store));
    const auto times = times_of(store, ".h5");
    for (const auto& [name, time] : kept) EXPECT_EQ(times.at(name), time) << name << " was written again";
  }
}

}  // namespace
}  // namespace pq
