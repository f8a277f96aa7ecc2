// Reads of /proc for process.h.
#include "base/process.h"

#include <cstdlib>
#include <fstream>

namespace pq {

int64_t proc_bytes(const std::string& path, const std::string& name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(name + ":", 0) == 0) return std::strtoll(line.c_str() + name.size() + 1, nullptr, 10) * 1024;
  }
  return 0;
}

int64_t peak_resident_bytes() { return proc_bytes("/proc/self/status", "VmHWM"); }

bool try_reset_peak_resident() {
  std::ofstream file("/proc/self/clear_refs");
  // proc(5): 5 resets the peak resident set size.
  file << "5" << std::flush;
  return file.good();
}

}  // namespace pq
