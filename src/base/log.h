// Lines on stderr. stdout belongs to data; every line here is prefixed with the program and, in a parallel job, the rank.
// Progress bars are drawn by ProgressBar, only on a terminal and only where asked.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace pq {

// Sets the prefix of later lines: "name: " for one rank, "name[rank]: " for several.
void set_log_identity(std::string_view program, int rank, int ranks);

// Writes one whole line with a single write(2), made printable (base/utf8.h); of more than 4,000 bytes the middle is left out.
void log_line(std::string_view message);

// The prefix as set last; for signal handlers.
std::string_view log_prefix();

// log_line on rank 0 only.
void log_once(std::string_view message);

// One line "label 42 % done/total unit" that redraws itself while stderr is a terminal and draws nothing otherwise.
// Not thread-safe; the destructor ends the line.
class ProgressBar {
 public:
  ProgressBar(std::string label, int64_t total, std::string unit);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  void set(int64_t done);

 private:
  std::string label_;
  std::string unit_;
  int64_t total_;
  int last_percent_ = -1;
  bool enabled_;
};

}  // namespace pq
