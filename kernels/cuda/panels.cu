// Products of more than eight tokens with matrices in tiles (kernels/cuda/tiles.h) on integer tensor cores, a panel of tokens at a
// time. A block's dot product is exact in int32; blocks are added in order inside a unit, as kernels/backend.h demands, so that the
// bits are those of the host backends for any number of tokens and ranks.
#include <array>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/quarters.h"
#include "kernels/cuda/rows_choice.h"

namespace pq::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kRows = 16 * kWarps;

struct Panels {
  float* y;  // [units][tokens][rows]
  const uint8_t* data;
  const uint16_t* norms;
  const int8_t* bytes;  // DeviceCodebook
  const int8_t* codes;  // [tokens, dim]
  const float* scales;  // [tokens, dim / 128]
  int64_t rows;
  int64_t tokens;
  int dim;
  int blocks;  // of a unit
  float int_step;
};

// 64 rows, sixteen a warp, by 8 N tokens. The weights of a block are decoded once, as the left fragments of m16n8k32; the codes of
// the block after it are copied to shared memory meanwhile. A lane's part of the right fragments is a quarter of a token's codes:
// any order of the inputs inside a block will do, int32 sums are exact. blockIdx.z is the unit; panels of the same rows follow each
// other, so that the second level cache has the weights.
template <int kBits, int N>
__global__ void __launch_bounds__(kThreads, N > 8    ? 2
                                            : N == 8 ? 3
                                                     : 4) polar_panels_kernel(Panels p) {
  constexpr int kTokens = 8 * N;
  __shared__ uint4 inputs[2][kTokens][9];  // of sixteen codes, eight padded against bank conflicts
  __shared__ float2 scales[2][kTokens / 2];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, q = lane % 4, place = lane / 4;
  const int64_t unit = blockIdx.z;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kRows + 16 * warp;
  const int64_t first_token = static_cast<int64_t>(blockIdx.x) * kTokens;
  // Rows that are not there repeat the last one; what becomes of them and of tokens that are not there is dropped.
  const auto quarters_of = [&](int half) {
    const int64_t row = min(first_row + place + 8 * half, p.rows - 1), tile = row / kTileRows * kTileRows;
    const int64_t first = (unit * p.rows + tile) * p.blocks;
    return Quarters<kBits>(p.data + first * 16 * kBits, p.norms + first,
                           static_cast<int>(min(static_cast<int64_t>(kTileRows), p.rows - tile)), static_cast<int>(row - tile), q,
                           1);
  };
  Quarters<kBits> quarters[2] = {quarters_of(0), quarters_of(1)};
  const int last = static_cast<int>(min(static_cast<int64_t>(kTokens), p.tokens - first_token)) - 1;
  // Of this thread: a sixteenth of the tokens, of each the same sixteen bytes of a block.
  const int8_t* codes = p.codes + (first_token + threadIdx.x / 8) * p.dim + unit * p.blocks * kBlock + threadIdx.x % 8 * 16;
  const float* own_scales =
      p.scales + (first_token + min(static_cast<int>(threadIdx.x), last)) * (p.dim / kBlock) + unit * p.blocks;
  const ByteTable<kBits> table(p.bytes);

  // Of the next block.
  const auto fetch = [&](int b) {
#pragma unroll
    for (int i = 0; i < kTokens; i += kThreads / 8) {
      const int token = i + static_cast<int>(threadIdx.x) / 8;
      if (token <= last) copy_async(&inputs[b % 2][token][threadIdx.x % 8], codes + i * p.dim);
    }
    codes += kBlock;
  };
  fetch(0);
  float scale = own_scales[0] * p.int_step;
  Quarter<kBits> w[2] = {quarters[0].next(), quarters[1].next()};
  float sum[N][4];
#pragma unroll
  for (auto& tile : sum) tile[0] = tile[1] = tile[2] = tile[3] = 0.0f;
  for (int b = 0; b < p.blocks; ++b) {
    const int side = b % 2;
    wait_copies();
    if (threadIdx.x < kTokens) reinterpret_cast<float*>(scales[side])[threadIdx.x] = scale;
    // Behind it nobody reads what belongs to the block before.
    __syncthreads();
    const bool more = b + 1 < p.blocks;
    if (more) {
      fetch(b + 1);
      scale = own_scales[b + 1] * p.int_step;
    }
    uint32_t weights[2][8];
    float norm[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const EightWeights e = table.eight(w[r], k);
#pragma unroll
        for (int i = 0; i < 2; ++i) weights[r][2 * k + i] = table.signed_bytes(e, i);
      }
      norm[r] = half_value(w[r].norm);
      if (more) w[r] = quarters[r].next();
    }
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const uint4 low = inputs[side][8 * n + place][2 * q], high = inputs[side][8 * n + place][2 * q + 1];
      const uint32_t x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      int dot[4] = {0, 0, 0, 0};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const uint32_t a[4] = {weights[0][2 * k], weights[1][2 * k], weights[0][2 * k + 1], weights[1][2 * k + 1]};
        multiply_tile(dot, a, x[2 * k], x[2 * k + 1]);
      }
      const float2 two = scales[side][4 * n + q];
      sum[n][0] = fmaf(static_cast<float>(dot[0]), norm[0] * two.x, sum[n][0]);
      sum[n][1] = fmaf(static_cast<float>(dot[1]), norm[0] * two.y, sum[n][1]);
      sum[n][2] = fmaf(static_cast<float>(dot[2]), norm[1] * two.x, sum[n][2]);
      sum[n][3] = fmaf(static_cast<float>(dot[3]), norm[1] * two.y, sum[n][3]);
    }
  }
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t r = first_row + place + (i < 2 ? 0 : 8);
      const int t = 8 * n + 2 * q + i % 2;
      if (r < p.rows && t <= last) p.y[(unit * p.tokens + first_token + t) * p.rows + r] = sum[n][i];
    }
  }
}

template <int kBits, int N>
void launch_tokens(const Panels& p, int64_t units, cudaStream_t stream) {
  const dim3 grid(blocks_for(p.tokens, 8 * N), blocks_for(p.rows, kRows), static_cast<unsigned>(units));
  launch("polar_panels", polar_panels_kernel<kBits, N>, grid, kThreads, 0, stream, p);
}

template <int kBits>
void launch_bits(const Panels& p, int64_t units, cudaStream_t stream) {
  const int tokens = choose_panel_tokens(p.tokens);
  const auto launch_all = tokens == 16   ? launch_tokens<kBits, 2>
                          : tokens == 32 ? launch_tokens<kBits, 4>
                          : tokens == 64 ? launch_tokens<kBits, 8>
                                         : launch_tokens<kBits, 16>;
  launch_all(p, units, stream);
}
constexpr std::array kLaunchBits = {launch_bits<2>, launch_bits<3>, launch_bits<4>, launch_bits<5>};
static_assert(kLaunchBits.size() == kPanelBits - 1);

}  // namespace

void launch_panels(const LinearArgs& args, float* unit_sums, const DeviceCodebook& book, cudaStream_t stream) {
  const Matrix& w = args.w;
  const Panels p{.y = unit_sums,
                 .data = static_cast<const uint8_t*>(w.data),
                 .norms = w.scales,
                 .bytes = book.bytes,
                 .codes = args.x.codes,
                 .scales = args.x.scales,
                 .rows = w.rows,
                 .tokens = args.x.tokens,
                 .dim = static_cast<int>(args.x.dim),
                 .blocks = static_cast<int>(w.unit_cols() / kBlock),
                 .int_step = book.int_step};
  kLaunchBits[static_cast<size_t>(book.bits - 2)](p, w.units, stream);
}

}  // namespace pq::cuda
