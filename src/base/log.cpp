// Implementation of log.h: the identity is process-wide because a process is one rank.
#include "base/log.h"

#include <unistd.h>

#include "base/utf8.h"

namespace pq {
namespace {

// Never destroyed: a handler may read it when static objects are gone.
std::string& prefix() {
  static auto& text = *new std::string("pq: ");
  return text;
}

bool& is_first_rank() {
  static bool first = true;
  return first;
}

void write_all_stderr(const std::string& text) {
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(STDERR_FILENO, text.data() + done, text.size() - done);
    if (n <= 0) return;
    done += static_cast<size_t>(n);
  }
}

}  // namespace

void set_log_identity(std::string_view program, int rank, int ranks) {
  prefix() = std::string(program) + (ranks > 1 ? "[" + std::to_string(rank) + "]: " : ": ");
  is_first_rank() = rank == 0;
}

void log_line(std::string_view message) {
  // Longer writes to a pipe may mix with those of other ranks (PIPE_BUF). What a line ends with, the way out, stays.
  constexpr size_t kLongestLine = 4000, kKeptEnd = 1000;
  std::string line = prefix() + printable(message);
  if (line.size() > kLongestLine)
    line = printable(line.substr(0, kLongestLine - kKeptEnd) + " ... " + line.substr(line.size() - kKeptEnd));
  line += '\n';
  write_all_stderr(line);
}

std::string_view log_prefix() { return prefix(); }

void log_once(std::string_view message) {
  if (is_first_rank()) log_line(message);
}

ProgressBar::ProgressBar(std::string label, int64_t total, std::string unit)
    : label_(std::move(label)), unit_(std::move(unit)), total_(total), enabled_(isatty(STDERR_FILENO) == 1 && is_first_rank()) {}

ProgressBar::~ProgressBar() {
  if (enabled_ && last_percent_ >= 0) write_all_stderr("\n");
}

void ProgressBar::set(int64_t done) {
  if (!enabled_ || total_ <= 0) return;
  const int percent = static_cast<int>(100 * done / total_);
  if (percent == last_percent_) return;
  last_percent_ = percent;
  std::string line = "\r" + label_ + " [";
  for (int i = 0; i < 30; ++i) line += i * 100 < percent * 30 ? '#' : '.';
  line += "] " + std::to_string(percent) + " % " + std::to_string(done) + "/" + std::to_string(total_) + " " + unit_;
  write_all_stderr(line);
}

}  // namespace pq
