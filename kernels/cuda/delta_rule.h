// Device functions of the gated delta rule that its kernels share: the norm of queries and keys, and the decay.
#pragma once

#include "kernels/cuda/device.h"

namespace pq::cuda {

// y = x / sqrt(sum x^2 + 1e-6) * scale by half a warp, while the other half does the same for a row of its own. y may be x.
__device__ inline void l2_normalise(float* y, const float* x, int64_t dim, float scale) {
  const float root = __fsqrt_rn(dot_lanes(x, x, dim) + 1e-6f);
  for (int64_t i = threadIdx.x % 16; i < dim; i += 16) y[i] = __fdiv_rn(x[i], root) * scale;
}

// In double, as on the host: the fp32 result then does not depend on the library.
__device__ inline float softplus(float x) { return x > 20.0f ? x : static_cast<float>(log1p(exp(static_cast<double>(x)))); }

// g of a token; x: a + dt_bias.
__device__ inline float log_decay(float a_log, float x) { return -exp_as_host(a_log) * softplus(x); }

__device__ inline float4 four(const float* x) { return *reinterpret_cast<const float4*>(x); }

}  // namespace pq::cuda
