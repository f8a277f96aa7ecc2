// What the tests of the encoders share: coded rows in vectors.
#pragma once

#include <vector>

#include "tests/kernels/kernel_cases.h"

namespace pq {

struct Encoded {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> norms;
  EncodeError error;
  double relative() const { return error.squared_error / error.squared_norm; }
};

inline Encoded encode(Backend& backend, const std::vector<float>& w, int64_t rows, const Codebook& book, bool search) {
  const int64_t cols = static_cast<int64_t>(w.size()) / rows;
  Encoded out;
  Guarded<uint8_t> codes(rows * cols / kBlock * coded_block_bytes(book.bits));
  Guarded<uint16_t> norms(rows * cols / kBlock);
  backend.polar_encode({.codes = codes.data(),
                        .norms = norms.data(),
                        .w = w.data(),
                        .rows = rows,
                        .cols = cols,
                        .codebook = &book,
                        .scale_search = search,
                        .error = &out.error});
  EXPECT_TRUE(codes.intact() && norms.intact());
  out.codes = codes.values();
  out.norms = norms.values();
  return out;
}

}  // namespace pq
