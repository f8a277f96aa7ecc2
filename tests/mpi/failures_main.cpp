// Fails on demand, to test run_program from outside (tests/parallel/failures_test.cpp). Without arguments it succeeds.
//   failures_main WHERE RANK: WHERE is agree, early, late, bad_alloc, exception, unknown; RANK fails, "all" for every rank.
// While one rank fails, the others wait in a collective. WHERE may also be operation, count or end: from step 50 on RANK calls
// another collective than the others, or with another count, or none. Or message: rank 0 sends RANK bytes that are no message. A
// third argument: --check-collectives or nothing.
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "comm/session.h"

namespace {

void fail(const std::string& where, int rank) {
  const std::string text = where + " failed on rank " + std::to_string(rank);
  if (where == "bad_alloc") throw std::bad_alloc();
  if (where == "exception") throw std::runtime_error(text);
  if (where == "unknown") throw 42;
  throw pq::Error(where == "early" ? pq::ErrorKind::input : pq::ErrorKind::io, text);
}

}  // namespace

int main(int argc, char** argv) {
  return pq::run_program("failures", argc, argv, [&](pq::Session& session) {
    const std::string where = argc > 1 ? argv[1] : "";
    const bool diverges = where == "operation" || where == "count" || where == "end";
    if (diverges) session.configure({.watchdog_seconds = 1, .check_collectives = argc > 3});
    const bool chosen = argc > 2 && (std::strcmp(argv[2], "all") == 0 || std::stoi(argv[2]) == session.rank());
    session.agree("start", [&] {
      if (where == "agree" && chosen) fail(where, session.rank());
    });
    if (where == "message") {
      std::vector<uint8_t> message(512, 0xff);
      if (session.rank() == 0) {
        session.comm().broadcast(message.data(), 512);
      } else {
        session.broadcast_message(&message);
      }
    } else if (where != "late" && where != "agree" && !diverges && chosen)
      fail(where, session.rank());
    if (session.rank() == 0) std::printf("data\n");
    for (int step = 0; step < 100; ++step) {
      if (where == "late" && step == 50 && chosen) {
        std::printf("last words\n");
        fail(where, session.rank());
      }
      float value[2] = {1, 1};
      if (diverges && chosen && step == 50) {
        if (where == "end") return 0;
        if (where == "operation") session.comm().barrier();
        if (where == "count") session.comm().all_reduce_sum(value, 2);
      }
      session.comm().all_reduce_sum(value, 1);
    }
    return 0;
  });
}
