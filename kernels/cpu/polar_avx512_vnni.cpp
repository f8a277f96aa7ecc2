// The coded product for AVX-512 with VNNI.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "base/tensor.h"
#include "kernels/cpu/kernels.h"
#include "kernels/polar.h"

#define PQ_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")))
#define PQ_INLINE static inline __attribute__((always_inline)) PQ_TARGET
#define PQ_FUNCTION static PQ_TARGET

namespace pq {
namespace avx512_vnni {

// clang-format off
#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/ints_avx512.h"
PQ_INLINE Dots dot_bytes(Dots sum, Ints w, Ints x) { return Dots(_mm512_dpbusd_epi32(Ints(sum), w, x)); }
PQ_INLINE Dots dot_words(Dots sum, Ints w, Ints x) { return Dots(_mm512_dpwssd_epi32(Ints(sum), w, x)); }
#include "kernels/cpu/polar_shuffle.h"
#include "kernels/cpu/polar_vnni.h"
static constexpr int kPanelBias = kBias;
#include "kernels/cpu/polar_body.h"
#include "kernels/cpu/polar_tile.h"
#include "kernels/cpu/polar_pack.h"
// clang-format on

static void tile(const PolarTile& t) {
  static constexpr void (*kTiles[])(const PolarTile&) = {polar_tile<2>, polar_tile<3>, polar_tile<4>, polar_tile<5>,
                                                         polar_tile<6>, polar_tile<7>, polar_tile<8>};
  kTiles[t.bits - 2](t);
}

}  // namespace avx512_vnni

const PolarKernels kPolarAvx512Vnni = {.tile = avx512_vnni::tile, .pack = avx512_vnni::polar_pack, .direct_tokens = 8};

}  // namespace pq

#endif
