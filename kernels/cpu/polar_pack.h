// The input of coded products in the order they read it. Included inside a namespace after polar_body.h.
#pragma once

// Tokens [16 * group, 16 * group + 16).
PQ_FUNCTION void polar_pack(const PolarInput& in, int64_t group) {
  const int64_t first = group * kTokenGroup;
  const int64_t last = std::min(first + kTokenGroup, in.padded);
  const int64_t bytes = in.bits > 5 ? 2 * kBlock : kBlock;
  alignas(64) int8_t rows[kTokenGroup][2 * kBlock] = {};
  for (int64_t b = 0; b < in.dim / kBlock; ++b) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t at = b * in.padded + i;
      in.steps[at] = 0.0f;
      in.excess[at] = 0;
      if (i >= in.tokens) continue;
      const int8_t* codes = in.codes + i * in.dim + b * kBlock;
      int32_t sum = 0;
      for (int64_t c = 0; c < kBlock; ++c) sum += codes[c];
      in.steps[at] = in.scales[i * (in.dim / kBlock) + b] * in.int_step;
      in.excess[at] = kBias * sum;
      if (in.packed == nullptr) continue;
      if (in.bits <= 5) {
        std::memcpy(rows[i - first], codes, kBlock);
        continue;
      }
      for (int64_t k = 0; k < kVectors; ++k) {
        Ints w[2];
        widen(codes + k * (kBlock / kVectors), w);
        for (int64_t h = 0; h < 2; ++h) store_ints(rows[i - first] + (2 * k + h) * static_cast<int64_t>(sizeof(Ints)), w[h]);
      }
    }
    if (in.packed == nullptr) continue;
    uint8_t* out = in.packed + (b * in.padded + first) * bytes;
    for (int64_t c = 0; c < bytes; c += 64) transpose_dwords(rows[0] + c, sizeof rows[0], out + c * kTokenGroup);
  }
}
