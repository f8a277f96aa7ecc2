// Memory, embedding, norms, element-wise operations and the convolution of the reference backend.
#include "kernels/reference/reference_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "kernels/check.h"
#include "kernels/encode.h"
#include "kernels/hadamard.h"
#include "kernels/host_memory.h"

namespace pq {
namespace {

double silu(double x) { return x / (1.0 + std::exp(-x)); }

double inverse_rms(const float* x, int64_t dim, float eps) {
  double sum = 0.0;
  for (int64_t i = 0; i < dim; ++i) sum += static_cast<double>(x[i]) * x[i];
  return 1.0 / std::sqrt(sum / static_cast<double>(dim) + eps);
}

}  // namespace

Buffer ReferenceBackend::allocate(int64_t bytes) { return allocate_host(bytes); }

void ReferenceBackend::upload(void* device, const void* host, int64_t bytes) {
  if (bytes > 0 && device != host) std::memmove(device, host, static_cast<size_t>(bytes));
}

void ReferenceBackend::download(void* host, const void* device, int64_t bytes) {
  if (bytes > 0 && device != host) std::memmove(host, device, static_cast<size_t>(bytes));
}

void ReferenceBackend::zero(void* device, int64_t bytes) {
  if (bytes > 0) std::memset(device, 0, static_cast<size_t>(bytes));
}

void ReferenceBackend::embed(const EmbedArgs& args) {
  check_embed(args);
  const int64_t dim = args.table.cols;
  for (int64_t t = 0; t < args.tokens; ++t) {
    float* y = args.y + t * dim;
    const int64_t row = args.ids[t] - args.first_row;
    if (row < 0 || row >= args.table.rows) {
      std::fill(y, y + dim, 0.0f);
      continue;
    }
    decode_row(args.table, 0, row, y);
    for (int64_t i = 0; i < dim; ++i) y[i] += 0.0f;
  }
}

void ReferenceBackend::rms_norm(const RmsNormArgs& args) {
  check_norm(args);
  for (int64_t r = 0; r < args.rows; ++r) {
    const float* x = args.x + r * args.dim;
    float* y = args.y + r * args.dim;
    if (args.added != nullptr) {
      float* sum = args.sum + r * args.dim;
      for (int64_t i = 0; i < args.dim; ++i) sum[i] = x[i] + args.added[r * args.dim + i];
      x = sum;
    }
    const double scale = inverse_rms(x, args.dim, args.eps);
    for (int64_t i = 0; i < args.dim; ++i) {
      y[i] = static_cast<float>(x[i] * scale * (static_cast<double>(args.weight_offset) + args.weight[i]));
    }
  }
  if (args.prepared.wanted()) prepare(prepare_of(args));
}

void ReferenceBackend::prepare(const PrepareArgs& args) {
  check_prepare(args);
  const int64_t blocks = args.dim / kBlock;
  for (int64_t b = 0; b < args.tokens * blocks; ++b) {
    const float* x = args.x + b * kBlock;
    double v[kBlock];
    for (int64_t i = 0; i < kBlock; ++i) v[i] = x[i];
    hadamard_butterflies(v);
    for (double& value : v) value /= std::sqrt(128.0);
    if (args.prepared.mode == ActivationMode::f32) {
      for (int64_t i = 0; i < kBlock; ++i) args.prepared.rotated[b * kBlock + i] = static_cast<float>(v[i]);
      continue;
    }
    double largest = 0.0;
    for (double value : v) largest = std::max(largest, std::abs(value));
    const float scale = static_cast<float>(largest / 127.0);
    args.prepared.scales[b] = scale;
    for (int64_t i = 0; i < kBlock; ++i) {
      args.prepared.codes[b * kBlock + i] =
          scale > 0.0f ? static_cast<int8_t>(std::clamp(std::nearbyint(v[i] / scale), -127.0, 127.0)) : int8_t{0};
    }
  }
}

void ReferenceBackend::swiglu(const SwigluArgs& args) {
  check_swiglu(args);
  const int64_t count = args.x.tokens * args.gate.rows;
  std::vector<float> up(static_cast<size_t>(count));
  linear({.y = args.y, .x = args.x, .w = args.gate});
  linear({.y = up.data(), .x = args.x, .w = args.up});
  for (int64_t i = 0; i < count; ++i) args.y[i] = static_cast<float>(silu(args.y[i]) * up[static_cast<size_t>(i)]);
  if (args.prepared.wanted()) prepare(prepare_of(args));
}

void ReferenceBackend::causal_conv(const CausalConvArgs& args) {
  const int64_t channels = args.channels;
  for (int64_t s = 0; s < args.spans.count; ++s) {
    const Span& span = args.spans.data[s];
    if (span.tokens == 0) continue;
    float* state = args.state + span.slot * kConvRows * channels;
    const float* x = args.x + span.row * channels;
    const auto kept = [&](int64_t position) { return state + position % kConvRows * channels; };
    // Input at offset t of the span; those before it come from the state.
    const auto input = [&](int64_t t, int64_t c) {
      if (t >= 0) return x[t * channels + c];
      return span.position + t >= 0 ? kept(span.position + t)[c] : 0.0f;
    };
    for (int64_t t = 0; t < span.tokens; ++t) {
      for (int64_t c = 0; c < channels; ++c) {
        double sum = 0.0;
        for (int64_t j = 0; j <= kConvHistory; ++j)
          sum += static_cast<double>(args.weight[c * 4 + j]) * input(t - kConvHistory + j, c);
        args.y[(span.row + t) * channels + c] = static_cast<float>(silu(sum));
      }
    }
    for (int64_t t = std::max<int64_t>(0, span.tokens - kConvRows); t < span.tokens; ++t)
      std::copy(x + t * channels, x + (t + 1) * channels, kept(span.position + t));
  }
}

void ReferenceBackend::gated_rms_norm(const GatedRmsNormArgs& args) {
  check_gated_norm(args);
  for (int64_t r = 0; r < args.rows; ++r) {
    const float* x = args.x + r * args.dim;
    const float* gate = args.gate + r * args.dim;
    float* y = args.y + r * args.dim;
    const double scale = inverse_rms(x, args.dim, args.eps);
    for (int64_t i = 0; i < args.dim; ++i) y[i] = static_cast<float>(x[i] * scale * args.weight[i] * silu(gate[i]));
  }
  if (args.prepared.wanted()) prepare(prepare_of(args));
}

void ReferenceBackend::polar_encode(const PolarEncodeArgs& args) { encode_polar(args, Isa::generic, nullptr); }
void ReferenceBackend::int4_encode(const Int4EncodeArgs& args) { encode_int4(args, Isa::generic, nullptr); }
void ReferenceBackend::decode(const DecodeArgs& args) { decode_matrix(args); }

}  // namespace pq
