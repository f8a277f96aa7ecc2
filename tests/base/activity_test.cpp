// Reports of a rank: what is written is what another reader sees, and lines are made without overflow.
#include "base/activity.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

namespace pq {
namespace {

std::string text(const Activity& activity) {
  LineBuffer line;
  line << activity;
  return {line.data(), line.size()};
}

TEST(Activity, StepsLayersAndCollectives) {
  const uint32_t before = activity_of(own_record()).step;
  begin_step(Phase::decode);
  enter_layer(12);
  {
    const CollectiveScope scope(Collective::all_reduce);
    wait_for_rank(1);
    const Activity inside = activity_of(own_record());
    EXPECT_EQ(inside.phase, Phase::decode);
    EXPECT_EQ(inside.collective, Collective::all_reduce);
    EXPECT_EQ(inside.layer, 12);
    EXPECT_EQ(inside.step, before + 1);
    EXPECT_EQ(text(inside), "all_reduce of decode, layer 12, step " + std::to_string(before + 1));
  }
  EXPECT_EQ(activity_of(own_record()).collective, Collective::none);
  EXPECT_EQ(own_record().waits_for, kWaitsForNobody);
  enter_phase(Phase::quantise);
  enter_layer(3);
  EXPECT_EQ(activity_of(own_record()).layer, 3);
  EXPECT_EQ(text({Phase::quantise, Collective::none, 3, 0}), "quantise, shard 3");
  enter_layer(1'000'000);
  EXPECT_EQ(activity_of(own_record()).layer, 65534) << "large numbers stay large";
  enter_phase(Phase::start);
  EXPECT_EQ(activity_of(own_record()).layer, -1);
}

TEST(Activity, WaitingForPeopleOwesNoProgress) {
  enter_phase(Phase::decode);
  EXPECT_TRUE(activity_of(own_record()).owes_progress());
  {
    const IdleScope idle;
    const CollectiveScope scope(Collective::broadcast);
    EXPECT_FALSE(activity_of(own_record()).owes_progress());
  }
  EXPECT_TRUE(activity_of(own_record()).owes_progress());
  enter_phase(Phase::measure);
  EXPECT_TRUE(activity_of(own_record()).owes_progress());
  enter_phase(Phase::start);
}

// Two states that look the same after a collective are told apart by the beats.
TEST(Activity, EveryCollectiveLeavesATrace) {
  const uint32_t beats = own_record().beats;
  { const CollectiveScope scope(Collective::barrier); }
  EXPECT_NE(own_record().beats, beats);
}

TEST(Activity, TheBoardMovesWithItsRecord) {
  enter_phase(Phase::load);
  own_record().rank = 5;
  // Leaked on purpose: the process reports to it from now on.
  void* memory = std::aligned_alloc(alignof(JobBoard), job_board_bytes(3));
  std::uninitialized_fill_n(static_cast<unsigned char*>(memory), job_board_bytes(3), 0);
  use_job_board(memory, 3, 2);
  const RankRecord* records = job_board().record;
  EXPECT_EQ(&own_record(), records + 2);
  EXPECT_EQ(job_board().records, 3);
  EXPECT_EQ(own_record().rank, 5);
  EXPECT_EQ(activity_of(records[2]).phase, Phase::load);
  enter_phase(Phase::start);
  own_record().rank = 0;
}

TEST(LineBuffer, NumbersAndCuts) {
  LineBuffer line;
  line << "a " << int64_t{-12} << " " << INT64_MIN << " " << int64_t{0};
  EXPECT_EQ(std::string(line.data(), line.size()), "a -12 -9223372036854775808 0");
  for (int i = 0; i < 1000; ++i) line << "long";
  EXPECT_EQ(line.size(), 1024u);
}

}  // namespace
}  // namespace pq
