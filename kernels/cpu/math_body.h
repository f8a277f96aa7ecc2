// Elementary functions over lanes. Included inside a namespace after the lane type.
#pragma once

// exp(x) within 2 ulp for |x| <= 86; beyond that the argument is clamped to [-86.6, 88.37], so that the result is neither 0 nor
// infinite. x = n ln 2 + r, |r| <= ln 2 / 2; polynomial of Cephes expf (S. Moshier).
PQ_INLINE Lanes exp_lanes(Lanes x) {
  x = min(all(88.37f), max(all(-86.6f), x));
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
  const Lanes magic = all(12582912.0f);
  const Lanes shifted = fma(x, all(1.44269504088896341f), magic);
  const Lanes n = sub(shifted, magic);
  const Lanes r = fma(n, all(2.12194440e-4f), fma(n, all(-0.693359375f), x));
  Lanes p = all(1.9875691500e-4f);
  p = fma(p, r, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), all(1.0f));
  return add_exponent(p, shifted);
}

PQ_INLINE Lanes one_plus_exp_minus(Lanes x) { return add(all(1.0f), exp_lanes(negate(x))); }
PQ_INLINE Lanes silu(Lanes x) { return div(x, one_plus_exp_minus(x)); }

PQ_FUNCTION float exp_one(float x) {
  float v[16];
  store(v, exp_lanes(all(x)));
  return v[0];
}

// The first `count` lanes, zero in the others.
PQ_INLINE Lanes keep_part(Lanes x, int64_t count) {
  float v[16] = {};
  store_part(v, x, count);
  return load(v);
}

// Sum of x[i] * y[i]: lane l takes i = l, l + 16, ... by fma, then the lanes are folded.
PQ_INLINE float dot_lanes(const float* x, const float* y, int64_t count) {
  Lanes sum = all(0.0f);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) sum = fma(load(x + i), load(y + i), sum);
  if (i < count) sum = fma(load_part(x + i, count - i), load_part(y + i, count - i), sum);
  return fold(sum);
}

PQ_FUNCTION float dot(const float* x, const float* y, int64_t count) { return dot_lanes(x, y, count); }
