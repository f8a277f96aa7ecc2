// Instruction sets of the cpu backend. All of them give the same bits; they differ in speed only.
#pragma once

namespace pq {

enum class Isa : int {
  generic,  // plain C++, any machine
  avx2,     // AVX2, FMA, F16C
  avx512,   // AVX-512 F, BW, DQ, VL, VBMI and VNNI
};

bool isa_supported(Isa isa);

// The fastest one that this machine has.
Isa best_isa();

// "generic", "avx2", "avx512-vnni"
const char* isa_name(Isa isa);

}  // namespace pq
