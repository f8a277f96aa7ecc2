// The coded product for AVX2 without VNNI.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "base/tensor.h"
#include "kernels/cpu/kernels.h"
#include "kernels/polar.h"

#define PQ_TARGET __attribute__((target("avx2,fma,f16c")))
#define PQ_INLINE static inline __attribute__((always_inline)) PQ_TARGET
#define PQ_FUNCTION static PQ_TARGET

namespace pq {
namespace avx2 {

// clang-format off
#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/ints_avx2.h"
PQ_INLINE Dots dot_words(Dots sum, Ints w, Ints x) { return sum + Dots(_mm256_madd_epi16(w, x)); }
PQ_INLINE Dots dot_bytes(Dots sum, Ints w, Ints x) { return dot_words(sum, _mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)); }
#include "kernels/cpu/polar_shuffle.h"
#include "kernels/cpu/polar_madd.h"
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

}  // namespace avx2

const PolarKernels kPolarAvx2 = {.tile = avx2::tile, .pack = avx2::polar_pack, .direct_tokens = 4};

}  // namespace pq

#endif
