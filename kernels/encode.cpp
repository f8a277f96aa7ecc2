// The rows of both encoders over threads; their blocks are cpu/encode_body.h, their tables encode_table.h. A block's codes depend
// on its 128 weights only.
#include "kernels/encode.h"

#include <algorithm>
#include <vector>

#include "base/tensor.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/polar.h"

namespace pq {
namespace {

// encode(row, w, error) for every row: the number of its blocks that could be coded. The errors are added row by row.
template <typename Args, typename Encode>
void encode_rows(const char* op, const Args& args, ThreadPool* pool, const Encode& encode) {
  check_encode(op, args.dtype, args.rows, args.cols);
  const int64_t blocks = args.cols / kBlock;
  std::vector<EncodeError> errors(args.error != nullptr ? static_cast<size_t>(args.rows) : 0);
  const auto encode_range = [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const void* w = static_cast<const uint8_t*>(args.w) + row * args.cols * dtype_bytes(args.dtype);
      const int64_t coded = encode(row, w, errors.empty() ? nullptr : &errors[static_cast<size_t>(row)]);
      if (coded < blocks) {
        refuse_block(op, static_cast<const uint8_t*>(w) + coded * kBlock * dtype_bytes(args.dtype), args.dtype, row,
                     coded * kBlock);
      }
    }
  };
  const int64_t parts = pool != nullptr ? std::min<int64_t>(args.rows, 4 * pool->threads()) : 1;
  if (parts > 1) {
    pool->parallel_for(parts, [&](int64_t part, int) { encode_range(args.rows * part / parts, args.rows * (part + 1) / parts); });
  } else {
    encode_range(0, args.rows);
  }
  if (args.error == nullptr) return;
  *args.error = {};
  for (const EncodeError& error : errors) {
    args.error->squared_error += error.squared_error;
    args.error->squared_norm += error.squared_norm;
  }
}

}  // namespace

void encode_polar(const PolarEncodeArgs& args, Isa isa, ThreadPool* pool) {
  const Kernels& kernels = kernels_of(isa);
  const EncodeTable table = make_encode_table(*args.codebook, kernels.encode_small_magnitudes, kernels.encode_small_buckets);
  const int64_t blocks = args.cols / kBlock;
  encode_rows("polar_encode", args, pool, [&](int64_t row, const void* w, EncodeError* error) {
    return kernels.encode_blocks({.table = &table,
                                  .w = w,
                                  .dtype = args.dtype,
                                  .blocks = blocks,
                                  .scale_search = args.scale_search,
                                  .codes = args.codes + row * blocks * coded_block_bytes(table.bits),
                                  .norms = args.norms + row * blocks,
                                  .error = error});
  });
}

void encode_int4(const Int4EncodeArgs& args, Isa isa, ThreadPool* pool) {
  const Kernels& kernels = kernels_of(isa);
  const int64_t blocks = args.cols / kBlock;
  encode_rows("int4_encode", args, pool, [&](int64_t row, const void* w, EncodeError* error) {
    return kernels.encode_int4({.w = w,
                                .dtype = args.dtype,
                                .blocks = blocks,
                                .codes = args.codes + row * blocks * 64,
                                .scales = args.scales + row * blocks,
                                .zeros = args.zeros != nullptr ? args.zeros + row * blocks : nullptr,
                                .error = error});
  });
}

}  // namespace pq
