// Dot products by VNNI: unsigned weights, 128 above their value, times signed activations.
#pragma once

static constexpr int kBias = 128;

// Four consecutive weights in each dword.
struct Weights {
  Ints biased;
};

PQ_INLINE Weights weights_from(Ints biased_magnitudes, Sign sign) { return {flip(biased_magnitudes, sign)}; }
PQ_INLINE Weights weights_at(const uint8_t* p) { return {four_at(p)}; }
PQ_INLINE Ints bytes_of(Weights w) { return w.biased; }
PQ_INLINE Dots dot(Dots sum, Weights w, Ints x) { return dot_bytes(sum, w.biased, x); }
