// Measured roofs of roofs.h: loops with nothing in them but the instruction they measure.
#include "eval/roofs.h"

#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "base/error.h"

namespace pq {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Kept out of reach of the optimiser.
volatile int64_t g_sink = 0;

__attribute__((target("avx512f"))) int64_t read_avx512(const std::byte* data, int64_t bytes) {
  __m512i sum[4] = {};
  for (int64_t at = 0; at < bytes; at += 256) {
    _mm_prefetch(reinterpret_cast<const char*>(data + at + 4096), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(data + at + 4160), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(data + at + 4224), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(data + at + 4288), _MM_HINT_T0);
    for (int i = 0; i < 4; ++i) sum[i] = _mm512_xor_si512(sum[i], _mm512_load_si512(data + at + 64 * i));
  }
  alignas(64) int64_t lanes[8];
  _mm512_store_si512(lanes, _mm512_xor_si512(_mm512_xor_si512(sum[0], sum[1]), _mm512_xor_si512(sum[2], sum[3])));
  return lanes[0] ^ lanes[1] ^ lanes[2] ^ lanes[3] ^ lanes[4] ^ lanes[5] ^ lanes[6] ^ lanes[7];
}

int64_t read_portable(const std::byte* data, int64_t bytes) {
  uint64_t sum[8] = {};
  for (int64_t at = 0; at < bytes; at += 64) {
    uint64_t words[8];
    std::memcpy(words, data + at, sizeof words);
    for (int i = 0; i < 8; ++i) sum[i] ^= words[i];
  }
  uint64_t all = 0;
  for (const uint64_t word : sum) all ^= word;
  return static_cast<int64_t>(all);
}

constexpr int64_t kDotIterations = 20'000'000;

// 16 independent accumulators hide the latency of the instruction. The empty asm keeps each step: without it the compiler folds
// them.
__attribute__((target("avx512f,avx512vnni"))) int64_t dot_vnni() {
  __m512i acc[16] = {};
  const __m512i a = _mm512_set1_epi8(3);
  const __m512i b = _mm512_set1_epi8(5);
  for (int64_t i = 0; i < kDotIterations; i += 16) {
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
      acc[j] = _mm512_dpbusd_epi32(acc[j], a, b);
      asm volatile("" : "+v"(acc[j]));
    }
  }
  __m512i sum = acc[0];
  for (int j = 1; j < 16; ++j) sum = _mm512_add_epi32(sum, acc[j]);
  return _mm_cvtsi128_si64(_mm512_castsi512_si128(sum));
}

__attribute__((target("avx2"))) int64_t dot_avx2() {
  __m256i acc[8] = {};
  const __m256i a = _mm256_set1_epi8(3);
  const __m256i b = _mm256_set1_epi8(5);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t i = 0; i < kDotIterations; i += 8) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      acc[j] = _mm256_add_epi32(acc[j], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
      asm volatile("" : "+x"(acc[j]));
    }
  }
  int64_t sum = 0;
  for (const __m256i& v : acc) sum += _mm256_extract_epi64(v, 0);
  return sum;
}

int64_t dot_scalar() {
  int32_t acc[8] = {};
  for (int64_t i = 0; i < kDotIterations; i += 8) {
    for (int j = 0; j < 8; ++j) {
      acc[j] += 3 * 5;
      asm volatile("" : "+r"(acc[j]));
    }
  }
  return acc[0] + acc[7];
}

}  // namespace

double measure_read_bandwidth(int64_t bytes, int passes) {
  bytes = bytes / 4096 * 4096;
  // The prefetch runs past the end; the last page is never counted.
  const std::unique_ptr<void, void (*)(void*)> memory(std::aligned_alloc(4096, static_cast<size_t>(bytes + 8192)), std::free);
  if (!memory) throw Error(ErrorKind::environment, "no memory for a bandwidth test of " + std::to_string(bytes) + " bytes");
  madvise(memory.get(), static_cast<size_t>(bytes), MADV_HUGEPAGE);
  std::memset(memory.get(), 1, static_cast<size_t>(bytes + 8192));
  const auto* data = static_cast<const std::byte*>(memory.get());
  const bool wide = __builtin_cpu_supports("avx512f");
  double best = 0;
  for (int pass = 0; pass < passes; ++pass) {
    const auto start = Clock::now();
    g_sink = g_sink + (wide ? read_avx512(data, bytes) : read_portable(data, bytes));
    best = std::max(best, static_cast<double>(bytes) / seconds_since(start));
  }
  return best;
}

DotRate measure_dot_rate() {
  DotRate rate;
  const bool vnni = __builtin_cpu_supports("avx512vnni");
  const bool avx2 = __builtin_cpu_supports("avx2");
  rate.instruction = vnni ? "avx512-vnni" : avx2 ? "avx2" : "scalar";
  const int64_t macs = vnni ? 64 : avx2 ? 32 : 1;
  for (int pass = 0; pass < 5; ++pass) {
    const auto start = Clock::now();
    g_sink = g_sink + (vnni ? dot_vnni() : avx2 ? dot_avx2() : dot_scalar());
    rate.macs_per_second = std::max(rate.macs_per_second, static_cast<double>(kDotIterations * macs) / seconds_since(start));
  }
  return rate;
}

}  // namespace pq
