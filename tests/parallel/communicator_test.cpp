// Collectives of the self and thread communicators: exact values on integers, the documented order of additions on floats, and the
// end of a rank that fails.
#include "comm/communicator.h"

#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <chrono>
#include <vector>

#include "base/error.h"
#include "support/collective_cases.h"

namespace pq {
namespace {

class ThreadRanks : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Counts, ThreadRanks, testing::Values(1, 2, 4, 8));

TEST_P(ThreadRanks, CollectivesAreExact) {
  run_threads(GetParam(), [](Communicator& comm) { EXPECT_EQ(test::check_collectives(comm), ""); });
}

TEST_P(ThreadRanks, SumsFollowTheTree) {
  run_threads(GetParam(), [](Communicator& comm) { EXPECT_EQ(test::check_tree_order(comm), ""); });
}

TEST_P(ThreadRanks, EachFailingRankWakesTheOthers) {
  const int ranks = GetParam();
  for (int failing = 0; failing < ranks; ++failing) {
    std::atomic<int> woken{0};
    try {
      run_threads(ranks, [&](Communicator& comm) {
        comm.barrier();
        if (comm.rank() == failing) throw Error(ErrorKind::input, "rank " + std::to_string(failing) + " has had enough");
        std::vector<float> values(100, 1.0f);
        try {
          for (;;) {
            if (comm.size() == 1) break;
            comm.all_reduce_sum(values.data(), 100);
          }
        } catch (const Error& error) {
          if (error.kind() == ErrorKind::peer) ++woken;
          throw;
        }
      });
      FAIL() << "nothing was thrown";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::input);
      EXPECT_EQ(std::string(error.what()), "rank " + std::to_string(failing) + " has had enough");
    }
    EXPECT_EQ(woken.load(), ranks - 1);
  }
}

TEST(Threads, TheLowestOfSeveralFailuresIsReported) {
  try {
    run_threads(4, [](Communicator& comm) {
      comm.barrier();
      if (comm.rank() >= 2) throw Error(ErrorKind::io, "rank " + std::to_string(comm.rank()));
      comm.barrier();
    });
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "rank 2");
  }
}

TEST(Threads, ARankThatEndsEarlyDoesNotHangTheOthers) {
  try {
    run_threads(2, [](Communicator& comm) {
      if (comm.rank() == 0) comm.barrier();
    });
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::peer);
  }
}

TEST(Threads, DifferentCountsAreRefused) {
  try {
    run_threads(2, [](Communicator& comm) {
      std::vector<float> values(8);
      comm.all_reduce_sum(values.data(), comm.rank() == 0 ? 8 : 7);
    });
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::internal);
  }
}

TEST(Threads, SumsOverThreeRanksAreRefused) {
  try {
    run_threads(3, [](Communicator& comm) {
      float value = 1;
      comm.all_reduce_sum(&value, 1);
    });
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
  }
}

TEST(Threads, GathersWorkWithThreeRanks) {
  run_threads(3, [](Communicator& comm) { EXPECT_EQ(test::check_gathers(comm), ""); });
}

TEST(Self, CollectivesAreExact) {
  const auto comm = make_self_communicator();
  EXPECT_EQ(comm->rank(), 0);
  EXPECT_EQ(comm->size(), 1);
  EXPECT_EQ(test::check_collectives(*comm), "");
  EXPECT_EQ(test::check_tree_order(*comm), "");
}

}  // namespace
}  // namespace pq
