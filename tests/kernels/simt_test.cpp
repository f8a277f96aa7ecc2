// The emulator that runs the CUDA kernels (tests/support/simt): instructions against their definitions, order of threads, and that
// it ends the process where a device would hang or compute garbage. A test of kernels is worth what these can catch.
#include "tests/support/simt/simt.h"

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "kernels/cuda/ptx.h"

namespace {

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, const Arguments&... arguments) {
  cudaLaunchConfig_t config;
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// A[r][k] and B[k][c] in the fragments that the PTX manual gives for mma.m16n8k32 with 8-bit operands.
void mma_kernel(const int8_t* a, const int8_t* b, int* c) {
  const int lane = static_cast<int>(threadIdx.x), group = lane / 4, member = lane % 4;
  uint32_t left[4] = {}, right[2] = {};
  for (int i = 0; i < 16; ++i) {
    const int row = (i < 4 || (i >= 8 && i < 12)) ? group : group + 8;
    const int k = member * 4 + (i & 3) + (i >= 8 ? 16 : 0);
    left[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(a[row * 32 + k])) << (8 * (i % 4));
  }
  for (int i = 0; i < 8; ++i) {
    const int k = member * 4 + (i & 3) + (i >= 4 ? 16 : 0);
    right[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(b[k * 8 + group])) << (8 * (i % 4));
  }
  int sum[4] = {1, 2, 3, 4};
  pq::cuda::multiply_tile(sum, left, right[0], right[1]);
  for (int i = 0; i < 4; ++i) c[(i < 2 ? group : group + 8) * 8 + member * 2 + (i & 1)] = sum[i] - (i + 1);
}

TEST(Simt, TileProductIsAMatrixProduct) {
  std::vector<int8_t> a(16 * 32), b(32 * 8);
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<int8_t>(i * 37 % 255 - 127);
  for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<int8_t>(i * 91 % 255 - 127);
  std::vector<int> c(16 * 8, -1);
  ASSERT_EQ(launch(mma_kernel, 1, 32, 0, a.data(), b.data(), c.data()), cudaSuccess);
  for (size_t r = 0; r < 16; ++r) {
    for (size_t col = 0; col < 8; ++col) {
      int sum = 0;
      for (size_t k = 0; k < 32; ++k) sum += a[r * 32 + k] * b[k * 8 + col];
      EXPECT_EQ(c[r * 8 + col], sum);
    }
  }
}

TEST(Simt, IntegerInstructions) {
  EXPECT_EQ(__dp4a(0x7f80ff01, 0x02807f03, 10), 10 + 127 * 2 + 128 * 128 - 127 + 3);
  EXPECT_EQ(__dp4a(0x7f7f7f7f, 0x7f7f7f7f, 0x7fffffff), static_cast<int>(0x7fffffffu + 4u * 127 * 127));
  EXPECT_EQ(__byte_perm(0x33221100u, 0x77665544u, 0x7531u), 0x77553311u);
  EXPECT_EQ(__byte_perm(0x33221100u, 0x77665544u, 0xf248u), 0x77224400u);  // only three bits of a nibble count
  EXPECT_EQ(__vsub4(0x00ff8001u, 0x01ff0102u), 0xff007fffu);
  EXPECT_EQ(__float2int_rn(2.5f), 2);
  EXPECT_EQ(__float2int_rn(-3.5f), -4);
  EXPECT_EQ(__float2int_rn(3e9f), INT32_MAX);
}

void shuffle_kernel(int* out) {
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  int* mine = out + 5 * threadIdx.x;
  mine[0] = __shfl_sync(0xffffffffu, 100 * warp + lane, 7);
  mine[1] = __shfl_xor_sync(0xffffffffu, lane, 5);
  mine[2] = __shfl_down_sync(0xffffffffu, lane, 3);
  mine[3] = __reduce_add_sync(0xffffffffu, lane);
  // A diverged half of the warp among itself.
  mine[4] = lane < 16 ? static_cast<int>(__ballot_sync(0x0000ffffu, lane % 2)) : -1;
}

TEST(Simt, ShufflesAndVotes) {
  for (int repeat = 0; repeat < 8; ++repeat) {
    std::vector<int> out(5 * 96, -7);
    ASSERT_EQ(launch(shuffle_kernel, 1, 96, 0, out.data()), cudaSuccess);
    for (int t = 0; t < 96; ++t) {
      const int* mine = out.data() + 5 * t;
      const int lane = t % 32;
      EXPECT_EQ(mine[0], t / 32 * 100 + 7);
      EXPECT_EQ(mine[1], lane ^ 5);
      EXPECT_EQ(mine[2], lane + 3 < 32 ? lane + 3 : lane);
      EXPECT_EQ(mine[3], 31 * 16);
      EXPECT_EQ(mine[4], lane < 16 ? 0xaaaa : -1);
    }
  }
}

// Reverses 64 values through shared memory; without the barrier, threads read what has not been written.
template <bool barrier>
void reverse_kernel(int* values) {
  int* shared = pq::cuda::dynamic_shared<int>();
  shared[threadIdx.x] = values[threadIdx.x];
  if (barrier) __syncthreads();
  values[threadIdx.x] = shared[63 - threadIdx.x];
}

template <bool barrier>
bool reverses() {
  std::vector<int> values(64), expected(64);
  std::iota(values.begin(), values.end(), 0);
  std::iota(expected.rbegin(), expected.rend(), 0);
  EXPECT_EQ(launch(reverse_kernel<barrier>, 1, 64, 64 * sizeof(int), values.data()), cudaSuccess);
  return values == expected;
}

TEST(Simt, AMissingBarrierShowsInEveryOrder) {
  for (int repeat = 0; repeat < 16; ++repeat) {
    EXPECT_TRUE(reverses<true>());
    EXPECT_FALSE(reverses<false>());
  }
}

void lonely_barrier_kernel() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncwarp();
    for (int i = 0; i < 1; ++i) __shfl_sync(threadIdx.x < 40 ? 0xffffffffu : 0xffffff00u, 1, 8);
  }
}
void half_shuffle_kernel() {
  if (threadIdx.x < 16) __shfl_sync(0xffffffffu, 1, 0);
  if (threadIdx.x >= 16) __syncthreads();
}
void wild_read_kernel() {
  if (threadIdx.x < 16) __shfl_xor_sync(0x0000ffffu, 1, 16);
}
void beyond_kernel(int* data) { data[16 + threadIdx.x % 4] = 1; }

TEST(SimtDeath, WhatWouldHangOrReadGarbageEndsTheProcess) {
  EXPECT_DEATH(launch(half_shuffle_kernel, 1, 32, 0), "never completed");
  EXPECT_DEATH(launch(lonely_barrier_kernel, 1, 64, 0), "masks that overlap|never completed");
  EXPECT_DEATH(launch(wild_read_kernel, 1, 32, 0), "takes no part");
}

TEST(SimtDeath, AWriteBeyondDeviceMemoryEndsTheProcess) {
  void* data = nullptr;
  ASSERT_EQ(cudaMalloc(&data, 16 * sizeof(int)), cudaSuccess);
  EXPECT_DEATH(launch(beyond_kernel, 1, 32, 0, static_cast<int*>(data)), "beyond an allocation|AddressSanitizer");
  EXPECT_EQ(cudaFree(data), cudaSuccess);
}

TEST(Simt, RefusesWhatADeviceRefuses) {
  int value = 0;
  EXPECT_EQ(launch(reverse_kernel<true>, 1, 2048, 0, &value), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(reverse_kernel<true>, 1, 64, 50 << 10, &value), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(reverse_kernel<true>, dim3(1, 65536), 64, 0, &value), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(reverse_kernel<true>, 0, 64, 0, &value), cudaErrorInvalidConfiguration);
}

}  // namespace
