// The leaf kernels compiled for AVX2, FMA and F16C.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/tensor.h"
#include "kernels/cpu/kernels.h"
#include "kernels/polar.h"

#define PQ_TARGET __attribute__((target("avx2,fma,f16c")))
#define PQ_INLINE static inline __attribute__((always_inline)) PQ_TARGET
#define PQ_FUNCTION static PQ_TARGET

namespace pq {
namespace avx2 {

// The lane type comes first.
// clang-format off
#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/math_body.h"
#include "kernels/cpu/norm_body.h"
#include "kernels/cpu/float_body.h"
#include "kernels/cpu/delta_body.h"
#include "kernels/cpu/attention_body.h"
#include "kernels/cpu/encode_avx2.h"
#include "kernels/cpu/encode_body.h"
// clang-format on

}  // namespace avx2

const Kernels kAvx2Kernels = {
    .float_tile = avx2::float_tile,
    .rms = avx2::rms,
    .prepare = avx2::prepare,
    .silu_mul = avx2::silu_mul,
    .conv = avx2::conv,
    .l2_normalise = avx2::l2_normalise,
    .dot = avx2::dot,
    .exp = avx2::exp_one,
    .delta = avx2::delta,
    .attention = avx2::attention,
    .attention_merge = avx2::attention_merge,
    .attention_finish = avx2::attention_finish,
    .store_halves = avx2::store_halves,
    .encode_blocks = avx2::encode_blocks,
    .encode_int4 = avx2::encode_int4,
    .encode_small_magnitudes = avx2::kSmallMagnitudes,
    .encode_small_buckets = avx2::kSmallBuckets,
};

}  // namespace pq

#endif
