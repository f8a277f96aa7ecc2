// The leaf kernels compiled for AVX-512 F, BW, DQ and VL.
#if defined(__x86_64__)

// GCC 12 warns of its own _mm512_undefined_ps in most intrinsics (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/tensor.h"
#include "kernels/cpu/kernels.h"
#include "kernels/polar.h"

#define PQ_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#define PQ_INLINE static inline __attribute__((always_inline)) PQ_TARGET
#define PQ_FUNCTION static PQ_TARGET

namespace pq {
namespace avx512 {

// The lane type comes first.
// clang-format off
#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/math_body.h"
#include "kernels/cpu/norm_body.h"
#include "kernels/cpu/float_body.h"
#include "kernels/cpu/delta_body.h"
#include "kernels/cpu/attention_body.h"
#include "kernels/cpu/encode_avx512.h"
#include "kernels/cpu/encode_body.h"
// clang-format on

}  // namespace avx512

const Kernels kAvx512Kernels = {
    .float_tile = avx512::float_tile,
    .rms = avx512::rms,
    .prepare = avx512::prepare,
    .silu_mul = avx512::silu_mul,
    .conv = avx512::conv,
    .l2_normalise = avx512::l2_normalise,
    .dot = avx512::dot,
    .exp = avx512::exp_one,
    .delta = avx512::delta,
    .attention = avx512::attention,
    .attention_merge = avx512::attention_merge,
    .attention_finish = avx512::attention_finish,
    .store_halves = avx512::store_halves,
    .encode_blocks = avx512::encode_blocks,
    .encode_int4 = avx512::encode_int4,
    .encode_small_magnitudes = avx512::kSmallMagnitudes,
    .encode_small_buckets = avx512::kSmallBuckets,
};

}  // namespace pq

#endif
