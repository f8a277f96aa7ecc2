// Disks, permissions, memory and descriptors that run out, and files that change while they are read: one line, the documented
// code, no partial file under a final name, and the same command goes on when the cause is gone.
#include <sys/resource.h>

#include "failure/failing_job.h"
#include "support/refusal.h"
#include "support/store_files.h"

namespace pq {
namespace {

namespace fs = std::filesystem;
using test::Words;
using testing::HasSubstr;

std::string quoted(const Words& words) {
  std::string text;
  for (const std::string& word : words) text += "'" + word + "' ";
  return text;
}

// `words` after `setup`, in one shell.
test::ProcessResult run_after(const std::string& setup, const Words& words, double limit_seconds = 60) {
  return test::run_process({"sh", "-c", setup + " && exec " + quoted(words)}, "", limit_seconds);
}

Words quantize(int ranks, const std::string& source, const std::string& store) {
  return test::launched(ranks, "pq-quantize", {source, store});
}

class Resources : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    directory_ = new test::TemporaryDirectory;
    ASSERT_EQ(test::run_process(quantize(1, test::demo_path(), clean_path())).code, 0);
  }
  static void TearDownTestSuite() {
    delete directory_;
    directory_ = nullptr;
  }
  static std::string path(const std::string& name) { return directory_->path() + "/" + name; }
  static std::string clean_path() { return path("clean"); }

  // What a refused job left at `store` is whole, and the command makes the store now.
  static void expect_whole_and_resumed(const std::string& source, const std::string& store) {
    test::expect_only_whole_shards(store, test::files_of(clean_path()));
    const auto resumed = test::run_process(quantize(2, source, store));
    ASSERT_EQ(resumed.code, 0) << resumed.err;
    test::expect_same(test::files_of(clean_path()), test::files_of(store));
  }

 private:
  static test::TemporaryDirectory* directory_;
};

test::TemporaryDirectory* Resources::directory_ = nullptr;

// RLIMIT_FSIZE refuses as a full disk does, and needs no rights. The shards of the demo model have 100 to 500 kB.
TEST_F(Resources, FilesThatMayNotGrow) {
  const std::string store = path("limited");
  // Blocks of 512 bytes. Under a launcher the limit would hit the transport's own files.
  const auto result = run_after("ulimit -f 300", {std::string(PQ_BIN_DIR) + "/pq-quantize", test::demo_path(), store});
  EXPECT_THAT(test::refusal_line("pq-quantize", result, {74}), HasSubstr(store));
  expect_whole_and_resumed(test::demo_path(), store);
}

TEST_F(Resources, FullAndReadOnlyDisks) {
  if (test::run_process({"unshare", "-m", "true"}).code != 0) GTEST_SKIP() << "mounting needs the rights of root";
  const std::string store = path("full/store");
  fs::create_directories(path("full"));
  const std::string command = quoted(quantize(2, test::demo_path(), store));
  const auto result =
      test::run_process({"unshare", "-m", "sh", "-c",
                         "mount -t tmpfs -o size=1500k none " + path("full") + " && " + command + "; code=$?; ls " + store + " > " +
                             path("listing") + "; mount -o remount,size=64m " + path("full") + " && " + command +
                             " 2> /dev/null && diff -r " + store + " " + clean_path() + " || exit 99; exit $code"});
  EXPECT_THAT(test::refusal_line("pq-quantize", result, {74}), testing::ContainsRegex("No space left on device|is the disk full"));
  EXPECT_THAT(test::read_file(path("listing")), testing::Not(HasSubstr("manifest.json")));

  fs::create_directories(path("fixed"));
  const auto fixed = test::run_process(
      {"unshare", "-m", "sh", "-c",
       "mount -t tmpfs -o ro none " + path("fixed") + " && exec " + quoted(quantize(2, test::demo_path(), path("fixed/store")))});
  EXPECT_THAT(test::refusal_line("pq-quantize", fixed, {74}), HasSubstr("Read-only file system"));
}

TEST_F(Resources, PermissionDenied) {
  fs::create_directories(path("locked"));
  fs::permissions(path("locked"), fs::perms::owner_read | fs::perms::owner_exec | fs::perms::others_read | fs::perms::others_exec);
  Words words = {std::string(PQ_BIN_DIR) + "/pq-quantize", test::demo_path(), path("locked/store")};
  // Permissions do not bind root.
  if (getuid() == 0) {
    fs::permissions(path(""), fs::perms::all);
    words.insert(words.begin(), {"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"});
  }
  EXPECT_THAT(test::refusal_line("pq-quantize", test::run_process(words), {74}), HasSubstr("Permission denied"));
}

TEST_F(Resources, DescriptorsRunOut) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "UBSan needs descriptors itself to look at an object's type";
#endif
  // The shards of a store are opened together: 10, after 3 streams and the watchdog's.
  const auto result = run_after("ulimit -n 10", {std::string(PQ_BIN_DIR) + "/pq-run", "-m", clean_path(), "-p", "x", "-n", "2"});
  EXPECT_THAT(test::refusal_line("pq-run", result, {74}), HasSubstr("Too many open files"));
}

TEST_F(Resources, AddressSpaceRunsOut) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer needs the address space for itself";
#endif
  // KiB: enough to start, too little for a cache of 4096 positions.
  const Words alone = {std::string(PQ_BIN_DIR) + "/pq-run", "-m", clean_path(), "-p", "x", "-n", "2", "-t", "1"};
  test::refusal_line("pq-run", run_after("ulimit -v 40000", alone), {69});
}

// What `process` may have of `resource` from now on.
void allow(pid_t process, __rlimit_resource resource, rlim_t amount) {
  const rlimit limit{amount, amount};
  ASSERT_EQ(prlimit(process, resource, &limit, nullptr), 0);
}

// Stops a job at a point, changes a file, and lets it go on.
int change_under(const Words& command, const std::string& fault, const std::function<void(pid_t process)>& change,
                 std::string* err) {
  test::TemporaryDirectory directory;
  const std::string mark = directory.path() + "/acted";
  fs::permissions(directory.path(), fs::perms::all);
  test::LiveJob job(command, {"PQ_FAULT=" + fault, "PQ_FAULT_MARK=" + mark});
  EXPECT_TRUE(job.wait_until([&] { return fs::exists(mark); }));
  usleep(20'000);
  change(job.process());
  job.signal(SIGCONT);
  const int code = job.finish();
  *err = job.err();
  return code;
}

// A job that has finished two shards may have no more of something; when it may again, the same command makes the same store.
TEST_F(Resources, JobsGoOnAfterDescriptorsRanOut) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "UBSan needs descriptors itself to look at an object's type";
#endif
  const std::string store = path("few_descriptors");
  std::string err;
  const int code = change_under(
      {std::string(PQ_BIN_DIR) + "/pq-quantize", test::demo_path(), store, "--watchdog", "0"}, "stop:quantise:nth=4",
      [&](pid_t process) { allow(process, RLIMIT_NOFILE, 4); }, &err);
  EXPECT_EQ(code, 74) << err;
  EXPECT_EQ(test::lines_of(err).size(), 1u) << err;
  EXPECT_THAT(err, testing::AllOf(HasSubstr(store), HasSubstr("Too many open files")));
  EXPECT_TRUE(fs::exists(store + "/shard-00001.json"));
  expect_whole_and_resumed(test::demo_path(), store);
}

TEST_F(Resources, JobsGoOnAfterAddressSpaceRanOut) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer needs the address space for itself";
#endif
  const std::string store = path("little_memory");
  std::string err;
  const int code = change_under(
      {std::string(PQ_BIN_DIR) + "/pq-quantize", test::demo_path(), store, "--watchdog", "0"}, "stop:quantise:nth=4",
      [&](pid_t process) { allow(process, RLIMIT_AS, 1 << 20); }, &err);
  EXPECT_EQ(code, 69) << err;
  EXPECT_EQ(test::lines_of(err).size(), 1u) << err;
  EXPECT_TRUE(fs::exists(store + "/shard-00001.json"));
  expect_whole_and_resumed(test::demo_path(), store);
}

TEST_F(Resources, JobsGoOnAfterPermissionWasDenied) {
  const std::string store = path("taken");
  Words words = {std::string(PQ_BIN_DIR) + "/pq-quantize", test::demo_path(), store, "--device", "reference"};
  // The directory may not be written to from the third shard on.
  if (getuid() == 0) {
    fs::permissions(path(""), fs::perms::all);
    fs::create_directories(store);
    ASSERT_EQ(chown(store.c_str(), 65534, 65534), 0);
    words.insert(words.begin(), {"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"});
  }
  std::string err;
  const int code = change_under(
      words, "stop:quantise:nth=4", [&](pid_t) { fs::permissions(store, fs::perms::owner_read | fs::perms::owner_exec); }, &err);
  EXPECT_EQ(code, 74) << err;
  EXPECT_EQ(test::lines_of(err).size(), 1u) << err;
  EXPECT_THAT(err, testing::AllOf(HasSubstr(store), HasSubstr("Permission denied")));
  fs::permissions(store, fs::perms::owner_all);
  EXPECT_TRUE(fs::exists(store + "/shard-00001.json"));
  expect_whole_and_resumed(test::demo_path(), store);
}

// A reader that has what it wants is no failure of the job's.
TEST_F(Resources, TheReaderOfTheOutputGoes) {
  const std::string code = path("code");
  const Words words = test::launched(2, "pq-run", {"-m", clean_path(), "-p", "Once upon a time", "-n", "2000", "--temp", "0"});
  const auto result = test::run_process({"sh", "-c", "{ " + quoted(words) + "; echo $? > " + code + "; } | head -c 3"});
  EXPECT_EQ(result.out.size(), 3u);
  EXPECT_EQ(test::read_file(code), "141\n");
  for (const std::string& line : test::lines_of(result.err)) EXPECT_TRUE(test::is_news_of_a_healthy_run(line)) << line;
  EXPECT_LT(result.seconds, 20 * test::kTimeFactor);
}

// The line is the rank's and no other: what tells launch/pq that a rank spoke needs a descriptor too.
TEST_F(Resources, DescriptorsOfLaunchedRanksRunOut) {
  const std::string run = quoted({std::string(PQ_BIN_DIR) + "/pq-run", "-m", clean_path(), "-p", "x", "-n", "2"});
  // Fewer and fewer, so that a shard, then the configuration cannot be opened; then Open MPI does not start.
  for (int count = 30; count > 14; --count) {
    const auto result = test::run_process(
        {test::launcher(), "-np", "2", "/bin/sh", "-c", "ulimit -n " + std::to_string(count) + " && exec " + run});
    if (result.code == 0) continue;
    if (result.code != 74) break;
    EXPECT_THAT(test::refusal_line("pq-run", result, {74}), HasSubstr("Too many open files")) << count;
  }
}

TEST_F(Resources, SourceTruncatedWhileItIsQuantised) {
  const std::string source = path("source"), store = path("truncated");
  fs::copy(test::demo_path(), source);
  const std::string names[] = {"/model.safetensors-00001-of-00002.safetensors", "/model.safetensors-00002-of-00002.safetensors"};
  std::string err;
  const int code = change_under(
      {std::string(PQ_BIN_DIR) + "/pq-quantize", source, store, "--watchdog", "0"}, "stop:quantise:nth=3",
      [&](pid_t) {
        for (const std::string& name : names) fs::resize_file(source + name, 100'000);
      },
      &err);
  EXPECT_EQ(code, 65) << err;
  EXPECT_EQ(test::lines_of(err).size(), 1u) << err;
  EXPECT_THAT(err, HasSubstr(".safetensors is truncated"));
  for (const std::string& name : names) fs::copy(test::demo_path() + name, source + name, fs::copy_options::overwrite_existing);
  expect_whole_and_resumed(source, store);
}

TEST_F(Resources, StoreChangedOrDeletedWhileItIsLoaded) {
  const std::string store = path("changing");
  const Words command = {
      std::string(PQ_BIN_DIR) + "/pq-run", "-m", store, "-p", "Once", "-n", "4", "--temp", "0", "--watchdog", "0"};
  const auto last_shard = [&] { return store + "/shard-00009.h5"; };
  std::string err;
  fs::copy(clean_path(), store);
  EXPECT_EQ(change_under(
                command, "stop:load:layer=1", [&](pid_t) { fs::resize_file(last_shard(), 5000); }, &err),
            65)
      << err;
  EXPECT_EQ(test::lines_of(err).size(), 1u) << err;
  EXPECT_THAT(err, HasSubstr("shard-00009.h5 is truncated"));
  // One byte in the middle, where the head's codes are; the same length, the same frame.
  fs::remove_all(store);
  fs::copy(clean_path(), store);
  EXPECT_EQ(change_under(
                command, "stop:load:layer=1",
                [&](pid_t) {
                  std::fstream shard(last_shard(), std::ios::binary | std::ios::in | std::ios::out);
                  const auto middle = static_cast<std::streamoff>(fs::file_size(last_shard()) / 2);
                  shard.seekg(middle);
                  const int byte = shard.get();
                  shard.seekp(middle);
                  shard.put(static_cast<char>(byte ^ 1));
                },
                &err),
            65)
      << err;
  EXPECT_EQ(test::lines_of(err).size(), 1u) << err;
  EXPECT_THAT(err, testing::ContainsRegex("shard-00009.h5: .* is damaged: checksum"));
  // What is open stays readable.
  fs::remove_all(store);
  fs::copy(clean_path(), store);
  EXPECT_EQ(change_under(
                command, "stop:load:layer=1", [&](pid_t) { fs::remove_all(store); }, &err),
            0)
      << err;
}

}  // namespace
}  // namespace pq
