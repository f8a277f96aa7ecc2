// POSIX implementation of file.h.
#include "base/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <istream>
#include <system_error>
#include <utility>

#include "base/activity.h"
#include "base/error.h"

namespace pq {
namespace {

// One system call: what a slow disk moves in seconds, so that a rank that waits for it is seen to make progress.
constexpr int64_t kMaxTransferBytes = int64_t{64} << 20;

[[noreturn]] void fail(const std::string& what, const std::string& path) {
  throw Error(ErrorKind::io, "cannot " + what + " " + path + ": " + std::strerror(errno));
}

[[noreturn]] void refuse_length(const std::string& name, int64_t limit_bytes) {
  throw Error(ErrorKind::input, name + " has more than " + std::to_string(limit_bytes) + " bytes, the limit");
}

void sync_directory_of(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  const int fd = ::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail("open directory of", path);
  ::fsync(fd);  // some file systems refuse to sync a directory; the rename itself has already happened
  ::close(fd);
}

}  // namespace

File File::open_read(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  // ENXIO: a socket or a device that is not there.
  if (fd < 0 && errno == ENXIO) throw Error(ErrorKind::input, path + " is not a regular file");
  if (fd < 0) fail("open", path);
  File file(fd, path);
  struct stat info {};
  if (::fstat(fd, &info) != 0) fail("stat", path);
  if (!S_ISREG(info.st_mode)) throw Error(ErrorKind::input, path + " is not a regular file");
  return file;
}

File File::create(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) fail("create", path);
  return File(fd, path);
}

File File::open_update(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) fail("open", path);
  return File(fd, path);
}

File::File(File&& other) noexcept : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}

File& File::operator=(File&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = std::exchange(other.fd_, -1);
    path_ = std::move(other.path_);
  }
  return *this;
}

File::~File() {
  if (fd_ >= 0) ::close(fd_);
}

int64_t File::size() const {
  struct stat info {};
  if (::fstat(fd_, &info) != 0) fail("stat", path_);
  return info.st_size;
}

void File::read_at(void* data, int64_t bytes, int64_t offset) const {
  char* to = static_cast<char*>(data);
  int64_t done = 0;
  while (done < bytes) {
    const ssize_t n = ::pread(fd_, to + done, static_cast<size_t>(std::min(bytes - done, kMaxTransferBytes)), offset + done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("read", path_);
    if (n == 0)
      throw Error(ErrorKind::input, path_ + " is truncated: it ends at byte " + std::to_string(offset + done) + ", byte " +
                                        std::to_string(offset + bytes) + " is needed; fetch it again");
    done += n;
    beat();
  }
}

int64_t File::read_cached(void* data, int64_t bytes, int64_t offset) const {
#ifdef RWF_NOWAIT
  const iovec part{data, static_cast<size_t>(std::min(bytes, kMaxTransferBytes))};
  const ssize_t n = ::preadv2(fd_, &part, 1, offset, RWF_NOWAIT);
  return std::max<int64_t>(n, 0);
#else
  (void)data, (void)bytes, (void)offset;
  return 0;
#endif
}

void File::write_at(const void* data, int64_t bytes, int64_t offset) {
  const char* from = static_cast<const char*>(data);
  int64_t done = 0;
  while (done < bytes) {
    const ssize_t n = ::pwrite(fd_, from + done, static_cast<size_t>(std::min(bytes - done, kMaxTransferBytes)), offset + done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("write", path_);
    done += n;
    beat();
  }
}

void File::will_need(int64_t offset, int64_t bytes) const { ::posix_fadvise(fd_, offset, bytes, POSIX_FADV_WILLNEED); }

void File::start_sync() {
#ifdef SYNC_FILE_RANGE_WRITE
  ::sync_file_range(fd_, 0, 0, SYNC_FILE_RANGE_WRITE);
#endif
}

void File::sync_and_close() {
  if (::fsync(fd_) != 0) fail("sync", path_);
  if (::close(std::exchange(fd_, -1)) != 0) fail("close", path_);
}

bool path_exists(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0;
}

bool is_directory(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

bool is_plain_file_name(const std::string& name) {
  if (name.empty() || name == "." || name == "..") return false;
  return std::none_of(name.begin(), name.end(), [](unsigned char c) { return c == '/' || c == '\\' || c < 0x20; });
}

std::string read_text_file(const std::string& path, int64_t limit_bytes) {
  const File file = File::open_read(path);
  const int64_t bytes = file.size();
  if (bytes > limit_bytes)
    throw Error(ErrorKind::input, path + " has " + std::to_string(bytes) + " bytes, the limit is " + std::to_string(limit_bytes));
  std::string text(static_cast<size_t>(bytes), '\0');
  file.read_at(text.data(), bytes, 0);
  return text;
}

std::string read_stream(std::istream& in, const std::string& name, int64_t limit_bytes) {
  std::string text;
  char part[1 << 16];
  while (in.read(part, sizeof part), in.gcount() > 0) {
    text.append(part, static_cast<size_t>(in.gcount()));
    if (static_cast<int64_t>(text.size()) > limit_bytes) refuse_length(name, limit_bytes);
  }
  return text;
}

bool read_line(std::istream& in, const std::string& name, int64_t limit_bytes, std::string* line) {
  line->clear();
  for (int c = in.get(); c != std::istream::traits_type::eof(); c = in.get()) {
    if (c == '\n') return true;
    if (static_cast<int64_t>(line->size()) == limit_bytes) refuse_length(name, limit_bytes);
    line->push_back(static_cast<char>(c));
  }
  return !line->empty();
}

void write_file_atomically(const std::string& path, std::string_view content) {
  const std::string temporary = path + ".tmp";
  {
    File file = File::create(temporary);
    file.write_at(content.data(), static_cast<int64_t>(content.size()), 0);
    file.sync_and_close();
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) fail("rename " + temporary + " to", path);
  sync_directory_of(path);
}

void publish_file(const std::string& path, const std::string& final_path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) fail("open", path);
  const int rc = ::fsync(fd);
  ::close(fd);
  if (rc != 0) fail("sync", path);
  if (::rename(path.c_str(), final_path.c_str()) != 0) fail("rename " + path + " to", final_path);
  sync_directory_of(final_path);
}

void make_directories(const std::string& path) {
  std::error_code code;
  std::filesystem::create_directories(path, code);
  if (code) throw Error(ErrorKind::io, "cannot create directory " + path + ": " + code.message());
}

}  // namespace pq
