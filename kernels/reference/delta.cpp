// The gated delta rule of the reference backend: the chunk form of the contract with double accumulators and fp32 state.
#include <cmath>
#include <vector>

#include "kernels/check.h"
#include "kernels/reference/reference_backend.h"

namespace pq {
namespace {

double softplus(double x) { return x > 20.0 ? x : std::log1p(std::exp(x)); }

std::vector<double> normalised(const float* x, int64_t dim) {
  double sum = 0.0;
  for (int64_t i = 0; i < dim; ++i) sum += static_cast<double>(x[i]) * x[i];
  std::vector<double> out(static_cast<size_t>(dim));
  for (int64_t i = 0; i < dim; ++i) out[i] = x[i] / std::sqrt(sum + 1e-6);
  return out;
}

// One token of one value head. `row` is its index in the chunk; `s` [key_dim, value_dim]; q [key_dim] scaled; v, y [value_dim].
struct HeadStep {
  const GatedDeltaArgs& args;
  int64_t slot;
  int64_t head;
  int64_t row;

  int64_t key_head() const { return head * args.key_heads / args.value_heads; }
  float* s() const { return args.state.s + (slot * args.value_heads + head) * args.key_dim * args.value_dim; }
  float* key(int64_t j) const { return args.state.k + ((slot * kDeltaChunk + j) * args.key_heads + key_head()) * args.key_dim; }
  float* delta(int64_t j) const { return args.state.delta + ((slot * kDeltaChunk + j) * args.value_heads + head) * args.value_dim; }
  float& decay(int64_t j) const { return args.state.decay[(slot * kDeltaChunk + j) * args.value_heads + head]; }

  double dot(const double* x, int64_t j) const {
    double sum = 0.0;
    for (int64_t i = 0; i < args.key_dim; ++i) sum += x[i] * key(j)[i];
    return sum;
  }
  double read_state(const double* x, int64_t d) const {
    double sum = 0.0;
    for (int64_t i = 0; i < args.key_dim; ++i) sum += static_cast<double>(s()[i * args.value_dim + d]) * x[i];
    return sum;
  }

  void run(const std::vector<double>& q, const float* v, double g, double beta, float* y) const {
    const std::vector<double> k(key(row), key(row) + args.key_dim);
    decay(row) = static_cast<float>((row > 0 ? static_cast<double>(decay(row - 1)) : 0.0) + g);
    const double now = decay(row);
    for (int64_t d = 0; d < args.value_dim; ++d) {
      double pending = 0.0;
      for (int64_t j = 0; j < row; ++j) pending += std::exp(now - decay(j)) * dot(k.data(), j) * delta(j)[d];
      delta(row)[d] = static_cast<float>(beta * (v[d] - std::exp(now) * read_state(k.data(), d) - pending));
    }
    for (int64_t d = 0; d < args.value_dim; ++d) {
      double sum = std::exp(now) * read_state(q.data(), d);
      for (int64_t j = 0; j <= row; ++j) sum += std::exp(now - decay(j)) * dot(q.data(), j) * delta(j)[d];
      y[d] = static_cast<float>(sum);
    }
    if (row + 1 < kDeltaChunk) return;
    for (int64_t i = 0; i < args.key_dim; ++i) {
      for (int64_t d = 0; d < args.value_dim; ++d) {
        double sum = std::exp(now) * s()[i * args.value_dim + d];
        for (int64_t j = 0; j < kDeltaChunk; ++j) sum += std::exp(now - decay(j)) * key(j)[i] * delta(j)[d];
        s()[i * args.value_dim + d] = static_cast<float>(sum);
      }
    }
  }
};

}  // namespace

void ReferenceBackend::gated_delta(const GatedDeltaArgs& args) {
  check_gated_delta(args);
  const int64_t key_size = args.key_heads * args.key_dim;
  const int64_t value_size = args.value_heads * args.value_dim;
  for (int64_t i = 0; i < args.spans.count; ++i) {
    const Span& span = args.spans.data[i];
    if (span.tokens == 0) continue;
    if (span.position == 0) {
      const int64_t size = args.value_heads * args.key_dim * args.value_dim;
      std::fill(args.state.s + span.slot * size, args.state.s + (span.slot + 1) * size, 0.0f);
    }
    for (int64_t t = 0; t < span.tokens; ++t) {
      const int64_t row = (span.position + t) % kDeltaChunk;
      const float* qkv = args.qkv + (span.row + t) * (2 * key_size + value_size);
      for (int64_t h = 0; h < args.key_heads; ++h) {
        const std::vector<double> k = normalised(qkv + key_size + h * args.key_dim, args.key_dim);
        float* out = args.state.k + ((span.slot * kDeltaChunk + row) * args.key_heads + h) * args.key_dim;
        for (int64_t c = 0; c < args.key_dim; ++c) out[c] = static_cast<float>(k[c]);
      }
      for (int64_t h = 0; h < args.value_heads; ++h) {
        const HeadStep step{args, span.slot, h, row};
        std::vector<double> q = normalised(qkv + step.key_head() * args.key_dim, args.key_dim);
        for (double& value : q) value /= std::sqrt(static_cast<double>(args.key_dim));
        const int64_t gate = (span.row + t) * args.value_heads + h;
        const double g =
            -std::exp(static_cast<double>(args.a_log[h])) * softplus(static_cast<double>(args.a[gate]) + args.dt_bias[h]);
        const double beta = 1.0 / (1.0 + std::exp(-static_cast<double>(args.b[gate])));
        step.run(q, qkv + 2 * key_size + h * args.value_dim, g, beta, args.y + (span.row + t) * value_size + h * args.value_dim);
      }
    }
  }
}

}  // namespace pq
