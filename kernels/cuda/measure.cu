// What pq-bench asks of the device beside operations (kernels/device_measure.h): marks on the stream, a copy, a train of matrix
// instructions, random bytes.
#include <algorithm>

#include "kernels/cuda/cuda_backend.h"

namespace pq::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kVectors = 4;  // 16 bytes each, in flight a thread
constexpr int kTiles = 8;    // independent sums a warp, that hide the latency of the instruction
constexpr int kBlocksPerUnit = 2;

__global__ void copy_kernel(uint4* to, const uint4* from, int64_t count) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads * kVectors + threadIdx.x;
  uint4 v[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (first + i * kThreads < count) v[i] = from[first + i * kThreads];
  }
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (first + i * kThreads < count) to[first + i * kThreads] = v[i];
  }
}

// The sums are written only where they have a value that they never take: the compiler cannot know.
__global__ void multiply_kernel(int* out, int rounds) {
  int sums[kTiles][4] = {};
  const uint32_t a[4] = {0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u};
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) multiply_tile(sums[t], a, 0x01010101u, 0x01010101u);
  }
  int all = 0;
#pragma unroll
  for (int t = 0; t < kTiles; ++t) all |= sums[t][0] | sums[t][1] | sums[t][2] | sums[t][3];
  if (all == -1) *out = all;
}

// Word n of the stream of base/random.h.
__device__ uint64_t random_word(uint64_t seed, int64_t n) {
  uint64_t z = seed + 0x9e3779b97f4a7c15u * static_cast<uint64_t>(n + 1);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

__global__ void fill_kernel(uint64_t* data, int64_t words, uint64_t seed) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n < words) data[n] = random_word(seed, n);
}

template <typename T>
struct Choices {
  T values[256];
};

template <typename T>
__global__ void fill_choices_kernel(T* data, int64_t count, Choices<T> choices, uint64_t seed) {
  __shared__ T values[256];
  static_assert(kThreads == 256);
  values[threadIdx.x] = choices.values[threadIdx.x];
  __syncthreads();
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n < count) data[n] = values[random_word(seed, n) >> 56];
}

template <typename T>
void fill_from(T* data, int64_t count, const T* values, uint64_t seed, cudaStream_t stream) {
  Choices<T> choices;
  std::copy_n(values, 256, choices.values);
  if (count > 0)
    launch("fill", fill_choices_kernel<T>, blocks_for(count, kThreads), kThreads, 0, stream, data, count, choices, seed);
}

}  // namespace

cudaError_t kernel_image_error() {
  cudaFuncAttributes attributes{};
  const cudaError_t result = cudaFuncGetAttributes(&attributes, copy_kernel);
  if (result != cudaSuccess) cudaGetLastError();
  return result;
}

void CudaBackend::mark() {
  if (marked_ == marks_.size()) {
    marks_.emplace_back();
    check(cudaEventCreate(&marks_.back()), "cudaEventCreate");
  }
  check(cudaEventRecord(marks_[marked_++], stream_), "cudaEventRecord");
}

std::vector<double> CudaBackend::intervals() {
  synchronize();
  std::vector<double> seconds;
  for (size_t i = 1; i < marked_; ++i) {
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, marks_[i - 1], marks_[i]), "cudaEventElapsedTime");
    seconds.push_back(1e-3 * static_cast<double>(milliseconds));
  }
  marked_ = 0;
  return seconds;
}

void CudaBackend::copy(void* to, const void* from, int64_t bytes, bool by_kernel) {
  require(bytes % 16 == 0, "a copy of a number of bytes that is no multiple of 16");
  if (bytes == 0) return;
  if (!by_kernel) {
    check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream_), "cudaMemcpy on the device");
    return;
  }
  const int64_t count = bytes / 16;
  launch("copy", copy_kernel, blocks_for(count, kThreads * kVectors), kThreads, 0, stream_, static_cast<uint4*>(to),
         static_cast<const uint4*>(from), count);
}

int64_t CudaBackend::multiply(int64_t rounds) {
  int units = 0;
  check(cudaDeviceGetAttribute(&units, cudaDevAttrMultiProcessorCount, device_), "cudaDeviceGetAttribute");
  const int blocks = kBlocksPerUnit * units;
  launch("multiply", multiply_kernel, blocks, kThreads, 0, stream_, reinterpret_cast<int*>(scratch(1)), static_cast<int>(rounds));
  return int64_t{16} * 8 * 32 * kTiles * (kThreads / 32) * blocks * rounds;
}

void CudaBackend::fill_random(uint64_t* data, int64_t words, uint64_t seed) {
  if (words > 0) launch("fill", fill_kernel, blocks_for(words, kThreads), kThreads, 0, stream_, data, words, seed);
}

void CudaBackend::fill_choices(uint16_t* data, int64_t count, const uint16_t* values, uint64_t seed) {
  fill_from(data, count, values, seed, stream_);
}

void CudaBackend::fill_choices(float* data, int64_t count, const float* values, uint64_t seed) {
  fill_from(data, count, values, seed, stream_);
}

int64_t CudaBackend::taken_bytes() const {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return static_cast<int64_t>(total - free);
}

int64_t CudaBackend::free_bytes() const {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return static_cast<int64_t>(free);
}

}  // namespace pq::cuda
