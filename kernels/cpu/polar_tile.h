// The path's own product of a panel, and the choice between the forms. Included inside a namespace after polar_body.h.
#pragma once

static constexpr int64_t kLanes = sizeof(Ints) / 4;

// R rows of weights against V vectors of tokens: sums [R] rows of `stride`.
template <int B, int R, int V>
PQ_INLINE void block_dots(const uint8_t* w, const float* norms, const uint8_t* x, const float* steps, const int32_t* excess, float* sums,
                          int64_t stride) {
  constexpr int64_t kSteps = kDecodedBytes<B> / 4;
  Dots acc[R][V];
  for (int v = 0; v < V; ++v) {
    Dots start = {};
    if constexpr (!kWide<B> && kBias != 0) start -= Dots(load_ints(excess + v * kLanes));
    for (int r = 0; r < R; ++r) acc[r][v] = start;
  }
  for (int64_t step = 0; step < kSteps; ++step) {
    Ints in[V];
    for (int v = 0; v < V; ++v) {
      const int64_t token = v * kLanes;
      in[v] = load_ints(x + (token / kTokenGroup * kSteps + step) * 4 * kTokenGroup + token % kTokenGroup * 4);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const uint8_t* four = w + r * kDecodedBytes<B> + 4 * step;
      if constexpr (kWide<B>) {
        const Ints pair = four_at(four);
        for (int v = 0; v < V; ++v) acc[r][v] = dot_words(acc[r][v], pair, in[v]);
      } else {
        const Weights weights = weights_at(four);
        for (int v = 0; v < V; ++v) acc[r][v] = dot(acc[r][v], weights, in[v]);
      }
    }
  }
  for (int v = 0; v < V; ++v) {
    const Floats step = load_floats(steps + v * kLanes);
    for (int r = 0; r < R; ++r) add_scaled(sums + r * stride + v * kLanes, acc[r][v], norms[r], step);
  }
}

// All rows against V vectors of tokens from `token`.
template <int B, int V>
PQ_INLINE void multiply_tokens(const Product<B>& p, int64_t token) {
  constexpr int R = kRowVectors / V;
  const PolarTile& t = *p.tile;
  const int64_t at = p.block * t.padded + token;
  for (int64_t r = 0; r < p.rows; r += R) {
    block_dots<B, R, V>(p.panel->weights[p.k][r], p.panel->norms[p.k] + r, t.packed + at * kDecodedBytes<B>, t.steps + at, t.excess + at,
                        p.sums + r * p.stride + token, p.stride);
    fetch_due(p, (token - p.token) * p.rows + r * V * kLanes, p.count * p.rows);
  }
}

template <int B>
PQ_FUNCTION void multiply(const Product<B>& p) {
  const int64_t end = p.token + p.count;
  int64_t token = p.token;
  for (; end - token > 2 * kLanes; token += 4 * kLanes) multiply_tokens<B, 4>(p, token);
  if (end - token > kLanes) {
    multiply_tokens<B, 2>(p, token);
  } else if (end > token) {
    multiply_tokens<B, 1>(p, token);
  }
}

// More than four tokens pass one after the other over a tile that is then in the second-level cache: registers for more at once save
// no time, because most of it goes into adding up the lanes of each token.
template <int B>
PQ_FUNCTION void polar_tile(const PolarTile& tile) {
  if (tile.packed != nullptr) return blocked<B, multiply<B>>(tile);
  PolarTile t = tile;
  for (; t.tokens > 4; t.tokens -= 4) {
    direct<B, 4>(t);
    t.codes += 4 * t.code_stride;
    t.steps += 4;
    t.excess += 4;
    t.y += 4 * t.y_stride;
  }
  switch (t.tokens) {
    case 1:
      return direct<B, 1>(t);
    case 2:
      return direct<B, 2>(t);
    case 3:
      return direct<B, 3>(t);
    default:
      return direct<B, 4>(t);
  }
}
