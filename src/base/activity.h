// What each rank of this node is doing, in memory that all of them see: one relaxed store a change, read at any moment by a
// watchdog, a signal handler or another rank, also after the writer has died. Until a session shares it a process has a board for
// itself. Judging what is read is left to comm/watchdog.h.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace pq {

// Ranks in the phase `idle` (waiting for a request or a reader) owe no progress.
enum class Phase : uint8_t { start, load, quantise, prefill, decode, measure, idle, exit };
enum class Collective : uint8_t { none, all_reduce, all_gather, gather, broadcast, barrier, finalize };

struct Activity {
  Phase phase = Phase::start;
  Collective collective = Collective::none;
  int layer = -1;     // or the shard that is quantised; -1: none
  uint32_t step = 0;  // steps begun so far

  bool owes_progress() const { return phase != Phase::idle; }
};

inline constexpr int kWaitsForNobody = -1;
inline constexpr int kWaitsForAny = -2;

// One per rank of the node, on cache lines of its own.
struct alignas(128) RankRecord {
  std::atomic<uint64_t> activity{0};  // an Activity, packed
  std::atomic<uint32_t> beats{0};     // progress that shows nowhere else
  std::atomic<int32_t> waits_for{kWaitsForNobody};
  std::atomic<int32_t> rank{0};
  std::atomic<int32_t> process{0};   // 0: not to be watched
  std::atomic<int32_t> finished{0};  // may end without a word
};

struct JobBoard {
  std::atomic<int32_t> speaker{0};      // 1 + the rank that has said the last line of the job
  std::atomic<int32_t> ended{0};        // 1 + the exit code, when the end of other ranks is no news any more
  std::atomic<int32_t> stop_signal{0};  // that asked for an orderly stop
  std::atomic<int32_t> records{1};
  RankRecord record[1];  // as many as `records`
};

JobBoard& job_board();
RankRecord& own_record();
constexpr size_t job_board_bytes(int ranks) { return sizeof(JobBoard) + sizeof(RankRecord) * static_cast<size_t>(ranks - 1); }
// `memory`: job_board_bytes(ranks) zero bytes shared by the ranks of the node, for as long as the process lives. This rank's record
// moves to `place`. Not while other threads report.
void use_job_board(void* memory, int ranks, int place);

Activity unpack_activity(uint64_t word);
inline Activity activity_of(const RankRecord& record) { return unpack_activity(record.activity.load(std::memory_order_relaxed)); }

// How this rank stands, for ranks that do not see its board.
inline constexpr uint32_t kNewsStart = 0x70716e31;
struct RankNews {
  uint32_t start = kNewsStart;
  int32_t stop_signal;  // of its board, as `ended`
  uint64_t activity;    // an Activity, packed
  uint32_t beats;
  int32_t waits_for;
  int32_t finished;
  int32_t ended;
};
RankNews own_news();

// Reports of this rank. The ones that enter something are the points at which PQ_FAULT acts (base/fault.h), and may throw then.
void enter_phase(Phase phase);
// Counts one more step.
void begin_step(Phase phase);
void enter_layer(int64_t layer);
void beat();
void wait_for_rank(int rank);

// Inside a collective until destroyed.
class CollectiveScope {
 public:
  explicit CollectiveScope(Collective collective);
  ~CollectiveScope();
  CollectiveScope(const CollectiveScope&) = delete;
  CollectiveScope& operator=(const CollectiveScope&) = delete;

 private:
  const uint64_t before_;
};

// Waits for a person or another program until destroyed.
class IdleScope {
 public:
  IdleScope();
  ~IdleScope();
  IdleScope(const IdleScope&) = delete;
  IdleScope& operator=(const IdleScope&) = delete;

 private:
  const uint64_t before_;
};

const char* phase_name(Phase phase);
const char* collective_name(Collective collective);

// A line of text in fixed memory, cut where that ends: signal handlers may not allocate.
class LineBuffer {
 public:
  LineBuffer& operator<<(const char* text);
  LineBuffer& operator<<(int64_t number);
  // "all_reduce, layer 12, step 8841"; "quantise, shard 3".
  LineBuffer& operator<<(const Activity& activity);
  const char* data() const { return text_; }
  size_t size() const { return size_; }

 private:
  void append(char c) {
    if (size_ < sizeof text_) text_[size_++] = c;
  }
  char text_[1024];
  size_t size_ = 0;
};

}  // namespace pq
