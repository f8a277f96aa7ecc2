// Measured roofs of roofs.h: loops with nothing in them but the instruction they measure.
#include "eval/roofs.h"

#include <cpuid.h>
#include <immintrin.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <iterator>

#include "base/error.h"

namespace pq {
namespace {

// Kept out of reach of the optimiser.
thread_local volatile int64_t t_sink = 0;

struct Pattern {
  int streams;
  int64_t prefetch;  // bytes ahead in each stream; 0: none
};
constexpr Pattern kPatterns[] = {{1, 0},    {1, 1024}, {1, 4096}, {1, 8192}, {2, 0},
                                 {2, 1024}, {2, 2048}, {4, 0},    {4, 1024}, {4, 4096}};

// A part of memory is a whole number of strides of each of its streams.
constexpr int64_t kStride = 256;
constexpr int64_t kPartAlignment = 4 * 4096;
constexpr int64_t kHugePage = int64_t{1} << 21;

// The smallest multiple of `unit` that is at least `value`.
int64_t whole(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

void free_bytes(std::byte* memory) { std::free(memory); }

// Each function reads `bytes` from `data` as kStreams streams. A prefetch beyond the end reads nothing and does not fault.
template <int kStreams>
__attribute__((target("avx512f"))) void read_avx512(const std::byte* data, int64_t bytes, int64_t prefetch) {
  __m512i sum[4] = {};
  const int64_t length = bytes / kStreams;
  for (int64_t at = 0; at < length; at += kStride) {
    for (int stream = 0; stream < kStreams; ++stream) {
      const std::byte* from = data + stream * length + at;
      if (prefetch != 0)
        for (int i = 0; i < 4; ++i) _mm_prefetch(reinterpret_cast<const char*>(from + prefetch + 64 * i), _MM_HINT_T0);
      for (int i = 0; i < 4; ++i) sum[i] = _mm512_xor_si512(sum[i], _mm512_load_si512(from + 64 * i));
    }
  }
  const __m512i all = _mm512_xor_si512(_mm512_xor_si512(sum[0], sum[1]), _mm512_xor_si512(sum[2], sum[3]));
  t_sink = _mm_cvtsi128_si64(_mm512_castsi512_si128(all)) ^ _mm_cvtsi128_si64(_mm512_extracti32x4_epi32(all, 3));
}

template <int kStreams>
__attribute__((target("avx2"))) void read_avx2(const std::byte* data, int64_t bytes, int64_t prefetch) {
  __m256i sum[4] = {};
  const int64_t length = bytes / kStreams;
  for (int64_t at = 0; at < length; at += kStride) {
    for (int stream = 0; stream < kStreams; ++stream) {
      const std::byte* from = data + stream * length + at;
      if (prefetch != 0)
        for (int i = 0; i < 4; ++i) _mm_prefetch(reinterpret_cast<const char*>(from + prefetch + 64 * i), _MM_HINT_T0);
      for (int i = 0; i < 8; ++i)
        sum[i % 4] = _mm256_xor_si256(sum[i % 4], _mm256_load_si256(reinterpret_cast<const __m256i*>(from + 32 * i)));
    }
  }
  const __m256i all = _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
  t_sink = _mm256_extract_epi64(all, 0) ^ _mm256_extract_epi64(all, 3);
}

template <int kStreams>
void read_portable(const std::byte* data, int64_t bytes, int64_t prefetch) {
  uint64_t sum[8] = {};
  const int64_t length = bytes / kStreams;
  for (int64_t at = 0; at < length; at += 64) {
    for (int stream = 0; stream < kStreams; ++stream) {
      const std::byte* from = data + stream * length + at;
      if (prefetch != 0) __builtin_prefetch(from + prefetch);
      uint64_t words[8];
      std::memcpy(words, from, sizeof words);
      for (int i = 0; i < 8; ++i) sum[i] ^= words[i];
    }
  }
  uint64_t all = 0;
  for (const uint64_t word : sum) all ^= word;
  t_sink = static_cast<int64_t>(all);
}

template <int kStreams>
void read_part(const std::byte* data, int64_t bytes, int64_t prefetch) {
  if (__builtin_cpu_supports("avx512f")) return read_avx512<kStreams>(data, bytes, prefetch);
  if (__builtin_cpu_supports("avx2")) return read_avx2<kStreams>(data, bytes, prefetch);
  read_portable<kStreams>(data, bytes, prefetch);
}

// A multiple of the accumulators.
constexpr int64_t kDotInstructions = 48 * 700'000;
// Independent sums that hide the latency of the instruction: two a cycle of five cycles, with operands in registers of AVX2.
constexpr int kSums = 12;

// The empty asm keeps each step, which the compiler would fold. The sums are not read afterwards: whatever indexes them by a
// variable keeps them in memory.
__attribute__((target("avx512f,avx512vnni"))) void dot_avx512_vnni() {
  __m512i sums[kSums] = {};
  const __m512i a = _mm512_set1_epi8(3);
  const __m512i b = _mm512_set1_epi8(5);
  for (int64_t i = 0; i < kDotInstructions; i += kSums) {
#pragma GCC unroll 12
    for (int j = 0; j < kSums; ++j) {
      sums[j] = _mm512_dpbusd_epi32(sums[j], a, b);
      asm volatile("" : "+v"(sums[j]));
    }
  }
}

__attribute__((target("avx512f,avx512bw"))) void dot_avx512() {
  __m512i sums[kSums] = {};
  const __m512i a = _mm512_set1_epi8(3);
  const __m512i b = _mm512_set1_epi8(5);
  const __m512i ones = _mm512_set1_epi16(1);
  for (int64_t i = 0; i < kDotInstructions; i += kSums) {
#pragma GCC unroll 12
    for (int j = 0; j < kSums; ++j) {
      __m512i pairs = _mm512_maddubs_epi16(a, b);
      asm volatile("" : "+v"(pairs));
      sums[j] = _mm512_add_epi32(sums[j], _mm512_madd_epi16(pairs, ones));
      asm volatile("" : "+v"(sums[j]));
    }
  }
}

__attribute__((target("avx2,avxvnni"))) void dot_avx2_vnni() {
  __m256i sums[kSums] = {};
  const __m256i a = _mm256_set1_epi8(3);
  const __m256i b = _mm256_set1_epi8(5);
  for (int64_t i = 0; i < kDotInstructions; i += kSums) {
#pragma GCC unroll 12
    for (int j = 0; j < kSums; ++j) {
      sums[j] = _mm256_dpbusd_avx_epi32(sums[j], a, b);
      asm volatile("" : "+x"(sums[j]));
    }
  }
}

__attribute__((target("avx2"))) void dot_avx2() {
  __m256i sums[kSums] = {};
  const __m256i a = _mm256_set1_epi8(3);
  const __m256i b = _mm256_set1_epi8(5);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t i = 0; i < kDotInstructions; i += kSums) {
#pragma GCC unroll 12
    for (int j = 0; j < kSums; ++j) {
      __m256i pairs = _mm256_maddubs_epi16(a, b);
      asm volatile("" : "+x"(pairs));
      sums[j] = _mm256_add_epi32(sums[j], _mm256_madd_epi16(pairs, ones));
      asm volatile("" : "+x"(sums[j]));
    }
  }
}

// What plain C++ compiles to on any x86-64: bytes are widened beforehand.
void dot_sse2() {
  __m128i sums[kSums] = {};
  const __m128i a = _mm_set1_epi16(3);
  const __m128i b = _mm_set1_epi16(5);
  for (int64_t i = 0; i < kDotInstructions; i += kSums) {
#pragma GCC unroll 12
    for (int j = 0; j < kSums; ++j) {
      __m128i pairs = _mm_madd_epi16(a, b);
      asm volatile("" : "+x"(pairs));
      sums[j] = _mm_add_epi32(sums[j], pairs);
      asm volatile("" : "+x"(sums[j]));
    }
  }
}

bool has_avx_vnni() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & (1u << 4)) != 0;
}

}  // namespace

ReadRoof::ReadRoof(int64_t bytes, ThreadPool* pool)
    : pool_(pool), bytes_(whole(bytes, pool->threads() * kPartAlignment)), memory_(nullptr, free_bytes) {
  memory_.reset(static_cast<std::byte*>(std::aligned_alloc(kHugePage, static_cast<size_t>(whole(bytes_, kHugePage)))));
  if (!memory_) throw Error(ErrorKind::environment, "no memory for a bandwidth test of " + std::to_string(bytes_) + " bytes");
  madvise(memory_.get(), static_cast<size_t>(bytes_), MADV_HUGEPAGE);
  const int64_t part = bytes_ / pool_->threads();
  pool_->parallel_for(pool_->threads(),
                      [&](int64_t i, int) { std::memset(memory_.get() + i * part, 1, static_cast<size_t>(part)); });
}

int ReadRoof::patterns() const { return static_cast<int>(std::size(kPatterns)); }

std::string ReadRoof::name(int pattern) const {
  const Pattern& p = kPatterns[pattern];
  return std::to_string(p.streams) + (p.streams == 1 ? " stream" : " streams") +
         (p.prefetch == 0 ? ", no prefetch" : ", prefetch " + std::to_string(p.prefetch));
}

void ReadRoof::read(int pattern) const {
  const Pattern& p = kPatterns[pattern];
  const int64_t part = bytes_ / pool_->threads();
  pool_->parallel_for(pool_->threads(), [&](int64_t i, int) {
    const std::byte* data = memory_.get() + i * part;
    if (p.streams == 1) read_part<1>(data, part, p.prefetch);
    if (p.streams == 2) read_part<2>(data, part, p.prefetch);
    if (p.streams == 4) read_part<4>(data, part, p.prefetch);
  });
}

DotRoof::DotRoof(const std::string& isa, ThreadPool* pool) : pool_(pool) {
  const auto asked = [&](const char* word) { return isa.find(word) != std::string::npos; };
  // Paths with VBMI or AMX have VNNI too.
  const bool vnni = asked("vnni") || asked("vbmi") || asked("amx");
  const bool avx512 = asked("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
  const bool avx2 = (asked("avx512") || asked("avx2")) && __builtin_cpu_supports("avx2");
  if (avx512 && vnni && __builtin_cpu_supports("avx512vnni")) {
    instruction_ = "avx512-vnni", macs_per_instruction_ = 64, loop_ = dot_avx512_vnni;
  } else if (avx512) {
    instruction_ = "avx512", macs_per_instruction_ = 64, loop_ = dot_avx512;
  } else if (avx2 && vnni && has_avx_vnni()) {
    instruction_ = "avx2-vnni", macs_per_instruction_ = 32, loop_ = dot_avx2_vnni;
  } else if (avx2) {
    instruction_ = "avx2", macs_per_instruction_ = 32, loop_ = dot_avx2;
  } else {
    instruction_ = "sse2", macs_per_instruction_ = 8, loop_ = dot_sse2;
  }
}

int64_t DotRoof::macs() const { return kDotInstructions * macs_per_instruction_ * pool_->threads(); }

void DotRoof::run() const {
  pool_->parallel_for(pool_->threads(), [&](int64_t, int) { loop_(); });
}

}  // namespace pq
