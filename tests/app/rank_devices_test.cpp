// Which GPU a rank takes, and who else has it.
#include "app/rank_devices.h"

#include <gtest/gtest.h>

namespace pq {
namespace {

DeviceIdentity card(uint8_t number) {
  DeviceIdentity identity{};
  identity[15] = number;
  return identity;
}
const DeviceIdentity kCpu{};

TEST(RankDevices, AreTakenByPlaceOnTheNode) {
  EXPECT_EQ(device_of_rank(0, 4), 0);
  EXPECT_EQ(device_of_rank(3, 4), 3);
  EXPECT_EQ(device_of_rank(5, 4), 1);
  // A launcher that shows each rank its own.
  EXPECT_EQ(device_of_rank(3, 1), 0);
  EXPECT_EQ(device_of_rank(3, 0), 0);
}

// Two ranks of a node that see one device each have two cards: what counts is who has the same, not how many are visible.
TEST(RankDevices, AreSharedByThoseThatHaveTheSameOne) {
  EXPECT_EQ(sharers({card(1), card(2)}, 0), 1);
  EXPECT_EQ(sharers({card(1), card(2)}, 1), 1);
  EXPECT_EQ(sharers({card(1), card(2), card(1), card(1)}, 0), 3);
  EXPECT_EQ(sharers({card(1), card(2), card(1), card(1)}, 1), 1);
  EXPECT_EQ(sharers({card(1), card(2), card(1), card(1)}, 3), 3);
  EXPECT_EQ(sharers({kCpu, kCpu, card(1)}, 1), 1);
  EXPECT_EQ(sharers({kCpu, kCpu, card(1)}, 2), 1);
}

TEST(RankDevices, OfTwoRanksAreRefusedByTheSecond) {
  EXPECT_EQ(shared_device_problem({card(1), card(2), card(1)}, 0), "");
  EXPECT_EQ(shared_device_problem({card(1), card(2), card(1)}, 1), "");
  EXPECT_EQ(shared_device_problem({card(1), card(2), card(1)}, 2),
            "ranks 0 and 2 have one GPU; start fewer ranks, show each its own device, or say --share-device");
  EXPECT_EQ(shared_device_problem({kCpu, kCpu}, 1), "");
}

}  // namespace
}  // namespace pq
