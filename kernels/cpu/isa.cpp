// Asks the processor, and for AMX the kernel, what it can do; holds the kernels of each set.
#include "kernels/cpu/isa.h"

#include <iterator>

#include "kernels/cpu/kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pq {
namespace {

struct IsaEntry {
  const char* name;
  bool (*supported)();
  const Kernels* kernels;
  const PolarKernels* polar;
};

bool always() { return true; }

#if defined(__x86_64__)

struct Cpuid {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  Cpuid(unsigned leaf, unsigned part) { __get_cpuid_count(leaf, part, &eax, &ebx, &ecx, &edx); }
};

// clang 14 does not know the names f16c, avxvnni and amx-int8 in __builtin_cpu_supports. What follows the AVX and AVX-512 checks
// there needs no check of the saved state of its own.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && (Cpuid(1, 0).ecx & bit_F16C) != 0;
}

bool has_avx2_vnni() { return has_avx2() && (Cpuid(7, 1).eax & (1u << 4)) != 0; }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

bool has_avx512_vbmi() { return has_avx512_vnni() && __builtin_cpu_supports("avx512vbmi"); }

bool has_avx512_amx() {
  constexpr unsigned kTile = 1u << 24;
  constexpr unsigned kInt8 = 1u << 25;
  if (!has_avx512_vbmi() || (Cpuid(7, 0).edx & (kTile | kInt8)) != (kTile | kInt8)) return false;
  // Linux gives a process the tile registers when it asks for them: ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA.
  static const bool permitted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return permitted;
}

constexpr IsaEntry kEntries[] = {{"generic", always, &kGenericKernels, &kPolarGeneric},
                                 {"avx2", has_avx2, &kAvx2Kernels, &kPolarAvx2},
                                 {"avx2-vnni", has_avx2_vnni, &kAvx2Kernels, &kPolarAvx2Vnni},
                                 {"avx512", has_avx512, &kAvx512Kernels, &kPolarAvx512},
                                 {"avx512-vnni", has_avx512_vnni, &kAvx512Kernels, &kPolarAvx512Vnni},
                                 {"avx512-vbmi", has_avx512_vbmi, &kAvx512Kernels, &kPolarAvx512Vbmi},
                                 {"avx512-amx", has_avx512_amx, &kAvx512Kernels, &kPolarAvx512Amx}};

#else

bool never() { return false; }

constexpr IsaEntry kEntries[] = {{"generic", always, &kGenericKernels, &kPolarGeneric},
                                 {"avx2", never, nullptr, nullptr},
                                 {"avx2-vnni", never, nullptr, nullptr},
                                 {"avx512", never, nullptr, nullptr},
                                 {"avx512-vnni", never, nullptr, nullptr},
                                 {"avx512-vbmi", never, nullptr, nullptr},
                                 {"avx512-amx", never, nullptr, nullptr}};

#endif

static_assert(std::size(kEntries) == std::size(kIsas));

const IsaEntry& entry(Isa isa) { return kEntries[static_cast<int>(isa)]; }

}  // namespace

bool isa_supported(Isa isa) { return entry(isa).supported(); }

Isa best_isa() {
  Isa best = Isa::generic;
  for (const Isa isa : kIsas) {
    if (isa_supported(isa)) best = isa;
  }
  return best;
}

const char* isa_name(Isa isa) { return entry(isa).name; }

std::optional<Isa> try_parse_isa(std::string_view name) {
  for (const Isa isa : kIsas) {
    if (name == isa_name(isa)) return isa;
  }
  return std::nullopt;
}

std::string isa_names() {
  std::string names;
  for (const Isa isa : kIsas) names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
  return names;
}

const Kernels& kernels_of(Isa isa) { return *entry(isa).kernels; }
const PolarKernels& polar_kernels_of(Isa isa) { return *entry(isa).polar; }

}  // namespace pq
