// Norms, rotation and quantisation of activations, element-wise operations and the causal convolution over lanes.
#pragma once

PQ_FUNCTION void rms(const RmsTile& t) {
  const float root = std::sqrt(dot_lanes(t.x, t.x, t.dim) / static_cast<float>(t.dim) + t.eps);
  const Lanes divisor = all(root);
  const Lanes offset = all(t.weight_offset);
  for (int64_t i = 0; i < t.dim; i += 16) {
    const int64_t count = std::min<int64_t>(16, t.dim - i);
    const Lanes scale = add(offset, load_part(t.weight + i, count));
    Lanes y = mul(div(load_part(t.x + i, count), divisor), scale);
    if (t.gate != nullptr) y = mul(y, silu(load_part(t.gate + i, count)));
    store_part(t.y + i, y, count);
  }
}

PQ_FUNCTION void l2_normalise(float* y, const float* x, int64_t dim, float scale) {
  const Lanes root = all(std::sqrt(dot_lanes(x, x, dim) + 1e-6f));
  for (int64_t i = 0; i < dim; i += 16) store(y + i, mul(div(load(x + i), root), all(scale)));
}

// One block of 128 in place of eight lane vectors.
PQ_INLINE void rotate_lanes(Lanes v[8]) {
  for (int i = 0; i < 8; ++i) v[i] = butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(v[i]))));
  for (int distance = 1; distance < 8; distance *= 2) {
    for (int i = 0; i < 8; ++i) {
      if (i & distance) continue;
      const Lanes a = v[i];
      const Lanes b = v[i + distance];
      v[i] = add(a, b);
      v[i + distance] = sub(a, b);
    }
  }
  const Lanes factor = all(0.08838834764831845f);
  for (int i = 0; i < 8; ++i) v[i] = mul(v[i], factor);
}

PQ_FUNCTION void prepare(const PrepareArgs& args, int64_t token) {
  const Prepared& out = args.prepared;
  const Lanes magic = all(12582912.0f);
  for (int64_t b = 0; b < args.dim / kBlock; ++b) {
    const int64_t offset = token * args.dim + b * kBlock;
    Lanes v[8];
    for (int i = 0; i < 8; ++i) v[i] = load(args.x + offset + 16 * i);
    rotate_lanes(v);
    if (out.mode == ActivationMode::f32) {
      for (int i = 0; i < 8; ++i) store(out.rotated + offset + 16 * i, v[i]);
      continue;
    }
    Lanes largest = absolute(v[0]);
    for (int i = 1; i < 8; ++i) largest = max(largest, absolute(v[i]));
    const float scale = fold_max(largest) / 127.0f;
    out.scales[token * (args.dim / kBlock) + b] = scale;
    const Lanes divisor = all(scale == 0.0f ? 1.0f : scale);
    for (int i = 0; i < 8; ++i) store_low_bytes(out.codes + offset + 16 * i, add(div(v[i], divisor), magic));
  }
}

PQ_FUNCTION void silu_mul(float* gate, const float* up, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) store(gate + i, mul(silu(load(gate + i)), load(up + i)));
}

// What the convolution was given at a position; zeros before the first.
PQ_FUNCTION Lanes conv_input(const ConvTile& t, int64_t position) {
  return position >= 0 ? load_part(t.state + position % kConvRows * t.channels, t.width) : all(0.0f);
}

PQ_FUNCTION void conv(const ConvTile& t) {
  Lanes w[4];
  if (t.width == 16) {
    for (int j = 0; j < 4; ++j) w[j] = load_strided(t.weight + j, 4);
  } else {
    for (int j = 0; j < 4; ++j) {
      float column[16] = {};
      for (int64_t c = 0; c < t.width; ++c) column[c] = t.weight[4 * c + j];
      w[j] = load(column);
    }
  }
  static_assert(kConvHistory == 3);
  Lanes h0 = conv_input(t, t.position - 3), h1 = conv_input(t, t.position - 2), h2 = conv_input(t, t.position - 1);
  for (int64_t i = 0; i < t.tokens; ++i) {
    const Lanes x = load_part(t.x + i * t.channels, t.width);
    const Lanes sum = fma(w[3], x, fma(w[2], h2, fma(w[1], h1, fma(w[0], h0, all(0.0f)))));
    store_part(t.y + i * t.channels, silu(sum), t.width);
    if (i + kConvRows >= t.tokens) store_part(t.state + (t.position + i) % kConvRows * t.channels, x, t.width);
    h0 = h1;
    h1 = h2;
    h2 = x;
  }
}

PQ_FUNCTION void store_halves(uint16_t* y, const float* x, int64_t count) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) store_f16(y + i, load(x + i));
  for (; i < count; ++i) y[i] = f32_to_f16(x[i]);
}
