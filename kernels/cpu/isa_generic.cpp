// The leaf kernels compiled for plain C++.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/tensor.h"
#include "kernels/cpu/kernels.h"
#include "kernels/polar.h"

#define PQ_TARGET
#define PQ_INLINE static inline __attribute__((always_inline)) PQ_TARGET
#define PQ_FUNCTION static PQ_TARGET

namespace pq {
namespace generic {

// The lane type comes first.
// clang-format off
#include "kernels/cpu/lanes_generic.h"
#include "kernels/cpu/math_body.h"
#include "kernels/cpu/norm_body.h"
#include "kernels/cpu/float_body.h"
#include "kernels/cpu/delta_body.h"
#include "kernels/cpu/attention_body.h"
#include "kernels/cpu/encode_generic.h"
#include "kernels/cpu/encode_body.h"
// clang-format on

}  // namespace generic

const Kernels kGenericKernels = {
    .float_tile = generic::float_tile,
    .rms = generic::rms,
    .prepare = generic::prepare,
    .silu_mul = generic::silu_mul,
    .conv = generic::conv,
    .l2_normalise = generic::l2_normalise,
    .dot = generic::dot,
    .exp = generic::exp_one,
    .delta = generic::delta,
    .attention = generic::attention,
    .attention_merge = generic::attention_merge,
    .attention_finish = generic::attention_finish,
    .store_halves = generic::store_halves,
    .encode_blocks = generic::encode_blocks,
    .encode_int4 = generic::encode_int4,
    .encode_small_magnitudes = generic::kSmallMagnitudes,
    .encode_small_buckets = generic::kSmallBuckets,
};

}  // namespace pq
