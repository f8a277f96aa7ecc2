// The coded product for AVX2 with AVX-VNNI.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "base/tensor.h"
#include "kernels/cpu/kernels.h"
#include "kernels/polar.h"

#define PQ_TARGET __attribute__((target("avxvnni,avx2,fma,f16c")))
#define PQ_INLINE static inline __attribute__((always_inline)) PQ_TARGET
#define PQ_FUNCTION static PQ_TARGET

namespace pq {
namespace avx2_vnni {

// clang-format off
#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/ints_avx2.h"
PQ_INLINE Dots dot_bytes(Dots sum, Ints w, Ints x) { return Dots(_mm256_dpbusd_avx_epi32(Ints(sum), w, x)); }
PQ_INLINE Dots dot_words(Dots sum, Ints w, Ints x) { return Dots(_mm256_dpwssd_avx_epi32(Ints(sum), w, x)); }
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

}  // namespace avx2_vnni

const PolarKernels kPolarAvx2Vnni = {.tile = avx2_vnni::tile, .pack = avx2_vnni::polar_pack, .direct_tokens = 4};

}  // namespace pq

#endif
