// The encoders of kernels/cpu/encode_body.h, step by step, so that codes, norms and errors are the bits of the host: half a warp a
// block of 128 weights, its sixteen lanes those of the host, lane l holding weights l, l + 16, ... The errors of sixteen
// multipliers of a scale search are worked out side by side, one a lane.
#include "kernels/cuda/encode.h"

namespace pq::cuda {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kThreads = 128;
constexpr int kBlocksAtOnce = kThreads / 16;
// Blocks that a thread block codes with one copy of the table.
constexpr int kBlocksEach = 8 * kBlocksAtOnce;
constexpr int kTableWords = sizeof(EncodeTable) / sizeof(uint32_t);

__device__ double fold_doubles(double x) {
  for (int distance = 8; distance > 0; distance /= 2) x += __shfl_xor_sync(kAll, x, distance);
  return x;
}

__device__ float fold_largest(float x) {
  for (int distance = 8; distance > 0; distance /= 2) {
    const float other = __shfl_xor_sync(kAll, x, distance);
    x = x > other ? x : other;
  }
  return x;
}

__device__ void rotate(float v[8]) {
#pragma unroll
  for (int distance = 1; distance < 16; distance *= 2) {
    const bool upper = (threadIdx.x & distance) != 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float other = __shfl_xor_sync(kAll, v[i], distance);
      v[i] = upper ? other - v[i] : v[i] + other;
    }
  }
#pragma unroll
  for (int distance = 1; distance < 8; distance *= 2) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i & distance) continue;
      const float a = v[i], b = v[i + distance];
      v[i] = a + b;
      v[i + distance] = a - b;
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] *= 0.08838834764831845f;
}

// The lane's weights of a block, and the sum of squares of all; false when a weight is not finite.
__device__ bool load_block(const void* w, DType dtype, int64_t block, float v[8], double* squares) {
  const int64_t first = block * kBlock + threadIdx.x % 16;
  double sum = 0.0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int64_t index = first + 16 * i;
    v[i] = dtype == DType::f32    ? static_cast<const float*>(w)[index]
           : dtype == DType::bf16 ? bf16_value(static_cast<const uint16_t*>(w)[index])
                                  : half_value(static_cast<const uint16_t*>(w)[index]);
    sum += static_cast<double>(v[i]) * v[i];
  }
  *squares = fold_doubles(sum);
  return *squares < INFINITY;
}

// A lower bound of the index of magnitude * scale; to_bucket is scale * t.per_unit.
__device__ int first_index(const EncodeTable& t, float magnitude, float to_bucket) {
  const float bucket = kBucketZero + magnitude * to_bucket;
  return t.large_first[__float_as_int(bucket < t.last_bucket ? bucket : t.last_bucket) - __float_as_int(kBucketZero)];
}

// The number of bounds below magnitude * scale.
__device__ int index_of(const EncodeTable& t, float magnitude, float scale, float to_bucket) {
  const float a = magnitude * scale;
  int m = first_index(t, magnitude, to_bucket);
  for (int step = 0; step < t.steps; ++step) m += a > t.bound[m] ? 1 : 0;
  return m;
}

__device__ int nearest_index(const EncodeTable& t, float z) {
  const float magnitude = fabsf(z);
  int m = first_index(t, magnitude, t.per_unit);
  for (int step = 0; step < t.steps; ++step) m += magnitude > t.signed_bound[z > t.centre ? 0 : 1][m] ? 1 : 0;
  return m;
}

struct Scale {
  float inverse;  // multiplies |z|
  uint16_t norm;  // fp16
};

__device__ float inverse_of(const EncodeTable& t, float ratio, int k) { return k == 0 ? 1.0f : 1.0f / (ratio * t.multiplier[k]); }

__device__ Scale search(const EncodeTable& t, const float z[8], float norm) {
  const int lane = threadIdx.x % 16;
  double squares = 0.0;
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    largest = fabsf(z[i]) > largest ? fabsf(z[i]) : largest;
    squares += static_cast<double>(z[i]) * z[i];
  }
  const double energy = fold_doubles(squares);
  const float coordinate = fold_largest(largest);
  const float ratio = coordinate / t.largest;
  const int tries = coordinate > 1e-20f ? t.tries : 1;

  // Of the lane's tries, then of all: the least error, the first of equals; none when no error is below infinity.
  double best = INFINITY;
  int best_try = kEncodeTries;
  unsigned best_norm = 0;
  // The halves of a warp try the same number, for their shuffles.
  const int all_tries = __any_sync(kAll, tries > 1) ? t.tries : 1;
  for (int first = 0; first < all_tries; first += 16) {
    float sum_zc = 1.0f, sum_cc = 1.0f;
    for (int k = first; k < first + 16 && k < all_tries; ++k) {
      const float inverse = inverse_of(t, ratio, k);
      const float to_bucket = inverse * t.per_unit;
      float zc = 0.0f, cc = 0.0f;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float c = t.magnitude[index_of(t, fabsf(z[i]), inverse, to_bucket)];
        zc = fmaf(fabsf(z[i]), c, zc);
        cc = fmaf(c, c, cc);
      }
      zc = fold_lanes(zc);
      cc = fold_lanes(cc);
      sum_zc = k == first + lane ? zc : sum_zc;
      sum_cc = k == first + lane ? cc : sum_cc;
    }
    const float gain = static_cast<float>(norm * (static_cast<double>(sum_zc) / sum_cc));
    const uint16_t stored = half_bits(gain);
    const double g = half_value(stored) / static_cast<double>(norm);
    const double error = energy - 2.0 * g * sum_zc + g * g * sum_cc;
    if (first + lane < tries && error < best) {
      best = error;
      best_try = first + lane;
      best_norm = stored;
    }
  }
  for (int distance = 8; distance > 0; distance /= 2) {
    const double error = __shfl_xor_sync(kAll, best, distance);
    const int k = __shfl_xor_sync(kAll, best_try, distance);
    const unsigned stored = __shfl_xor_sync(kAll, best_norm, distance);
    if (error < best || (error == best && k < best_try)) {
      best = error;
      best_try = k;
      best_norm = stored;
    }
  }
  if (best_try == kEncodeTries) return {1.0f, half_bits(norm)};
  return {inverse_of(t, ratio, best_try), static_cast<uint16_t>(best_norm)};
}

// Weight 16 i + l of the lanes l of a half warp as bit l, the lane's i being its own number modulo 8. All lanes of the warp call
// it.
__device__ uint16_t bits_of_half(const bool bit[8]) {
  const int shift = threadIdx.x % 32 / 16 * 16;
  uint16_t own = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint16_t bits = static_cast<uint16_t>(__ballot_sync(kAll, bit[i]) >> shift);
    if (static_cast<int>(threadIdx.x % 8) == i) own = bits;
  }
  return own;
}

// The planes of kernels/polar.h from the lane's magnitudes and signs.
__device__ void store_planes(uint8_t* out, int bits, const int m[8], const bool negative[8], bool present) {
  const int lane = threadIdx.x % 16;
  int shift = 0, left = bits - 1;
  if (left >= 4) {
    for (int i = 0; i < 4 && present; ++i) out[16 * i + lane] = static_cast<uint8_t>((m[i] & 15) | (m[4 + i] << 4));
    out += 64;
    shift = 4;
    left -= 4;
  }
  if (left >= 2) {
    for (int h = 0; h < 2 && present; ++h) {
      int value = 0;
      for (int k = 0; k < 4; ++k) value |= ((m[2 * k + h] >> shift) & 3) << (2 * k);
      out[16 * h + lane] = static_cast<uint8_t>(value);
    }
    out += 32;
    shift += 2;
    left -= 2;
  }
  if (left == 1) {
    bool bit[8];
    for (int i = 0; i < 8; ++i) bit[i] = ((m[i] >> shift) & 1) != 0;
    const uint16_t word = bits_of_half(bit);
    if (lane < 8 && present) reinterpret_cast<uint16_t*>(out)[lane] = word;
    out += 16;
  }
  const uint16_t word = bits_of_half(negative);
  if (lane < 8 && present) reinterpret_cast<uint16_t*>(out)[lane] = word;
}

// Lane l: s + (z - gain c)^2, each operation rounded to double.
__device__ double add_squared_error(double s, float z, double gain, float c) {
  const double d = z - gain * c;
  return s + d * d;
}

__device__ void report_failure(const EncodeReport& report, int64_t block) {
  if (threadIdx.x % 16 == 0) atomicMin(report.failed, static_cast<unsigned long long>(block));
}

// Nine blocks a multiprocessor: up to 56 registers. Left alone the compiler takes 48 and spills.
__global__ void __launch_bounds__(kThreads, 9)
    polar_encode_kernel(PolarEncodeArgs args, const EncodeTable* table, int64_t blocks, EncodeReport report) {
  alignas(64) __shared__ uint32_t words[kTableWords];
  for (int i = threadIdx.x; i < kTableWords; i += kThreads) words[i] = reinterpret_cast<const uint32_t*>(table)[i];
  __syncthreads();
  const EncodeTable& t = *reinterpret_cast<const EncodeTable*>(words);
  for (int round = 0; round < kBlocksEach / kBlocksAtOnce; ++round) {
    const int64_t own = static_cast<int64_t>(blockIdx.x) * kBlocksEach + round * kBlocksAtOnce + threadIdx.x / 16;
    const bool present = own < blocks;
    // A half warp without a block repeats the last one: the other half needs it in its shuffles.
    const int64_t block = present ? own : blocks - 1;
    float z[8];
    double squares;
    const bool finite = load_block(args.w, args.dtype, block, z, &squares);
    const float root = static_cast<float>(sqrt(squares));
    const float norm = root < 1e-10f ? 1e-10f : root;
#pragma unroll
    for (int i = 0; i < 8; ++i) z[i] = z[i] / norm;
    rotate(z);
#pragma unroll
    for (int i = 0; i < 8; ++i) z[i] *= 11.3137085f;
    int m[8];
    uint16_t norm_bits;
    if (args.scale_search) {
      const Scale scale = search(t, z, norm);
      norm_bits = scale.norm;
#pragma unroll
      for (int i = 0; i < 8; ++i) m[i] = index_of(t, fabsf(z[i]), scale.inverse, scale.inverse * t.per_unit);
    } else {
      norm_bits = half_bits(norm);
#pragma unroll
      for (int i = 0; i < 8; ++i) m[i] = nearest_index(t, z[i]);
    }
    const float centre = args.scale_search ? 0.0f : t.centre;
    bool negative[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) negative[i] = !(z[i] > centre);
    store_planes(args.codes + block * 16 * t.bits, t.bits, m, negative, present);
    if (report.blocks != nullptr) {
      const double gain = half_value(norm_bits) / static_cast<double>(norm);
      double errors = 0.0;
#pragma unroll
      for (int i = 0; i < 8; ++i) errors = add_squared_error(errors, z[i], gain, t.centroid[negative[i] ? 1 : 0][m[i]]);
      const double sum = fold_doubles(errors);
      if (threadIdx.x % 16 == 0 && present) {
        report.blocks[block] = {sum * static_cast<double>(norm) * norm / 128.0, squares};
      }
    }
    if (!present) continue;
    if (threadIdx.x % 16 == 0) args.norms[block] = norm_bits;
    if (!finite || (norm_bits & 0x7c00u) == 0x7c00u) report_failure(report, block);
  }
}

__global__ void __launch_bounds__(kThreads) int4_encode_kernel(Int4EncodeArgs args, int64_t blocks, EncodeReport report) {
  const int64_t own = static_cast<int64_t>(blockIdx.x) * kBlocksAtOnce + threadIdx.x / 16;
  const bool present = own < blocks;
  const int64_t block = present ? own : blocks - 1;
  const int lane = threadIdx.x % 16;
  float w[8];
  double squares;
  bool good = load_block(args.w, args.dtype, block, w, &squares);
  float largest = w[0], least = -w[0];
#pragma unroll
  for (int i = 1; i < 8; ++i) {
    largest = largest > w[i] ? largest : w[i];
    least = least > -w[i] ? least : -w[i];
  }
  const float high = fold_largest(largest), low = -fold_largest(least);
  const bool symmetric = args.zeros == nullptr;
  const float magnitude = fabsf(low) < fabsf(high) ? fabsf(high) : fabsf(low);
  const uint16_t scale_bits = bf16_bits(symmetric ? magnitude / 7.0f : (high - low) / 15.0f);
  const float scale = bf16_value(scale_bits);
  const uint16_t zero_bits = symmetric ? 0 : bf16_bits(low + 8.0f * scale);
  const float zero = bf16_value(zero_bits);
  good = good && fabsf(scale) < INFINITY && fabsf(zero) < INFINITY;
  // A group of equal weights has scale 0 and is carried by the zero point alone: its codes are 8.
  const float divisor = scale > 0.0f ? scale : INFINITY;
  const float magic = 12582912.0f;
  int q[8];
  double errors = 0.0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float steps = (w[i] - zero) / divisor;
    const float shifted = symmetric ? ((steps + magic) - magic) + 8.0f : ((steps + 8.0f) + magic) - magic;
    const float capped = 15.0f < shifted ? 15.0f : shifted;
    const float code = 0.0f > capped ? 0.0f : capped;
    q[i] = __float_as_int(code + magic) & 0xff;
    errors = add_squared_error(errors, w[i], 1.0, (code - 8.0f) * scale + zero);
  }
  const double sum = fold_doubles(errors);
  if (!present) return;
  if (!good) {
    report_failure(report, block);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) args.codes[block * 64 + 16 * i + lane] = static_cast<uint8_t>(q[i] | (q[4 + i] << 4));
  if (lane == 0) {
    args.scales[block] = scale_bits;
    if (!symmetric) args.zeros[block] = zero_bits;
    if (report.blocks != nullptr) report.blocks[block] = {sum, squares};
  }
}

// Blocks in order within a row.
__global__ void row_errors_kernel(EncodeReport report, int64_t rows, int64_t row_blocks) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  double squared_error = 0.0, squared_norm = 0.0;
  for (int64_t b = 0; b < row_blocks; ++b) {
    squared_error += report.blocks[row * row_blocks + b].squared_error;
    squared_norm += report.blocks[row * row_blocks + b].squared_norm;
  }
  report.rows[row] = {squared_error, squared_norm};
}

void launch_row_errors(const EncodeReport& report, int64_t rows, int64_t row_blocks, cudaStream_t stream) {
  if (report.blocks == nullptr) return;
  launch("row_errors", row_errors_kernel, blocks_for(rows, 64), 64, 0, stream, report, rows, row_blocks);
}

}  // namespace

void launch_polar_encode(const PolarEncodeArgs& args, const EncodeTable* table, const EncodeReport& report, cudaStream_t stream) {
  const int64_t row_blocks = args.cols / kBlock, blocks = args.rows * row_blocks;
  launch("polar_encode", polar_encode_kernel, blocks_for(blocks, kBlocksEach), kThreads, 0, stream, args, table, blocks, report);
  launch_row_errors(report, args.rows, row_blocks, stream);
}

void launch_int4_encode(const Int4EncodeArgs& args, const EncodeReport& report, cudaStream_t stream) {
  const int64_t row_blocks = args.cols / kBlock, blocks = args.rows * row_blocks;
  launch("int4_encode", int4_encode_kernel, blocks_for(blocks, kBlocksAtOnce), kThreads, 0, stream, args, blocks, report);
  launch_row_errors(report, args.rows, row_blocks, stream);
}

}  // namespace pq::cuda
