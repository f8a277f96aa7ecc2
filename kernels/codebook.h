// Tables of centroids: the scalar quantiser of a rotated, normalised weight (standard normal by construction). Who made a table is
// recorded, how codes are packed is left to polar.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pq {

enum class TableKind : int {
  converged,  // Lloyd-Max fixed point for N(0,1), iterated until centroids move by less than 1e-12
  published,  // 100 Lloyd iterations from boundaries linspace(-4, 4, 2^b + 1), outer boundaries infinite, float64 (variant A)
  bounded,    // the same with outer boundaries kept at +-4 (variant B; its float32 runs scatter around this by 2e-4)
  file,       // taken from a checkpoint
};

// Symmetric: centroids[n - 1 - i] == -centroids[i] up to rounding, none is 0.
struct Codebook {
  int bits = 0;                   // 2..8
  TableKind kind = TableKind::converged;
  std::vector<float> centroids;   // 2^bits, ascending, of N(0,1): not divided by sqrt(128)
  std::vector<float> magnitudes;  // 2^(bits-1), the positive half, ascending
  // Integer form for the int8 activation path: round(magnitude / c_max * int_max); int_max = 127 for bits <= 5, 32767 above.
  std::vector<int16_t> int_magnitudes;
  // centroid / sqrt(128) ~= int_magnitude * int_step.
  float int_step = 0;
};

// bits 2..8; kind converged, published or bounded. Throws ErrorKind::usage otherwise.
Codebook make_codebook(int bits, TableKind kind);

// Takes a table from a file (raw centroids). Throws ErrorKind::input when its size is not a power of two in 4..256, when it is
// not ascending, not finite or not symmetric within 1e-3 of the largest centroid.
Codebook codebook_from_table(const std::vector<float>& centroids);

const char* table_kind_name(TableKind kind);

}  // namespace pq
