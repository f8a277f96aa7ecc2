// Instruction sets of the cpu backend. All of them give the same bits; they differ in speed only.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace pq {

// From the slowest to the fastest. AVX-512 stands for F, BW, DQ and VL.
enum class Isa : int {
  generic,      // plain C++, any machine
  avx2,         // AVX2, FMA, F16C
  avx2_vnni,    // and AVX-VNNI
  avx512,       // AVX-512
  avx512_vnni,  // and VNNI
  avx512_vbmi,  // and VBMI
  avx512_amx,   // and AMX with int8
};

inline constexpr Isa kIsas[] = {Isa::generic,     Isa::avx2,        Isa::avx2_vnni, Isa::avx512,
                                Isa::avx512_vnni, Isa::avx512_vbmi, Isa::avx512_amx};

// Asks the kernel for the use of AMX, once a process, the first time that is in question.
bool isa_supported(Isa isa);

// The fastest one that this machine has.
Isa best_isa();

// "generic", "avx2", "avx2-vnni", ...
const char* isa_name(Isa isa);

// The set of that name, whether this machine has it or not.
std::optional<Isa> try_parse_isa(std::string_view name);

// All names, slowest first, joined by commas.
std::string isa_names();

}  // namespace pq
