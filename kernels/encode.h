// Encoders and decoders of weights, shared by the host backends so that codes are the same bits on both.
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/isa.h"

namespace pq {

class ThreadPool;

// Backend::polar_encode and Backend::int4_encode. Rows are shared out over `pool`, which may be null. The results depend neither on
// `isa` nor on the pool.
void encode_polar(const PolarEncodeArgs& args, Isa isa, ThreadPool* pool);
void encode_int4(const Int4EncodeArgs& args, Isa isa, ThreadPool* pool);

// Row `row` of unit `unit` as fp32 in the original basis: out [unit_cols]. polar: butterflies over c[code], then times norm / 128,
// which is norm / sqrt(128) times the factor of the rotation.
void decode_row(const Matrix& matrix, int64_t unit, int64_t row, float* out);

// Backend::decode.
void decode_matrix(const DecodeArgs& args);

}  // namespace pq
