// Products of one input with several matrices in one launch, eight tokens at a time, units added.
#pragma once

#include <span>

#include "kernels/cuda/launch.h"

namespace pq::cuda {

// One of them; book: of a coded matrix.
struct RowProduct {
  LinearArgs args;
  const DeviceCodebook* book;
};

// y of each, the bits of LinearArgs. One to kLinearGroup of them, of one x, each of which row_products_take
// (kernels/cuda/rows_choice.h), one of them coded at least and all coded ones of one width.
void launch_row_products(std::span<const RowProduct> products, int multiprocessors, cudaStream_t stream);

}  // namespace pq::cuda
