// The board of activity.h. A process is one rank, so what it reports to is process-wide.
#include "base/activity.h"

#include <new>

#include "base/fault.h"

namespace pq {
namespace {

JobBoard private_board;
std::atomic<JobBoard*> board{&private_board};
std::atomic<RankRecord*> own{private_board.record};

constexpr int kPhaseBits = 8, kCollectiveBits = 8, kLayerBits = 16;
constexpr uint64_t kLargestLayer = (uint64_t{1} << kLayerBits) - 2;

// From the lowest bits up: phase, collective, 1 + layer, step.
uint64_t pack(const Activity& activity) {
  const uint64_t layer = activity.layer < 0 ? 0 : std::min(static_cast<uint64_t>(activity.layer), kLargestLayer) + 1;
  return static_cast<uint64_t>(activity.phase) | static_cast<uint64_t>(activity.collective) << kPhaseBits |
         layer << (kPhaseBits + kCollectiveBits) |
         static_cast<uint64_t>(activity.step) << (kPhaseBits + kCollectiveBits + kLayerBits);
}

Activity current() { return activity_of(own_record()); }

void report(const Activity& activity) {
  own_record().activity.store(pack(activity), std::memory_order_relaxed);
  if (fault_is_armed()) act_on_fault(activity);
}

}  // namespace

JobBoard& job_board() { return *board.load(std::memory_order_relaxed); }
RankRecord& own_record() { return *own.load(std::memory_order_relaxed); }

RankNews own_news() {
  const RankRecord& record = own_record();
  return {.stop_signal = job_board().stop_signal,
          .activity = record.activity.load(std::memory_order_relaxed),
          .beats = record.beats,
          .waits_for = record.waits_for,
          .finished = record.finished,
          .ended = job_board().ended};
}

void use_job_board(void* memory, int ranks, int place) {
  const RankRecord& old = own_record();
  auto* shared = static_cast<JobBoard*>(memory);
  RankRecord* record = shared->record + place;
  record->waits_for = kWaitsForNobody;
  record->activity = old.activity.load();
  record->rank = old.rank.load();
  record->process = old.process.load();
  shared->records = ranks;
  board = shared;
  own = record;
}

Activity unpack_activity(uint64_t word) {
  Activity activity;
  activity.phase = static_cast<Phase>(word & 0xff);
  activity.collective = static_cast<Collective>(word >> kPhaseBits & 0xff);
  activity.layer = static_cast<int>(word >> (kPhaseBits + kCollectiveBits) & 0xffff) - 1;
  activity.step = static_cast<uint32_t>(word >> (kPhaseBits + kCollectiveBits + kLayerBits));
  return activity;
}

void enter_phase(Phase phase) { report({phase, Collective::none, -1, current().step}); }

void begin_step(Phase phase) { report({phase, Collective::none, -1, current().step + 1}); }

void enter_layer(int64_t layer) {
  Activity activity = current();
  activity.layer = static_cast<int>(layer);
  report(activity);
}

// One writer a process, so no read-modify-write; threads of a test lose a beat at worst.
void beat() {
  std::atomic<uint32_t>& beats = own_record().beats;
  beats.store(beats.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

void wait_for_rank(int rank) { own_record().waits_for.store(rank, std::memory_order_relaxed); }

CollectiveScope::CollectiveScope(Collective collective) : before_(own_record().activity.load(std::memory_order_relaxed)) {
  Activity activity = unpack_activity(before_);
  activity.collective = collective;
  report(activity);
}

CollectiveScope::~CollectiveScope() {
  RankRecord& record = own_record();
  record.activity.store(before_, std::memory_order_relaxed);
  if (record.waits_for.load(std::memory_order_relaxed) != kWaitsForNobody) wait_for_rank(kWaitsForNobody);
  beat();
}

IdleScope::IdleScope() : before_(own_record().activity.load(std::memory_order_relaxed)) {
  Activity activity = unpack_activity(before_);
  activity.phase = Phase::idle;
  report(activity);
}

IdleScope::~IdleScope() {
  own_record().activity.store(before_, std::memory_order_relaxed);
  beat();
}

const char* phase_name(Phase phase) {
  constexpr const char* kNames[] = {"start", "load", "quantise", "prefill", "decode", "measure", "idle", "exit"};
  return static_cast<size_t>(phase) < std::size(kNames) ? kNames[static_cast<size_t>(phase)] : "?";
}

const char* collective_name(Collective collective) {
  constexpr const char* kNames[] = {"none", "all_reduce", "all_gather", "gather", "broadcast", "barrier", "finalize"};
  return static_cast<size_t>(collective) < std::size(kNames) ? kNames[static_cast<size_t>(collective)] : "?";
}

LineBuffer& LineBuffer::operator<<(const char* text) {
  while (*text != '\0') append(*text++);
  return *this;
}

LineBuffer& LineBuffer::operator<<(int64_t number) {
  char digits[24];
  int count = 0;
  uint64_t rest = number < 0 ? 0 - static_cast<uint64_t>(number) : static_cast<uint64_t>(number);
  do digits[count++] = static_cast<char>('0' + rest % 10);
  while ((rest /= 10) > 0);
  if (number < 0) append('-');
  while (count > 0) append(digits[--count]);
  return *this;
}

LineBuffer& LineBuffer::operator<<(const Activity& activity) {
  if (activity.collective == Collective::none)
    *this << phase_name(activity.phase);
  else
    *this << collective_name(activity.collective) << " of " << phase_name(activity.phase);
  if (activity.layer >= 0) *this << (activity.phase == Phase::quantise ? ", shard " : ", layer ") << int64_t{activity.layer};
  if (activity.step > 0) *this << ", step " << int64_t{activity.step};
  return *this;
}

}  // namespace pq
