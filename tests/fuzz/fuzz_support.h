// What the fuzz targets share: files of their own to put the input in, the one way a parser may refuse, and inputs in parts.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

#include "base/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace pq::fuzz {

// A property that does not hold is a finding like a crash.
inline void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "fuzz: %s\n", what);
  std::abort();
}

// Made once for the process, in memory where there is some, and removed at its end.
class Folder {
 public:
  Folder() {
    const std::string root =
        std::filesystem::is_directory("/dev/shm") ? "/dev/shm" : std::filesystem::temp_directory_path().string();
    std::string pattern = root + "/pq_fuzz_XXXXXX";
    expect(mkdtemp(pattern.data()) != nullptr, "no temporary folder");
    path_ = pattern;
  }
  ~Folder() {
    std::error_code code;
    std::filesystem::remove_all(path_, code);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  std::string write(const std::string& name, const std::string& content) const {
    std::ofstream(path_ + "/" + name, std::ios::binary | std::ios::trunc) << content;
    return path_ + "/" + name;
  }

 private:
  std::string path_;
};

// Runs `work`, which may refuse with ErrorKind::input and a message; everything else is a finding. Returns whether it accepted.
inline bool accepts(const std::function<void()>& work) {
  try {
    work();
    return true;
  } catch (const Error& error) {
    expect(error.kind() == ErrorKind::input && error.what()[0] != '\0', error.what());
    return false;
  }
}

inline std::string text_of(const uint8_t* data, size_t size) { return {reinterpret_cast<const char*>(data), size}; }

// Cuts `text` at the first NUL: what precedes it is returned, what follows it stays.
inline std::string take_part(std::string* text) {
  const size_t end = text->find('\0');
  const std::string part = text->substr(0, end);
  *text = end == std::string::npos ? "" : text->substr(end + 1);
  return part;
}

// A safetensors file of this header and data, with the length that fits.
inline std::string safetensors_bytes(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[static_cast<size_t>(i)] = static_cast<char>(length >> (8 * i));
  return bytes + header + data;
}

}  // namespace pq::fuzz
