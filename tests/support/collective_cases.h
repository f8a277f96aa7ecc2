// The checks every communicator must pass, run alike by thread tests and MPI programs. Each returns "" or what was wrong.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "base/random.h"
#include "comm/communicator.h"

namespace pq::test {

// 0, 1, around vector and block sizes, one row of the 27B, and more than one 512 KiB piece.
inline const std::vector<int64_t>& collective_counts() {
  static const std::vector<int64_t> counts = {0, 1, 2, 15, 16, 17, 127, 128, 129, 5120, 300001};
  return counts;
}

// Small integers: every order of additions gives the same sum, so the test is equality.
inline float integer_input(int rank, int64_t i) { return static_cast<float>((i * 7 + rank * 31 + i % 13) % 1000 - 500); }

inline std::string check_sums(Communicator& comm) {
  for (const int64_t count : collective_counts()) {
    // Values on both sides must stay untouched.
    std::vector<float> data(static_cast<size_t>(count + 2), -1234.5f);
    for (int64_t i = 0; i < count; ++i) data[static_cast<size_t>(i + 1)] = integer_input(comm.rank(), i);
    comm.all_reduce_sum(data.data() + 1, count);
    if (data.front() != -1234.5f || data.back() != -1234.5f) return "all_reduce_sum wrote outside of its buffer";
    for (int64_t i = 0; i < count; ++i) {
      float expected = 0;
      for (int rank = 0; rank < comm.size(); ++rank) expected += integer_input(rank, i);
      if (data[static_cast<size_t>(i + 1)] != expected) {
        return "sum of " + std::to_string(count) + " values: element " + std::to_string(i) + " is " +
               std::to_string(data[static_cast<size_t>(i + 1)]) + ", not " + std::to_string(expected);
      }
    }
  }
  return "";
}

inline uint8_t byte_input(int rank, int64_t i) { return static_cast<uint8_t>(i * 5 + rank * 101 + 3); }

inline std::string check_gathers(Communicator& comm) {
  const int ranks = comm.size();
  for (const int64_t bytes : collective_counts()) {
    std::vector<uint8_t> mine(static_cast<size_t>(bytes));
    for (int64_t i = 0; i < bytes; ++i) mine[static_cast<size_t>(i)] = byte_input(comm.rank(), i);
    std::vector<uint8_t> expected;
    for (int rank = 0; rank < ranks; ++rank) {
      for (int64_t i = 0; i < bytes; ++i) expected.push_back(byte_input(rank, i));
    }
    std::vector<uint8_t> all(expected.size() + 1, 0xee);
    comm.all_gather(mine.data(), bytes, all.data());
    if (all.back() != 0xee) return "all_gather wrote outside of its buffer";
    all.pop_back();
    if (all != expected) return "all_gather of " + std::to_string(bytes) + " bytes";
    std::vector<uint8_t> root(comm.rank() == 0 ? expected.size() : 0);
    comm.gather(mine.data(), bytes, comm.rank() == 0 ? root.data() : nullptr);
    if (comm.rank() == 0 && root != expected) return "gather of " + std::to_string(bytes) + " bytes";
    comm.broadcast(mine.data(), bytes);
    for (int64_t i = 0; i < bytes; ++i) {
      if (mine[static_cast<size_t>(i)] != byte_input(0, i)) return "broadcast of " + std::to_string(bytes) + " bytes";
    }
    comm.barrier();
  }
  return "";
}

inline std::string check_collectives(Communicator& comm) {
  const std::string sums = check_sums(comm);
  return sums.empty() ? check_gathers(comm) : sums;
}

inline std::vector<float> float_input(int rank, int64_t count) {
  Random random(static_cast<uint64_t>(rank) + 77);
  std::vector<float> values(static_cast<size_t>(count));
  // Magnitudes over 2^40 make nearly every sum depend on its order.
  for (float& value : values) value = static_cast<float>(random.normal() * std::exp2(random.uniform() * 40));
  return values;
}

// The sum of `ranks` values by the documented tree: halves of the rank range, recursively.
inline float tree_sum(const std::vector<std::vector<float>>& inputs, int first, int ranks, int64_t i) {
  if (ranks == 1) return inputs[static_cast<size_t>(first)][static_cast<size_t>(i)];
  return tree_sum(inputs, first, ranks / 2, i) + tree_sum(inputs, first + ranks / 2, ranks / 2, i);
}

inline std::string check_tree_order(Communicator& comm) {
  constexpr int64_t kCount = 140001;
  std::vector<std::vector<float>> inputs;
  for (int rank = 0; rank < comm.size(); ++rank) inputs.push_back(float_input(rank, kCount));
  std::vector<float> data = inputs[static_cast<size_t>(comm.rank())];
  comm.all_reduce_sum(data.data(), kCount);
  int64_t order_matters = 0;
  for (int64_t i = 0; i < kCount; ++i) {
    const float expected = tree_sum(inputs, 0, comm.size(), i);
    if (std::bit_cast<uint32_t>(data[static_cast<size_t>(i)]) != std::bit_cast<uint32_t>(expected)) {
      return "element " + std::to_string(i) + " was not added in tree order";
    }
    float in_sequence = 0;
    for (const auto& input : inputs) in_sequence += input[static_cast<size_t>(i)];
    order_matters += in_sequence != expected;
  }
  // The inputs must be able to tell orders apart.
  if (comm.size() >= 4 && order_matters < kCount / 20) return "the inputs do not distinguish orders of addition";
  return "";
}

}  // namespace pq::test
