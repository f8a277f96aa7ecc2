// The launches of the encoders. Device pointers only, arguments already checked, at least one row; order on the stream.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/encode_table.h"

namespace pq::cuda {

// What the encoders tell beside codes. blocks, rows: the error of each 128-block and their sums in order, or both null.
struct EncodeReport {
  unsigned long long* failed;  // lowered to the first block, counted over rows, that cannot be coded
  EncodeError* rows;
  EncodeError* blocks;
};

void launch_polar_encode(const PolarEncodeArgs& args, const EncodeTable* table, const EncodeReport& report, cudaStream_t stream);
void launch_int4_encode(const Int4EncodeArgs& args, const EncodeReport& report, cudaStream_t stream);

}  // namespace pq::cuda
