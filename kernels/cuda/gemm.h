// Matrix products of bfloat16 by the vendor's library, cuBLAS, which is opened at run time by whoever asks for one. What is
// multiplied, and when, is left to wide_products.h.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/backend.h"

namespace pq::cuda {

class Gemm {
 public:
  virtual ~Gemm() = default;
  // "cuBLAS 13.1.0"
  virtual std::string name() const = 0;
  // y[t * y_stride + r] = sum over c of w[r, c] * x[t, c]; w [rows, cols], x [tokens, cols], bfloat16. Products are exact, sums
  // fp32 in an order of the library's own: the same bits for the same shape, library version and kind of device. Does not block.
  virtual void multiply(float* y, int64_t y_stride, const uint16_t* w, const uint16_t* x, int64_t rows, int64_t tokens,
                        int64_t cols) = 0;
};

// On `stream`, within `workspace` (device memory, aligned to 256 bytes, outlives it). Throws ErrorKind::environment where this
// build or this machine has no cuBLAS, or it does not start.
std::unique_ptr<Gemm> make_gemm(cudaStream_t stream, const Buffer& workspace);

}  // namespace pq::cuda
