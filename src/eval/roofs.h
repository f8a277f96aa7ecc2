// Physical limits measured on the ranks that run the benchmark: how fast memory can be read and how many int8 products a core can
// add. Results of kernels are reported as fractions of these.
#pragma once

#include <string>

namespace pq {

// Bytes per second of reading `bytes` of memory from end to end by one thread, best of `passes`.
double measure_read_bandwidth(int64_t bytes, int passes);

// int8 multiply-adds per second of one thread on registers, and the instruction used ("avx512-vnni", "avx2", "scalar").
struct DotRate {
  double macs_per_second = 0;
  std::string instruction;
};
DotRate measure_dot_rate();

}  // namespace pq
