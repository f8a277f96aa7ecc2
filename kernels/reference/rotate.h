// The 128-point orthonormal Walsh-Hadamard transform in double.
#pragma once

#include <cmath>
#include <utility>

namespace pq {

// v <- H v with H[i][j] = (-1)^popcount(i & j) / sqrt(128); its own inverse.
inline void rotate_block(double* v) {
  for (int distance = 1; distance < 128; distance *= 2) {
    for (int i = 0; i < 128; ++i) {
      if (i & distance) continue;
      const double a = v[i];
      const double b = v[i + distance];
      v[i] = a + b;
      v[i + distance] = a - b;
    }
  }
  for (int i = 0; i < 128; ++i) v[i] *= 1.0 / std::sqrt(128.0);
}

}  // namespace pq
