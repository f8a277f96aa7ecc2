// A counter-based random stream: the n-th value depends on (seed, n) only, on every machine and rank.
#pragma once

#include <cmath>
#include <cstdint>

namespace pq {

// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): passes BigCrush, one multiply chain a draw.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next_u64() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  // Random(seed()) gives what comes next here.
  uint64_t seed() const { return state_; }

  // Uniform in [0, 1) with 53 bits.
  double uniform() { return static_cast<double>(next_u64() >> 11) * 0x1p-53; }

  // Uniform in [0, bound), bound > 0; the bias is below bound / 2^64.
  int64_t below(int64_t bound) {
    return static_cast<int64_t>((static_cast<unsigned __int128>(next_u64()) * static_cast<uint64_t>(bound)) >> 64);
  }

  // Standard normal (Box-Muller, one of the pair).
  double normal() {
    const double u = 1.0 - uniform();
    const double v = uniform();
    return std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586 * v);
  }

 private:
  uint64_t state_;
};

}  // namespace pq
