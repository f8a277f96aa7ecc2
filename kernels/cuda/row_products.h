// Products of one input of up to eight tokens with several matrices in one launch, units added.
#pragma once

#include <span>

#include "kernels/cuda/launch.h"

namespace pq::cuda {

// One of them; book: of a coded matrix.
struct RowProduct {
  LinearArgs args;
  const DeviceCodebook* book;
};

// y of each, the bits of LinearArgs. One to kLinearGroup of them, of one x of at most kRowTokens tokens, each of which
// row_products_take (kernels/cuda/rows_choice.h), one of them coded at least.
void launch_row_products(std::span<const RowProduct> products, int multiprocessors, cudaStream_t stream);

}  // namespace pq::cuda
