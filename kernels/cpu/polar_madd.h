// Dot products without VNNI: magnitudes times activations that take the weight's sign, so that the int16 sum of a pair is at most
// 2 * 127 * 127 and does not saturate.
#pragma once

static constexpr int kBias = 0;

// Four consecutive weights in each dword.
struct Weights {
  Ints magnitudes;
  Sign sign;
};

PQ_INLINE Weights weights_from(Ints magnitudes, Sign sign) { return {magnitudes, sign}; }
PQ_INLINE Weights weights_at(const uint8_t* p) {
  const Ints four = four_at(p);
  return {absolute_bytes(four), sign_of(four)};
}
PQ_INLINE Ints bytes_of(Weights w) { return flip(w.magnitudes, w.sign); }
PQ_INLINE Dots dot(Dots sum, Weights w, Ints x) { return dot_bytes(sum, w.magnitudes, flip(x, w.sign)); }
