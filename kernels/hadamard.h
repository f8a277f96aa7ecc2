// The butterflies of the 128-point Walsh-Hadamard transform, in the order every path of pq uses: distance 1, 2, 4, ..., 64. The
// normalisation is left to the callers, who round it at different places.
#pragma once

namespace pq {

// v <- sqrt(128) H v with H[i][j] = (-1)^popcount(i & j) / sqrt(128). v [128], float or double.
template <typename T>
inline void hadamard_butterflies(T* v) {
  for (int distance = 1; distance < 128; distance *= 2) {
    for (int start = 0; start < 128; start += 2 * distance) {
      for (int i = start; i < start + distance; ++i) {
        const T a = v[i];
        const T b = v[i + distance];
        v[i] = a + b;
        v[i + distance] = a - b;
      }
    }
  }
}

}  // namespace pq
