// Cache writing and causal attention of the reference backend.
#include <cmath>
#include <vector>

#include "kernels/check.h"
#include "kernels/kv_row.h"
#include "kernels/reference/reference_backend.h"

namespace pq {
namespace {

const char* row_of(const KvCache& cache, const void* plane, int64_t slot, int64_t head, int64_t position) {
  return static_cast<const char*>(plane) +
         ((slot * cache.kv_heads + head) * cache.context + position) * kv_row_bytes(cache.type, cache.head_dim);
}

void store(const KvCache& cache, void* row, const std::vector<float>& x) {
  for (size_t i = 0; i < x.size(); ++i) {
    if (cache.type == KvType::f32) static_cast<float*>(row)[i] = x[i];
    if (cache.type == KvType::f16) static_cast<uint16_t*>(row)[i] = f32_to_f16(x[i]);
  }
  if (cache.type == KvType::q8) store_q8_row(row, x.data(), cache.head_dim);
}

std::vector<double> normed_and_rotated(const AttentionInputArgs& args, const float* x, const float* weight, int64_t position) {
  const int64_t dim = args.cache.head_dim;
  double sum = 0.0;
  for (int64_t i = 0; i < dim; ++i) sum += static_cast<double>(x[i]) * x[i];
  const double scale = 1.0 / std::sqrt(sum / static_cast<double>(dim) + args.eps);
  std::vector<double> out(static_cast<size_t>(dim));
  for (int64_t i = 0; i < dim; ++i) out[i] = x[i] * scale * (1.0 + weight[i]);
  const int64_t half = args.rotary_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float angle = static_cast<float>(position) * args.inv_freq[i];
    const double cosine = std::cos(static_cast<double>(angle));
    const double sine = std::sin(static_cast<double>(angle));
    const double low = out[i];
    const double high = out[i + half];
    out[i] = low * cosine - high * sine;
    out[i + half] = high * cosine + low * sine;
  }
  return out;
}

}  // namespace

void ReferenceBackend::attention_input(const AttentionInputArgs& args) {
  check_attention_input(args);
  const KvCache& cache = args.cache;
  const int64_t dim = cache.head_dim;
  for (int64_t s = 0; s < args.spans.count; ++s) {
    const Span& span = args.spans.data[s];
    for (int64_t t = 0; t < span.tokens; ++t) {
      const int64_t row = span.row + t;
      const int64_t position = span.position + t;
      for (int64_t h = 0; h < args.heads; ++h) {
        const std::vector<double> q =
            normed_and_rotated(args, args.q_gate + (row * args.heads + h) * 2 * dim, args.q_norm, position);
        for (int64_t i = 0; i < dim; ++i) args.q[(row * args.heads + h) * dim + i] = static_cast<float>(q[i]);
      }
      for (int64_t h = 0; h < cache.kv_heads; ++h) {
        const int64_t source = (row * cache.kv_heads + h) * dim;
        const std::vector<double> k = normed_and_rotated(args, args.k + source, args.k_norm, position);
        const auto target = [&](void* plane) { return const_cast<char*>(row_of(cache, plane, span.slot, h, position)); };
        store(cache, target(cache.k), std::vector<float>(k.begin(), k.end()));
        store(cache, target(cache.v), std::vector<float>(args.v + source, args.v + source + dim));
      }
    }
  }
}

void ReferenceBackend::attention(const AttentionArgs& args) {
  check_attention(args);
  const KvCache& cache = args.cache;
  const int64_t dim = cache.head_dim;
  std::vector<double> weight;
  for (int64_t s = 0; s < args.spans.count; ++s) {
    const Span& span = args.spans.data[s];
    for (int64_t t = 0; t < span.tokens; ++t) {
      for (int64_t h = 0; h < args.heads; ++h) {
        const int64_t row = (span.row + t) * args.heads + h;
        const int64_t kv_head = h * cache.kv_heads / args.heads;
        const int64_t positions = span.position + t + 1;
        const auto element = [&](const void* plane, int64_t p, int64_t i) {
          return static_cast<double>(kv_value(cache.type, row_of(cache, plane, span.slot, kv_head, p), dim, i));
        };
        weight.assign(static_cast<size_t>(positions), 0.0);
        double largest = -INFINITY;
        for (int64_t p = 0; p < positions; ++p) {
          for (int64_t i = 0; i < dim; ++i) weight[p] += args.q[row * dim + i] * element(cache.k, p, i);
          weight[p] /= std::sqrt(static_cast<double>(dim));
          largest = std::max(largest, weight[p]);
        }
        double sum = 0.0;
        for (double& value : weight) sum += value = std::exp(value - largest);
        for (int64_t i = 0; i < dim; ++i) {
          double out = 0.0;
          for (int64_t p = 0; p < positions; ++p) out += weight[p] * element(cache.v, p, i);
          const double gate = args.q_gate[row * 2 * dim + dim + i];
          args.y[row * dim + i] = static_cast<float>(out / sum / (1.0 + std::exp(-gate)));
        }
      }
    }
  }
}

}  // namespace pq
