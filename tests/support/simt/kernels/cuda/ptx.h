// Emulated forms of kernels/cuda/ptx.h, which documents them.
#pragma once

#include <cuda_runtime.h>

#include <bit>
#include <vector>

namespace pq::cuda {

template <typename T>
T* dynamic_shared() {
  return static_cast<T*>(simt::dynamic_shared());
}

// Fragments of mma.m16n8k32 as the PTX manual lays them out: lane = 4 * group + member; a[0..3] are rows group, group + 8, group,
// group + 8 with k = 4 * member + byte (+ 16 for a[2], a[3]); b0, b1 column group, k = 4 * member + byte (+ 16); c rows group,
// group + 8, columns 2 * member, 2 * member + 1.
inline void multiply_tile(int c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
  const uint32_t own[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const uint32_t* all = simt::exchange_words(own, 6);
  const int group = simt::lane() / 4, member = simt::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = i < 2 ? group : group + 8;
    const int column = 2 * member + i % 2;
    uint32_t sum = static_cast<uint32_t>(c[i]);
    for (int part = 0; part < 8; ++part) {
      const int half = part / 4;  // k from 16 half + 4 (part % 4) on
      const uint32_t left = all[8 * (4 * (row % 8) + part % 4) + (row >= 8 ? 1 : 0) + 2 * half];
      const uint32_t right = all[8 * (4 * column + part % 4) + 4 + half];
      for (int byte = 0; byte < 32; byte += 8)
        sum += static_cast<uint32_t>(static_cast<int8_t>(left >> byte) * static_cast<int8_t>(right >> byte));
    }
    c[i] = static_cast<int>(sum);
  }
}

// The upper 19 bits, rounded in magnitude.
inline uint32_t to_tf32(float x) { return (std::bit_cast<uint32_t>(x) + 0x1000u) & ~0x1fffu; }

// Fragments of mma.m16n8k8 for TF32: a[0..3] are rows group, group + 8, group, group + 8 with k = member (+ 4 for a[2], a[3]); b0,
// b1 column group, k = member (+ 4); c as above. Values are read as TF32: whatever stands below its bits is dropped.
inline void multiply_tile_tf32(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
  const uint32_t own[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const uint32_t* all = simt::exchange_words(own, 6);
  const int group = simt::lane() / 4, member = simt::lane() % 4;
  const auto value = [](uint32_t bits) { return std::bit_cast<float>(bits & ~0x1fffu); };
  for (int i = 0; i < 4; ++i) {
    const int row = i < 2 ? group : group + 8;
    const int column = 2 * member + i % 2;
    for (int k = 0; k < 8; ++k) {
      const float x = value(all[8 * (4 * (row % 8) + k % 4) + (row >= 8 ? 1 : 0) + (k >= 4 ? 2 : 0)]);
      const float y = value(all[8 * (4 * column + k % 4) + (k >= 4 ? 5 : 4)]);
      c[i] += x * y;
    }
  }
}

// Copies arrive when their thread waits for them, no earlier.
struct PendingCopy {
  void* to;
  const void* from;
};
inline std::vector<PendingCopy>& pending_copies() {
  static thread_local std::vector<PendingCopy> all[1024];
  return all[(threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x];
}
inline void copy_async(void* to, const void* from) { pending_copies().push_back({to, from}); }
inline void wait_copies() {
  for (const PendingCopy& copy : pending_copies()) std::memcpy(copy.to, copy.from, 16);
  pending_copies().clear();
}
inline uint32_t select_bytes(uint32_t a, uint32_t b, uint32_t selectors) {
  const uint64_t all = static_cast<uint64_t>(b) << 32 | a;
  uint32_t bytes = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t selector = (selectors >> (4 * i)) & 15u;
    uint32_t byte = static_cast<uint32_t>(all >> (8 * (selector & 7u))) & 0xffu;
    if (selector & 8u) byte = byte & 0x80u ? 0xffu : 0u;
    bytes |= byte << (8 * i);
  }
  return bytes;
}
inline uint32_t spread_signs(uint32_t x) { return select_bytes(x, 0, 0xba98u); }

inline uint32_t pack_bf16(float low, float high) {
  const auto rounded = [](float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  };
  return rounded(low) | rounded(high) << 16;
}

inline void store_packet(uint64_t* address, uint64_t packet) {
  std::atomic_ref<uint64_t>(*address).store(packet, std::memory_order_relaxed);
}
// A kernel loads packets in loops that wait for another rank.
inline uint64_t load_packet(const uint64_t* address) {
  simt::pause();
  return std::atomic_ref<uint64_t>(*const_cast<uint64_t*>(address)).load(std::memory_order_relaxed);
}
inline void store_word(uint32_t* address, uint32_t word) {
  std::atomic_ref<uint32_t>(*address).store(word, std::memory_order_relaxed);
}
inline uint32_t load_word(const uint32_t* address) {
  return std::atomic_ref<uint32_t>(*const_cast<uint32_t*>(address)).load(std::memory_order_relaxed);
}
inline uint64_t clock_ns() { return simt::clock_ns(); }

}  // namespace pq::cuda
