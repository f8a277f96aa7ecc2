// The order of additions of every sum over ranks: one balanced binary tree in rank order.
#pragma once

#include <cstdint>

namespace pq {

// Ranks whose values one call can add.
inline constexpr int kMaxTreeInputs = 64;

// Fetches the cache line of `address` as the only owner. Lines that ranks hand back and forth so move once a hand-over: what is
// read as a shared copy moves a second time when it is written.
inline void fetch_to_write(const void* address) {
#if defined(__x86_64__)
  // Every x86-64 processor knows the instruction, the baseline of the compilers does not.
  asm volatile("prefetchw (%0)" : : "r"(address));
#else
  __builtin_prefetch(address, 1);
#endif
}

inline constexpr int64_t kLineFloats = 16;
// How far ahead lines are fetched: as many as a core can wait for at once.
inline constexpr int64_t kFetchAheadFloats = 24 * kLineFloats;

// The lines of values[from] to values[to], none at or after values[end].
inline void fetch_range(const float* values, int64_t from, int64_t to, int64_t end) {
  for (int64_t i = from; i < (to < end ? to : end); i += kLineFloats) fetch_to_write(values + i);
}

// A cache line of values anywhere in memory. Written line by line, the loops below can neither be taken for copies by the compiler
// (which then calls one for 64 bytes) nor be held up by pointers that might overlap.
using Line = float __attribute__((vector_size(4 * kLineFloats), aligned(4), may_alias));
inline Line* line_at(float* values) { return reinterpret_cast<Line*>(values); }
inline const Line* line_at(const float* values) { return reinterpret_cast<const Line*>(values); }

// values[r][i] of every rank r becomes the tree's sum of values[0][i] ... values[ranks - 1][i], for i in [begin, end): neighbours
// are added first, then sums of two, of four. `ranks` is a power of two, 2 to kMaxTreeInputs.
inline void tree_sum(float* const* values, int ranks, int64_t begin, int64_t end) {
  const int pairs = ranks / 2;
  for (int rank = 0; rank < ranks; ++rank) fetch_range(values[rank], begin, begin + kFetchAheadFloats, end);
  int64_t i = begin;
  for (; i + kLineFloats <= end; i += kLineFloats) {
    Line sums[kMaxTreeInputs / 2];
    for (int pair = 0; pair < pairs; ++pair) {
      fetch_range(values[2 * pair], i + kFetchAheadFloats, i + kFetchAheadFloats + 1, end);
      fetch_range(values[2 * pair + 1], i + kFetchAheadFloats, i + kFetchAheadFloats + 1, end);
      sums[pair] = *line_at(values[2 * pair] + i) + *line_at(values[2 * pair + 1] + i);
    }
    for (int distance = 1; distance < pairs; distance *= 2)
      for (int lower = 0; lower < pairs; lower += 2 * distance) sums[lower] = sums[lower] + sums[lower + distance];
    for (int rank = 0; rank < ranks; ++rank) *line_at(values[rank] + i) = sums[0];
  }
  for (; i < end; ++i) {
    float sums[kMaxTreeInputs / 2];
    for (int pair = 0; pair < pairs; ++pair) sums[pair] = values[2 * pair][i] + values[2 * pair + 1][i];
    for (int distance = 1; distance < pairs; distance *= 2)
      for (int lower = 0; lower < pairs; lower += 2 * distance) sums[lower] = sums[lower] + sums[lower + distance];
    for (int rank = 0; rank < ranks; ++rank) values[rank][i] = sums[0];
  }
}

// Copies values that another rank has written into lines that this rank will write next.
inline void take_over(const float* from, int64_t count, float* to) {
  fetch_range(from, 0, kFetchAheadFloats, count);
  int64_t i = 0;
  for (; i + kLineFloats <= count; i += kLineFloats) {
    fetch_range(from, i + kFetchAheadFloats, i + kFetchAheadFloats + 1, count);
    *line_at(to + i) = *line_at(from + i);
  }
  for (; i < count; ++i) to[i] = from[i];
}

}  // namespace pq
