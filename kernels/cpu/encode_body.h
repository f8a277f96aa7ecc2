// The encoders of consecutive blocks, PolarQuant and INT4. Included inside a namespace after norm_body.h and encode_<isa>.h.
#pragma once

// The weights of a block; false when one is not finite. squares: their sum of squares.
PQ_INLINE bool load_block(const void* w, DType dtype, int64_t block, Lanes v[8], double* squares) {
  const float* single = static_cast<const float*>(w) + block * kBlock;
  const uint16_t* half = static_cast<const uint16_t*>(w) + block * kBlock;
  if (dtype == DType::bf16) {
    for (int i = 0; i < 8; ++i) v[i] = load_bf16(half + 16 * i);
  } else if (dtype == DType::f16) {
    for (int i = 0; i < 8; ++i) v[i] = load_f16(half + 16 * i);
  } else {
    for (int i = 0; i < 8; ++i) v[i] = load(single + 16 * i);
  }
  Doubles sum = no_doubles();
  for (int i = 0; i < 8; ++i) sum = add_squares(sum, v[i]);
  *squares = fold(sum);
  // Squares of finite floats do not overflow a double.
  return *squares < INFINITY;
}

// Tables of any size, in memory.
struct LargeTable {
  PQ_INLINE Index first(const EncodeTable& t, Lanes bucket) { return gather(t.large_first, bucket_number(bucket)); }
  PQ_INLINE Lanes pick(const float* table, Index index) { return gather(table, index); }
  PQ_INLINE int steps(const EncodeTable& t) { return t.steps; }
};

// A lower bound of the index of magnitude * scale; to_bucket is scale * t.per_unit.
template <class Table>
PQ_INLINE Index first_index(const EncodeTable& t, Lanes magnitude, Lanes to_bucket) {
  return Table::first(t, min(add_product(all(kBucketZero), magnitude, to_bucket), all(t.last_bucket)));
}

// The number of t.bound below magnitude * scale.
template <class Table>
PQ_INLINE Index index_of(const EncodeTable& t, Lanes magnitude, Lanes scale, Lanes to_bucket) {
  const Lanes a = mul(magnitude, scale);
  Index m = first_index<Table>(t, magnitude, to_bucket);
  for (int step = 0; step < Table::steps(t); ++step) m = step_above(m, a, Table::pick(t.bound, m));
  return m;
}

// The index of the centroid nearest to z, the lower one of equals, by t.signed_bound.
template <class Table>
PQ_INLINE Index nearest_index(const EncodeTable& t, Lanes z) {
  const Lanes magnitude = absolute(z);
  Index m = first_index<Table>(t, magnitude, all(t.per_unit));
  for (int step = 0; step < Table::steps(t); ++step) {
    m = step_above(m, magnitude, if_above(z, all(t.centre), Table::pick(t.signed_bound[0], m), Table::pick(t.signed_bound[1], m)));
  }
  return m;
}

// Sums of |z| c and c c of a block coded at a scale, not yet folded.
struct TrySums {
  Lanes zc;
  Lanes cc;
};

template <class Table>
PQ_INLINE TrySums try_scale(const EncodeTable& t, const Lanes magnitude[8], float scale) {
  TrySums sums{all(0.0f), all(0.0f)};
  for (int i = 0; i < 8; ++i) {
    const Lanes c = Table::pick(t.magnitude, index_of<Table>(t, magnitude[i], all(scale), all(scale * t.per_unit)));
    sums.zc = fma(magnitude[i], c, sums.zc);
    sums.cc = fma(c, c, sums.cc);
  }
  return sums;
}

struct Scale {
  float inverse;  // multiplies |z|
  uint16_t norm;  // fp16
};

// The multiplier of the norm that leaves the least squared error when its gain is refitted by least squares and rounded to what
// fp16 can hold; the first of equals.
template <class Table>
PQ_INLINE Scale search(const EncodeTable& t, const Lanes z[8], float norm) {
  Lanes magnitude[8];
  Doubles squares = no_doubles();
  Lanes largest = all(0.0f);
  for (int i = 0; i < 8; ++i) {
    magnitude[i] = absolute(z[i]);
    largest = max(magnitude[i], largest);
    squares = add_squares(squares, z[i]);
  }
  const double energy = fold(squares);
  const float coordinate = fold_max(largest);
  const float ratio = coordinate / t.largest;
  alignas(64) float inverse[kEncodeTries];
  for (int k = 0; k < kEncodeTries; k += 16) store(inverse + k, div(all(1.0f), mul(all(ratio), load(t.multiplier + k))));
  inverse[0] = 1.0f;
  // Coordinates this small end as norm 0 whatever the scale.
  const int tries = coordinate > 1e-20f ? t.tries : 1;

  double best = INFINITY;
  Scale scale{1.0f, f32_to_f16(norm)};
  for (int first = 0; first < tries; first += 16) {
    const int count = std::min(16, tries - first);
    Lanes zc[16], cc[16];
    for (int k = 0; k < count; ++k) {
      const TrySums sums = try_scale<Table>(t, magnitude, inverse[first + k]);
      zc[k] = sums.zc;
      cc[k] = sums.cc;
    }
    for (int k = count; k < 16; ++k) zc[k] = cc[k] = all(1.0f);
    alignas(64) float sum_zc[16], sum_cc[16], gain[16];
    store(sum_zc, fold_each(zc));
    store(sum_cc, fold_each(cc));
    for (int k = 0; k < 16; ++k) gain[k] = static_cast<float>(norm * (static_cast<double>(sum_zc[k]) / sum_cc[k]));
    alignas(64) uint16_t stored[16];
    store_f16(stored, load(gain));
    store(gain, load_f16(stored));
    double error[16];
    for (int k = 0; k < 16; ++k) {
      const double g = gain[k] / static_cast<double>(norm);
      error[k] = energy - 2.0 * g * sum_zc[k] + g * g * sum_cc[k];
    }
    for (int k = 0; k < count; ++k) {
      if (!(error[k] < best)) continue;
      best = error[k];
      scale = {inverse[first + k], stored[k]};
    }
  }
  return scale;
}

// False when a weight is not finite or the norm is beyond fp16.
template <class Table>
PQ_INLINE bool encode_block(const EncodeTile& e, int64_t block) {
  const EncodeTable& t = *e.table;
  uint16_t* norm_out = e.norms + block;
  Lanes z[8];
  double squares;
  if (!load_block(e.w, e.dtype, block, z, &squares)) return false;
  const float norm = std::max(static_cast<float>(std::sqrt(squares)), 1e-10f);
  for (int i = 0; i < 8; ++i) z[i] = div(z[i], all(norm));
  rotate_lanes(z);
  for (int i = 0; i < 8; ++i) z[i] = mul(z[i], all(11.3137085f));

  alignas(64) uint8_t magnitudes[kBlock];
  uint16_t signs[8];
  Index m[8];
  if (e.scale_search) {
    const Scale scale = search<Table>(t, z, norm);
    *norm_out = scale.norm;
    for (int i = 0; i < 8; ++i) {
      m[i] = index_of<Table>(t, absolute(z[i]), all(scale.inverse), all(scale.inverse * t.per_unit));
    }
  } else {
    *norm_out = f32_to_f16(norm);
    for (int i = 0; i < 8; ++i) m[i] = nearest_index<Table>(t, z[i]);
  }
  const Lanes centre = all(e.scale_search ? 0.0f : t.centre);
  for (int i = 0; i < 8; ++i) {
    store_bytes(magnitudes + 16 * i, m[i]);
    signs[i] = bits_not_above(z[i], centre);
  }
  pack_planes(magnitudes, signs, t.bits, e.codes + block * coded_block_bytes(t.bits));
  if (e.error != nullptr) {
    const double gain = f16_to_f32(*norm_out) / static_cast<double>(norm);
    Doubles errors = no_doubles();
    for (int i = 0; i < 8; ++i) {
      const Lanes c = if_above(z[i], centre, Table::pick(t.centroid[0], m[i]), Table::pick(t.centroid[1], m[i]));
      errors = add_squared_errors(errors, z[i], gain, c);
    }
    e.error->squared_error += fold(errors) * static_cast<double>(norm) * norm / 128.0;
    e.error->squared_norm += squares;
  }
  return (*norm_out & 0x7c00u) != 0x7c00u;
}

template <class Table>
PQ_INLINE int64_t encode_blocks_by(const EncodeTile& e) {
  for (int64_t b = 0; b < e.blocks; ++b) {
    if (!encode_block<Table>(e, b)) return b;
  }
  return e.blocks;
}

PQ_FUNCTION int64_t encode_blocks(const EncodeTile& e) {
  if constexpr (kSmallMagnitudes >= 16) {
    if (e.table->small && e.table->bits <= 5) return encode_blocks_by<SmallTable<16>>(e);
  }
  if constexpr (kSmallMagnitudes >= 32) {
    if (e.table->small && e.table->bits == 6) return encode_blocks_by<SmallTable<32>>(e);
  }
  return encode_blocks_by<LargeTable>(e);
}

PQ_FUNCTION int64_t encode_int4(const Int4EncodeTile& e) {
  const Lanes magic = all(12582912.0f);
  for (int64_t b = 0; b < e.blocks; ++b) {
    Lanes w[8];
    double squares;
    if (!load_block(e.w, e.dtype, b, w, &squares)) return b;
    Lanes largest = w[0];
    Lanes least = negate(w[0]);
    for (int i = 1; i < 8; ++i) {
      largest = max(largest, w[i]);
      least = max(least, negate(w[i]));
    }
    const float high = fold_max(largest);
    const float low = -fold_max(least);
    const bool symmetric = e.zeros == nullptr;
    e.scales[b] = f32_to_bf16(symmetric ? std::max(std::abs(low), std::abs(high)) / 7.0f : (high - low) / 15.0f);
    const float scale = bf16_to_f32(e.scales[b]);
    float zero = 0.0f;
    if (!symmetric) {
      e.zeros[b] = f32_to_bf16(low + 8.0f * scale);
      zero = bf16_to_f32(e.zeros[b]);
    }
    if (!(std::abs(scale) < INFINITY && std::abs(zero) < INFINITY)) return b;
    // A group of equal weights has scale 0 and is carried by the zero point alone: its codes are 8.
    const Lanes divisor = all(scale > 0.0f ? scale : INFINITY);
    uint8_t q[kBlock];
    Doubles errors = no_doubles();
    for (int i = 0; i < 8; ++i) {
      const Lanes steps = div(sub(w[i], all(zero)), divisor);
      // Adding and taking away 1.5 * 2^23 rounds half to even; steps are below 2^20.
      const Lanes shifted =
          symmetric ? add(sub(add(steps, magic), magic), all(8.0f)) : sub(add(add(steps, all(8.0f)), magic), magic);
      const Lanes code = max(all(0.0f), min(all(15.0f), shifted));
      store_low_bytes(reinterpret_cast<int8_t*>(q + 16 * i), add(code, magic));
      errors = add_squared_errors(errors, w[i], 1.0, add(mul(sub(code, all(8.0f)), all(scale)), all(zero)));
    }
    for (int i = 0; i < 64; ++i) e.codes[b * 64 + i] = static_cast<uint8_t>(q[i] | (q[64 + i] << 4));
    if (e.error != nullptr) {
      e.error->squared_error += fold(errors);
      e.error->squared_norm += squares;
    }
  }
  return e.blocks;
}
