// The coded product for AVX-512 with VNNI, VBMI and AMX: many tokens of up to 5 bits by tiles, all else as without AMX.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "base/tensor.h"
#include "kernels/cpu/kernels.h"
#include "kernels/polar.h"

#define PQ_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,amx-tile,amx-int8,avx2,fma,f16c")))
#define PQ_INLINE static inline __attribute__((always_inline)) PQ_TARGET
#define PQ_FUNCTION static PQ_TARGET

namespace pq {
namespace avx512_amx {

// clang-format off
#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/ints_avx512.h"
PQ_INLINE Dots dot_bytes(Dots sum, Ints w, Ints x) { return Dots(_mm512_dpbusd_epi32(Ints(sum), w, x)); }
[[maybe_unused]] PQ_INLINE Dots dot_words(Dots sum, Ints w, Ints x) { return Dots(_mm512_dpwssd_epi32(Ints(sum), w, x)); }
#include "kernels/cpu/polar_permute.h"
#include "kernels/cpu/polar_vnni.h"
static constexpr int kPanelBias = 0;
#include "kernels/cpu/polar_body.h"
#include "kernels/cpu/polar_amx.h"
#include "kernels/cpu/polar_pack.h"
// clang-format on

static void tile(const PolarTile& t) {
  static constexpr void (*kTiles[])(const PolarTile&) = {polar_tile_amx<2>, polar_tile_amx<3>, polar_tile_amx<4>, polar_tile_amx<5>};
  if (t.packed == nullptr || t.bits > 5) return kPolarAvx512Vbmi.tile(t);
  kTiles[t.bits - 2](t);
}

}  // namespace avx512_amx

const PolarKernels kPolarAvx512Amx = {.tile = avx512_amx::tile, .pack = avx512_amx::polar_pack, .direct_tokens = 4};

}  // namespace pq

#endif
