// What the kernels that walk sequences share: finding the span of a row of the batch.
#pragma once

#include "kernels/cuda/device.h"

namespace pq::cuda {

// The span that holds activation row `row`; spans cover the batch in order.
__device__ inline Span span_of(const Span* spans, int64_t count, int64_t row) {
  int64_t i = 0;
  while (i + 1 < count && row >= spans[i].row + spans[i].tokens) ++i;
  return spans[i];
}

}  // namespace pq::cuda
