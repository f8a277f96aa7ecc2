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

// Part of a cache line, anywhere in memory. Written part by part, the loops below can neither be taken for copies by the compiler
// (which then calls one for 64 bytes) nor be held up by pointers that might overlap; a part of 16 bytes is what every processor
// holds in one register.
using Part = float __attribute__((vector_size(16), aligned(4), may_alias));
inline constexpr int64_t kPartFloats = 4;
inline Part* part_at(float* values) { return reinterpret_cast<Part*>(values); }
inline const Part* part_at(const float* values) { return reinterpret_cast<const Part*>(values); }

// sums[0] becomes the tree's sum of all.
template <int kRanks, typename T>
inline void add_tree(T* sums) {
  for (int distance = 1; distance < kRanks; distance *= 2)
    for (int lower = 0; lower < kRanks; lower += 2 * distance) sums[lower] = sums[lower] + sums[lower + distance];
}

template <int kRanks>
inline void tree_sum_of(float* const* values, int64_t begin, int64_t end) {
  for (int rank = 0; rank < kRanks; ++rank) fetch_range(values[rank], begin, begin + kFetchAheadFloats, end);
  int64_t i = begin;
  for (; i + kLineFloats <= end; i += kLineFloats) {
    for (int rank = 0; rank < kRanks; ++rank) fetch_range(values[rank], i + kFetchAheadFloats, i + kFetchAheadFloats + 1, end);
    for (int64_t part = i; part < i + kLineFloats; part += kPartFloats) {
      Part sums[kRanks];
      for (int rank = 0; rank < kRanks; ++rank) sums[rank] = *part_at(values[rank] + part);
      add_tree<kRanks>(sums);
      for (int rank = 0; rank < kRanks; ++rank) *part_at(values[rank] + part) = sums[0];
    }
  }
  for (; i < end; ++i) {
    float sums[kRanks];
    for (int rank = 0; rank < kRanks; ++rank) sums[rank] = values[rank][i];
    add_tree<kRanks>(sums);
    for (int rank = 0; rank < kRanks; ++rank) values[rank][i] = sums[0];
  }
}

// values[r][i] of every rank r becomes the tree's sum of values[0][i] ... values[ranks - 1][i], for i in [begin, end): neighbours
// are added first, then sums of two, of four. `ranks` is a power of two, 2 to kMaxTreeInputs. Compiled for each number of ranks: a
// loop over them keeps the sums in memory.
inline void tree_sum(float* const* values, int ranks, int64_t begin, int64_t end) {
  switch (ranks) {
    case 2:
      return tree_sum_of<2>(values, begin, end);
    case 4:
      return tree_sum_of<4>(values, begin, end);
    case 8:
      return tree_sum_of<8>(values, begin, end);
    case 16:
      return tree_sum_of<16>(values, begin, end);
    case 32:
      return tree_sum_of<32>(values, begin, end);
    case kMaxTreeInputs:
      return tree_sum_of<kMaxTreeInputs>(values, begin, end);
  }
}

// Copies values that another rank has written into lines that this rank will write next.
inline void take_over(const float* from, int64_t count, float* to) {
  fetch_range(from, 0, kFetchAheadFloats, count);
  int64_t i = 0;
  for (; i + kLineFloats <= count; i += kLineFloats) {
    fetch_range(from, i + kFetchAheadFloats, i + kFetchAheadFloats + 1, count);
    for (int64_t part = i; part < i + kLineFloats; part += kPartFloats) *part_at(to + part) = *part_at(from + part);
  }
  for (; i < count; ++i) to[i] = from[i];
}

}  // namespace pq
