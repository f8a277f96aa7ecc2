#include "base/log.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

namespace pq {
namespace {

// A signal may come while the process destroys its static objects, and its handler names the rank.
TEST(LogDeathTest, ThePrefixOutlivesStaticObjects) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_EXIT(
      {
        // Handlers of exit run in the order opposite to that in which they, and static objects, came to be.
        std::atexit([] { _exit(log_prefix() == "a-program-with-a-long-name[3]: " ? 0 : 1); });
        set_log_identity("a-program-with-a-long-name", 3, 4);
        std::exit(2);
      },
      testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace pq
