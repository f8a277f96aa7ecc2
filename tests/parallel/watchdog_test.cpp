// What the watchdog says of a board whose ranks are set by hand. Watchdogs of real jobs are tried in tests/failure.
#include "comm/watchdog.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "base/activity.h"
#include "base/error.h"

namespace pq {
namespace {

// Rank 1 is late in loading, rank 0 owes nothing and watches.
[[noreturn]] void watch_a_late_rank() {
  alignas(RankRecord) static char memory[job_board_bytes(2)];
  own_record().rank = 1;
  use_job_board(memory, 2, 1);
  enter_phase(Phase::load);
  enter_layer(3);
  use_job_board(memory, 2, 0);
  own_record().rank = 0;
  const IdleScope idle;
  const Watchdog watchdog(0.2, true, nullptr, [](int code) { _exit(code); });
  for (;;) pause();
}

TEST(WatchdogDeath, NamesALateRankThatNobodyWaitsFor) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(watch_a_late_rank(), testing::ExitedWithCode(static_cast<int>(ErrorKind::peer)),
              "no progress for 0.2 s by rank 1, which is in load, layer 3 on ");
}

}  // namespace
}  // namespace pq
