// Device functions on rows of activations that several kernels share: rotation and quantisation of a block, and the norm of a row.
#pragma once

#include "kernels/cuda/device.h"

namespace pq::cuda {

// Rows up to so many bytes are put into shared memory, without asking for more than every device has.
inline constexpr int64_t kStagedRowBytes = 40 << 10;

// One 128-block by one warp, four elements a lane.
__device__ inline void prepare_block(const float4 x, int lane, const Prepared& out, int64_t block) {
  float v[4] = {x.x, x.y, x.z, x.w};
  hadamard_block(v);
  for (float& value : v) value *= 0.08838834764831845f;
  if (out.mode == ActivationMode::f32) {
    reinterpret_cast<float4*>(out.rotated + block * kBlock)[lane] = make_float4(v[0], v[1], v[2], v[3]);
    return;
  }
  const float largest = warp_max(fmaxf(fmaxf(fabsf(v[0]), fabsf(v[1])), fmaxf(fabsf(v[2]), fabsf(v[3]))));
  const float scale = __fdiv_rn(largest, 127.0f);
  const float divisor = scale == 0.0f ? 1.0f : scale;
  char4 code;
  code.x = static_cast<signed char>(__float2int_rn(__fdiv_rn(v[0], divisor)));
  code.y = static_cast<signed char>(__float2int_rn(__fdiv_rn(v[1], divisor)));
  code.z = static_cast<signed char>(__float2int_rn(__fdiv_rn(v[2], divisor)));
  code.w = static_cast<signed char>(__float2int_rn(__fdiv_rn(v[3], divisor)));
  reinterpret_cast<char4*>(out.codes + block * kBlock)[lane] = code;
  if (lane == 0) out.scales[block] = scale;
}

// The norm of row `row` by a block of whole warps, and its coded form where `prepared`; x: the row, what is added to it included,
// written by this block and not yet waited for. The sum of squares keeps the order of the host: sixteen lanes of one warp walk the
// row.
__device__ inline void norm_row(const RmsNormArgs& a, const float* x, int64_t row, bool prepared) {
  __shared__ float shared_root;
  float* y = a.y + row * a.dim;
  __syncthreads();
  if (threadIdx.x < 32) {
    const float sum = dot_lanes(x, x, a.dim);
    if (threadIdx.x == 0) shared_root = __fsqrt_rn(__fdiv_rn(sum, static_cast<float>(a.dim)) + a.eps);
  }
  __syncthreads();
  const float root = shared_root;
  if (!prepared) {
    for (int64_t i = threadIdx.x; i < a.dim; i += blockDim.x) y[i] = __fdiv_rn(x[i], root) * (a.weight_offset + a.weight[i]);
    return;
  }
  const int lane = threadIdx.x % 32;
  const int64_t blocks = a.dim / kBlock;
  for (int64_t b = threadIdx.x / 32; b < blocks; b += blockDim.x / 32) {
    const float4 v = reinterpret_cast<const float4*>(x + b * kBlock)[lane];
    const float4 w = reinterpret_cast<const float4*>(a.weight + b * kBlock)[lane];
    const float4 out = make_float4(__fdiv_rn(v.x, root) * (a.weight_offset + w.x), __fdiv_rn(v.y, root) * (a.weight_offset + w.y),
                                   __fdiv_rn(v.z, root) * (a.weight_offset + w.z), __fdiv_rn(v.w, root) * (a.weight_offset + w.w));
    reinterpret_cast<float4*>(y + b * kBlock)[lane] = out;
    prepare_block(out, lane, a.prepared, row * blocks + b);
  }
}

}  // namespace pq::cuda
