// Instruction sets of the cpu backend. All of them give the same bits; they differ in speed only.
#pragma once

#include <optional>
#include <string>
#include <string_view>

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

// The set of that name, whether this machine has it or not.
std::optional<Isa> try_parse_isa(std::string_view name);

// All names, slowest first, joined by commas.
std::string isa_names();

}  // namespace pq
