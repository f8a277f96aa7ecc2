// Grammar and actions of fault.h.
#include "base/fault.h"

#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/error.h"

namespace pq {

std::atomic<bool> fault_armed{false};

namespace {

struct Fault {
  std::string action;
  std::string point;
  int64_t step = -1;
  int64_t layer = -1;
  int64_t skip = 0;  // matching reports to let pass
};

Fault fault;

[[noreturn]] void refuse(const std::string& text) {
  throw Error(ErrorKind::usage, "PQ_FAULT is \"" + text + "\"; it reads ACTION:POINT[:rank=N][:step=N][:layer=N][:nth=N]");
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(':', begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

bool is_point(const std::string& name) {
  if (name == "collective") return true;
  for (int i = 0; i <= static_cast<int>(Phase::exit); ++i)
    if (name == phase_name(static_cast<Phase>(i))) return true;
  for (int i = 1; i <= static_cast<int>(Collective::finalize); ++i)
    if (name == collective_name(static_cast<Collective>(i))) return true;
  return false;
}

bool matches(const Activity& activity) {
  const bool here = activity.collective == Collective::none
                        ? fault.point == phase_name(activity.phase)
                        : fault.point == "collective" || fault.point == collective_name(activity.collective);
  return here && (fault.step < 0 || fault.step == activity.step) && (fault.layer < 0 || fault.layer == activity.layer);
}

int signal_of(const std::string& action) {
  constexpr struct {
    const char* name;
    int signal;
  } kSignals[] = {{"kill", SIGKILL}, {"stop", SIGSTOP}, {"bus", SIGBUS}, {"fpe", SIGFPE},
                  {"ill", SIGILL},   {"term", SIGTERM}, {"int", SIGINT}, {"usr1", SIGUSR1}};
  for (const auto& entry : kSignals)
    if (action == entry.name) return entry.signal;
  return 0;
}

bool is_action(const std::string& name) {
  for (const char* other : {"segv", "abort", "exit", "throw", "oom", "hang"})
    if (name == other) return true;
  return signal_of(name) != 0;
}

}  // namespace

void arm_fault(int rank) {
  const char* text = std::getenv("PQ_FAULT");
  if (text == nullptr || *text == '\0') return;
  const std::vector<std::string> parts = split(text);
  if (parts.size() < 2 || !is_action(parts[0]) || !is_point(parts[1])) refuse(text);
  fault = {parts[0], parts[1]};
  bool mine = true;
  for (size_t i = 2; i < parts.size(); ++i) {
    const size_t equals = parts[i].find('=');
    const std::string key = parts[i].substr(0, equals);
    const std::string digits = equals == std::string::npos ? "" : parts[i].substr(equals + 1);
    if (digits.empty() || digits.size() > 9 || digits.find_first_not_of("0123456789") != std::string::npos) refuse(text);
    const int64_t value = std::atoll(digits.c_str());
    if (key == "rank")
      mine = value == rank;
    else if (key == "step")
      fault.step = value;
    else if (key == "layer")
      fault.layer = value;
    else if (key == "nth")
      fault.skip = value - 1;
    else
      refuse(text);
  }
  fault_armed = mine;
}

void act_on_fault(const Activity& activity) {
  if (!matches(activity) || fault.skip-- > 0) return;
  fault_armed = false;
  if (const char* mark = std::getenv("PQ_FAULT_MARK"); mark != nullptr) ::close(::open(mark, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  const std::string& action = fault.action;
  if (const int signal = signal_of(action); signal != 0) {
    raise(signal);
    return;
  }
  int* volatile nowhere = nullptr;
  if (action == "segv") *nowhere = 0;  // NOLINT(clang-analyzer-core.NullDereference): what was asked for
  if (action == "abort") std::abort();
  if (action == "exit") std::exit(0);
  if (action == "oom") throw std::bad_alloc();
  if (action == "throw") throw std::runtime_error("PQ_FAULT asked for it");
  for (;;) sleep(1000);
}

}  // namespace pq
