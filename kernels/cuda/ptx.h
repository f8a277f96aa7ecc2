// What CUDA C++ has no words for, each behind a small function: inline PTX and dynamic shared memory. The tests' emulation replaces
// this header and the CUDA headers, nothing else (tests/support/simt).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace pq::cuda {

// The dynamic shared memory of the block, aligned to 16 bytes.
template <typename T>
__device__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char pq_dynamic_shared[];
  return reinterpret_cast<T*>(pq_dynamic_shared);
}

// c += a b for int8 a [16, 32], b [32, 8] and int32 c [16, 8], in the fragments of mma.m16n8k32. Volatile because it takes a whole
// warp, so that it may not be moved to where only some lanes use the sums.
__device__ inline void multiply_tile(int c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// x rounded to TF32, 10 bits after the point, ties away from zero.
__device__ inline uint32_t to_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}

// c += a b for TF32 a [16, 8], b [8, 8] and fp32 c [16, 8], in the fragments of mma.m16n8k8; volatile alike.
__device__ inline void multiply_tile_tf32(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 bytes of global memory to shared memory, both aligned to 16, behind the thread's back; wait_copies waits for all of them that
// this thread began.
__device__ inline void copy_async(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(from)
               : "memory");
}
__device__ inline void wait_copies() { asm volatile("cp.async.wait_all;" : : : "memory"); }

// Four bytes of a and b (bytes 0 to 3 and 4 to 7), chosen by the four low nibbles of `selectors`: its lower three bits name the
// byte, the highest asks for eight copies of the byte's top bit instead.
__device__ inline uint32_t select_bytes(uint32_t a, uint32_t b, uint32_t selectors) {
  uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(a), "r"(b), "r"(selectors));
  return bytes;
}
// Bytes of 0 or 255 by the top bits of the bytes of x.
__device__ inline uint32_t spread_signs(uint32_t x) { return select_bytes(x, 0, 0xba98u); }

// Two bfloat16, to nearest, ties to even, the first in the lower half.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// Memory that other devices or the host read and write meanwhile: whole packets and words, unordered among each other.
__device__ inline void store_packet(uint64_t* address, uint64_t packet) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" : : "l"(address), "l"(packet) : "memory");
}
__device__ inline uint64_t load_packet(const uint64_t* address) {
  uint64_t packet;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(packet) : "l"(address) : "memory");
  return packet;
}
__device__ inline void store_word(uint32_t* address, uint32_t word) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" : : "l"(address), "r"(word) : "memory");
}
__device__ inline uint32_t load_word(const uint32_t* address) {
  uint32_t word;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(word) : "l"(address) : "memory");
  return word;
}

__device__ inline uint64_t clock_ns() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

}  // namespace pq::cuda
