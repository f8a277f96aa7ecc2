// The one error type of pq and its exit codes. Everything that can go wrong is thrown as pq::Error and printed once by main;
// agreement between ranks on an error is left to comm/session.h.
#pragma once

#include <stdexcept>
#include <string>

namespace pq {

// The numeric value is the process exit code (sysexits.h where it has one).
enum class ErrorKind : int {
  usage = 64,        // impossible flags or rank counts
  input = 65,        // a file or text that is not what it claims to be
  environment = 69,  // memory, devices, libraries, slots
  internal = 70,     // a broken invariant of pq itself
  io = 74,           // the operating system refused to read or write
  peer = 75,         // another rank failed or vanished
};

// message: one line that names the thing, both values and the way out; no trailing newline.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }
  int exit_code() const { return static_cast<int>(kind_); }

 private:
  ErrorKind kind_;
};

// Throws ErrorKind::internal with `message` when `condition` is false: for invariants of pq, not for input.
inline void require(bool condition, const char* message) {
  if (!condition) throw Error(ErrorKind::internal, message);
}

}  // namespace pq
