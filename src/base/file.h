// Files as byte ranges: exact reads and writes that either do all of it or throw with path, both sizes and the reason; atomic
// replacement by rename. Parsing is left to the callers.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <string_view>

namespace pq {

// An open file descriptor, closed on destruction; movable. Reads are positioned, so one File may serve several threads.
class File {
 public:
  File() = default;
  // A regular file; anything else is ErrorKind::input, at once (a pipe without a writer would wait for one).
  static File open_read(const std::string& path);
  // Creates or truncates `path`.
  static File create(const std::string& path);
  // For writing into an existing file.
  static File open_update(const std::string& path);
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  ~File();

  const std::string& path() const { return path_; }
  bool is_open() const { return fd_ >= 0; }
  int64_t size() const;
  // Reads exactly `bytes` at `offset`; a short file is ErrorKind::input, a refusal of the system ErrorKind::io.
  void read_at(void* data, int64_t bytes, int64_t offset) const;
  // Reads what the system can give without waiting for the disk, from `offset` on; the number of bytes, 0 where it cannot tell.
  int64_t read_cached(void* data, int64_t bytes, int64_t offset) const;
  // Writes exactly `bytes` at `offset`.
  void write_at(const void* data, int64_t bytes, int64_t offset);
  // Hints, which cannot fail: the system starts to read a range, which may reach beyond the end, or to bring all written so far to
  // the disk; neither waits.
  void will_need(int64_t offset, int64_t bytes) const;
  void start_sync();
  // Data and metadata reach the disk, then the descriptor is closed; errors of close are reported.
  void sync_and_close();

 private:
  File(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_ = -1;
  std::string path_;
};

bool path_exists(const std::string& path);
bool is_directory(const std::string& path);

// A name that a file may give another one of its directory: not empty, no separator, no control character, not "." or "..".
bool is_plain_file_name(const std::string& name);

// Whole file as bytes; ErrorKind::input when larger than `limit_bytes`.
std::string read_text_file(const std::string& path, int64_t limit_bytes);

// All that is left of `in`; ErrorKind::input that calls it `name` when that is more than `limit_bytes`.
std::string read_stream(std::istream& in, const std::string& name, int64_t limit_bytes);
// As std::getline: false at the end of `in`. ErrorKind::input as above for a line that is longer.
bool read_line(std::istream& in, const std::string& name, int64_t limit_bytes, std::string* line);

// Writes `path`.tmp, syncs it, renames it to `path` and syncs the directory: `path` is either the old or the new content.
void write_file_atomically(const std::string& path, std::string_view content);

// Syncs `path` by descriptor, then renames it to `final_path` and syncs the directory.
void publish_file(const std::string& path, const std::string& final_path);

// mkdir -p
void make_directories(const std::string& path);

}  // namespace pq
