// Rows of activations: norms, rotation and quantisation of the input of coded matrices, sums, embedding.
#include "kernels/check.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/tiles.h"

namespace pq::cuda {
namespace {

constexpr int kRowThreads = 256;

// One row a block of threads, in shared memory where it fits (staged).
__global__ void __launch_bounds__(kRowThreads) rms_norm_kernel(RmsNormArgs a, bool prepared, bool staged) {
  float* row_copy = dynamic_shared<float>();
  const int64_t row = blockIdx.x, first = row * a.dim;
  const float* x = a.x + first;
  if (a.added != nullptr) {
    float* sum = a.sum + first;
    for (int64_t i = threadIdx.x; i < a.dim; i += kRowThreads) {
      const float value = x[i] + a.added[first + i];
      sum[i] = value;
      if (staged) row_copy[i] = value;
    }
    x = staged ? row_copy : sum;
  } else if (staged) {
    for (int64_t i = threadIdx.x; i < a.dim; i += kRowThreads) row_copy[i] = x[i];
    x = row_copy;
  }
  norm_row(a, x, row, prepared);
}

__global__ void prepare_kernel(PrepareArgs a, int64_t blocks) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (b >= blocks) return;
  const int lane = threadIdx.x % 32;
  prepare_block(reinterpret_cast<const float4*>(a.x + b * kBlock)[lane], lane, a.prepared, b);
}

// One row a warp: heads are short. prepared: of whole blocks.
__global__ void gated_rms_norm_kernel(GatedRmsNormArgs a, bool prepared) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= a.rows) return;
  const float* x = a.x + row * a.dim;
  const float root = __fsqrt_rn(__fdiv_rn(dot_lanes(x, x, a.dim), static_cast<float>(a.dim)) + a.eps);
  const int lane = threadIdx.x % 32;
  const float* gate = a.gate + row * a.dim;
  float* y = a.y + row * a.dim;
  const auto value = [&](float v, float w, float g) { return __fdiv_rn(v, root) * (0.0f + w) * silu(g); };
  if (!prepared) {
    for (int64_t i = lane; i < a.dim; i += 32) y[i] = value(x[i], a.weight[i], gate[i]);
    return;
  }
  for (int64_t i = 4 * lane; i < a.dim; i += kBlock) {
    const float4 v = *reinterpret_cast<const float4*>(x + i), w = *reinterpret_cast<const float4*>(a.weight + i);
    const float4 g = *reinterpret_cast<const float4*>(gate + i);
    const float4 out = make_float4(value(v.x, w.x, g.x), value(v.y, w.y, g.y), value(v.z, w.z, g.z), value(v.w, w.w, g.w));
    *reinterpret_cast<float4*>(y + i) = out;
    prepare_block(out, lane, a.prepared, (row * a.dim + i) / kBlock);
  }
}

__global__ void silu_mul_kernel(float* gate, const float* up, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) gate[i] = silu(gate[i]) * up[i];
}

// The same and the rotation: one block of 128 a warp.
__global__ void silu_mul_prepare_kernel(float* gate, const float* up, Prepared prepared, int64_t blocks) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (b >= blocks) return;
  const int lane = threadIdx.x % 32;
  float4* place = reinterpret_cast<float4*>(gate + b * kBlock) + lane;
  const float4 g = *place, u = reinterpret_cast<const float4*>(up + b * kBlock)[lane];
  const float4 out = make_float4(silu(g.x) * u.x, silu(g.y) * u.y, silu(g.z) * u.z, silu(g.w) * u.w);
  *place = out;
  prepare_block(out, lane, prepared, b);
}

// One token and 128 columns a warp; tokens along x, whose limit a step cannot reach. centroids: device copy of the table of a coded
// matrix.
__global__ void embed_kernel(float* y, const int32_t* ids, Matrix table, const float* centroids, int bits, int64_t first_row) {
  const int64_t token = blockIdx.x;
  const int64_t b = static_cast<int64_t>(blockIdx.y) * (blockDim.x / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int64_t row = ids[token] - first_row;
  const bool owned = row >= 0 && row < table.rows;
  if (b * kBlock >= table.cols) return;
  float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  if (owned && table.format == WeightFormat::polar) {
    const CodedBlock block = coded_block(table, bits, 0, row, b, table.cols / kBlock);
    for (int i = 0; i < 4; ++i) v[i] = centroids[code_at(block, bits, 4 * lane + i)];
    hadamard_block(v);
    // norm / 128: the normalised rotation, and the unit norm of a block of 128 standard normals.
    const float factor = half_value(table.scales[block.norm]) * (1.0f / 128.0f);
    for (float& value : v) value *= factor;
  } else if (owned) {
    for (int i = 0; i < 4; ++i) {
      const int64_t c = b * kBlock + 4 * lane + i;
      if (c < table.cols) v[i] = plain_weight(table, row, table.cols, c);
    }
  }
  for (int i = 0; i < 4; ++i) {
    const int64_t c = b * kBlock + 4 * lane + i;
    if (c < table.cols) y[token * table.cols + c] = v[i] + 0.0f;
  }
}

}  // namespace

void launch_rms_norm(const RmsNormArgs& args, cudaStream_t stream) {
  const int64_t bytes = 4 * args.dim;
  const bool staged = bytes <= kStagedRowBytes;
  launch("rms_norm", rms_norm_kernel, static_cast<unsigned>(args.rows), kRowThreads, staged ? static_cast<size_t>(bytes) : 0,
         stream, args, args.prepared.wanted(), staged);
}

void launch_prepare(const PrepareArgs& args, cudaStream_t stream) {
  const int64_t blocks = args.tokens * (args.dim / kBlock);
  launch("prepare", prepare_kernel, blocks_for(blocks, 4), 128, 0, stream, args, blocks);
}

void launch_gated_rms_norm(const GatedRmsNormArgs& args, cudaStream_t stream) {
  const bool fused = args.prepared.wanted() && args.dim % kBlock == 0;
  launch("gated_rms_norm", gated_rms_norm_kernel, blocks_for(args.rows, 4), 128, 0, stream, args, fused);
  if (args.prepared.wanted() && !fused) launch_prepare(prepare_of(args), stream);
}

void launch_silu_mul(const PrepareArgs& inner, const float* up, cudaStream_t stream) {
  float* gate = const_cast<float*>(inner.x);
  const int64_t count = inner.tokens * inner.dim;
  if (!inner.prepared.wanted()) {
    launch("silu_mul", silu_mul_kernel, blocks_for(count, 256), 256, 0, stream, gate, up, count);
    return;
  }
  launch("silu_mul_prepare", silu_mul_prepare_kernel, blocks_for(count / kBlock, 4), 128, 0, stream, gate, up, inner.prepared,
         count / kBlock);
}

void launch_embed(const EmbedArgs& args, const int32_t* device_ids, const float* centroids, cudaStream_t stream) {
  const int bits = args.table.codebook != nullptr ? args.table.codebook->bits : 0;
  const dim3 grid(static_cast<unsigned>(args.tokens), blocks_for(args.table.cols, 4 * kBlock));
  launch("embed", embed_kernel, grid, 128, 0, stream, args.y, device_ids, args.table, centroids, bits, args.first_row);
}

}  // namespace pq::cuda
