// Weights and activations written out as bfloat16, for products of a library (wide_products.h): coded weights in rotated space, so
// that nothing is rotated back. Device pointers, at least one row; order on the stream.
#pragma once

#include "kernels/cuda/launch.h"

namespace pq::cuda {

// out [rows, w.unit_cols()] = rows [first_row, first_row + rows) of one unit of a coded matrix in either order, each weight rounded
// to bfloat16 once: polar centroid * (norm * (1 / sqrt(128))), int4 (q - 8) * scale + zero. first_row is a multiple of eight.
void launch_widen_weights(uint16_t* out, const Matrix& w, int64_t unit, int64_t first_row, int64_t rows, const DeviceCodebook& book,
                          cudaStream_t stream);

// out [units][tokens][dim / units] = what a product of `format` reads of x, rounded to bfloat16: polar int8 codes * scale, polar
// f32 rotated, other formats raw.
void launch_widen_inputs(uint16_t* out, const Activation& x, WeightFormat format, int64_t units, cudaStream_t stream);

}  // namespace pq::cuda
