// Products of coded matrices of any width and order with int8 activations. A block's dot product is exact in int32; blocks are
// added in order inside a unit, as kernels/backend.h demands, so that the bits are those of the host backends for any number of
// tokens and ranks. Matrices in tiles are left to row_products.cu and panels.cu, but for those that neither takes.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/rows_choice.h"
#include "kernels/cuda/tiles.h"

namespace pq::cuda {
namespace {

constexpr int kWarps = 8;
constexpr unsigned kAll = 0xffffffffu;

struct Product {
  float* y;  // [units][tokens][rows], or [tokens][rows] when units is 1
  const uint8_t* data;
  const uint16_t* norms;
  const int8_t* codes;  // [tokens, dim]
  const float* scales;  // [tokens, dim / 128]
  int64_t rows;
  int64_t tokens;
  int64_t dim;
  int64_t blocks;  // of a unit
  float int_step;
};

// Any width and layout, one row a warp, T tokens, four weights a lane.
template <int T>
__global__ void __launch_bounds__(32 * kWarps) polar_rows_kernel(Product p, Matrix m, int count, const int16_t* values, int bits) {
  __shared__ int16_t table[256];
  for (int i = threadIdx.x; i < 1 << bits; i += blockDim.x) table[i] = values[i];
  __syncthreads();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= p.rows) return;
  const int lane = threadIdx.x % 32;
  const int64_t unit = blockIdx.y;
  float sum[T];
#pragma unroll
  for (int t = 0; t < T; ++t) sum[t] = 0.0f;
  for (int64_t b = 0; b < p.blocks; ++b) {
    const CodedBlock block = coded_block(m, bits, unit, row, b, p.blocks);
    int w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = table[code_at(block, bits, 4 * lane + i)];
    const float norm = half_value(p.norms[block.norm]);
    const int64_t column = unit * p.blocks + b;
#pragma unroll
    for (int t = 0; t < T; ++t) {
      const int64_t token = min(t, count - 1);
      const char4 x = reinterpret_cast<const char4*>(p.codes + token * p.dim + column * kBlock)[lane];
      const int dot = __reduce_add_sync(kAll, w[0] * x.x + w[1] * x.y + w[2] * x.z + w[3] * x.w);
      sum[t] = fmaf(static_cast<float>(dot), norm * (p.scales[token * (p.dim / kBlock) + column] * p.int_step), sum[t]);
    }
  }
  if (lane == 0) {
#pragma unroll
    for (int t = 0; t < T; ++t) {
      if (t < count) p.y[(unit * p.tokens + t) * p.rows + row] = sum[t];
    }
  }
}

template <int T>
void launch_rows(const Product& p, const Matrix& m, int count, const DeviceCodebook& book, cudaStream_t stream) {
  launch("polar_rows", polar_rows_kernel<T>, dim3(blocks_for(p.rows, kWarps), static_cast<unsigned>(m.units)), 32 * kWarps, 0,
         stream, p, m, count, book.values, book.bits);
}

}  // namespace

void launch_polar_int8(const LinearArgs& args, float* unit_sums, const DeviceCodebook& book, cudaStream_t stream) {
  const Matrix& w = args.w;
  if (choose_rows_kernel(w, args.x.tokens) == RowsKernel::panels) return launch_panels(args, unit_sums, book, stream);
  Product p{.y = unit_sums,
            .data = static_cast<const uint8_t*>(w.data),
            .norms = w.scales,
            .codes = args.x.codes,
            .scales = args.x.scales,
            .rows = w.rows,
            .tokens = args.x.tokens,
            .dim = args.x.dim,
            .blocks = w.unit_cols() / kBlock,
            .int_step = book.int_step};
  for (int64_t token = 0; token < args.x.tokens; token += 8) {
    const int count = static_cast<int>(args.x.tokens - token < 8 ? args.x.tokens - token : 8);
    const auto rows = count == 1 ? launch_rows<1> : count == 2 ? launch_rows<2> : count <= 4 ? launch_rows<4> : launch_rows<8>;
    rows(p, w, count, book, stream);
    p.y += 8 * p.rows;
    p.codes += 8 * p.dim;
    p.scales += 8 * (p.dim / kBlock);
  }
}

}  // namespace pq::cuda
