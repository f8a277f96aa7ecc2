// The PolarQuant encoder of consecutive blocks. Included inside a namespace after norm_body.h and encode_<isa>.h.
#pragma once

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
PQ_INLINE bool encode_block(const EncodeTable& t, const float* w, bool scale_search, uint8_t* codes, uint16_t* norm_out,
                            EncodeError* error) {
  Lanes z[8];
  Doubles sum = no_doubles();
  for (int i = 0; i < 8; ++i) {
    z[i] = load(w + 16 * i);
    sum = add_squares(sum, z[i]);
  }
  // Squares of finite floats do not overflow a double.
  const double squares = fold(sum);
  if (!(squares < INFINITY)) return false;
  const float norm = std::max(static_cast<float>(std::sqrt(squares)), 1e-10f);
  for (int i = 0; i < 8; ++i) z[i] = div(z[i], all(norm));
  rotate_lanes(z);
  for (int i = 0; i < 8; ++i) z[i] = mul(z[i], all(11.3137085f));

  alignas(64) uint8_t magnitudes[kBlock];
  uint16_t signs[8];
  Index m[8];
  if (scale_search) {
    const Scale scale = search<Table>(t, z, norm);
    *norm_out = scale.norm;
    for (int i = 0; i < 8; ++i) {
      m[i] = index_of<Table>(t, absolute(z[i]), all(scale.inverse), all(scale.inverse * t.per_unit));
    }
  } else {
    *norm_out = f32_to_f16(norm);
    for (int i = 0; i < 8; ++i) m[i] = nearest_index<Table>(t, z[i]);
  }
  const Lanes centre = all(scale_search ? 0.0f : t.centre);
  for (int i = 0; i < 8; ++i) {
    store_bytes(magnitudes + 16 * i, m[i]);
    signs[i] = bits_not_above(z[i], centre);
  }
  pack_planes(magnitudes, signs, t.bits, codes);
  if (error != nullptr) {
    const double gain = f16_to_f32(*norm_out) / static_cast<double>(norm);
    Doubles errors = no_doubles();
    for (int i = 0; i < 8; ++i) {
      const Lanes c = if_above(z[i], centre, Table::pick(t.centroid[0], m[i]), Table::pick(t.centroid[1], m[i]));
      errors = add_squared_errors(errors, z[i], gain, c);
    }
    error->squared_error += fold(errors) * static_cast<double>(norm) * norm / 128.0;
    error->squared_norm += squares;
  }
  return (*norm_out & 0x7c00u) != 0x7c00u;
}

template <class Table>
PQ_INLINE int64_t encode_blocks_by(const EncodeTile& e) {
  for (int64_t b = 0; b < e.blocks; ++b) {
    if (!encode_block<Table>(*e.table, e.w + b * kBlock, e.scale_search, e.codes + b * coded_block_bytes(e.table->bits),
                             e.norms + b, e.error)) {
      return b;
    }
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
