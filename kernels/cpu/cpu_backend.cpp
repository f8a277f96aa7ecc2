// Chooses the kernels of an instruction set once and shares rows of activations out over the threads.
#include "kernels/cpu/cpu_backend.h"

#include <fmt/format.h>

#include "base/error.h"
#include "kernels/check.h"
#include "kernels/cpu/cpu_backend_impl.h"

namespace pq {

CpuBackend::CpuBackend(Isa isa, const BackendOptions& options)
    : isa_(isa), kernels_(kernels_of(isa)), polar_(polar_kernels_of(isa)), pool_(options.threads, options.pin, options.spin) {
  partial_.resize(static_cast<size_t>(options.threads));
}

std::string CpuBackend::name() const {
  return fmt::format("cpu ({}, {} thread{})", isa_name(isa_), pool_.threads(), pool_.threads() == 1 ? "" : "s");
}

void CpuBackend::rms_norm(const RmsNormArgs& args) {
  check_norm(args);
  const PrepareArgs prepare = prepare_of(args);
  split(args.rows, 4 * args.dim, [&](int64_t first, int64_t last, int) {
    for (int64_t r = first; r < last; ++r) {
      const float* x = args.x + r * args.dim;
      if (args.added != nullptr) {
        float* sum = args.sum + r * args.dim;
        for (int64_t i = 0; i < args.dim; ++i) sum[i] = x[i] + args.added[r * args.dim + i];
        x = sum;
      }
      kernels_.rms({.y = args.y + r * args.dim,
                    .x = x,
                    .weight = args.weight,
                    .gate = nullptr,
                    .dim = args.dim,
                    .eps = args.eps,
                    .weight_offset = args.weight_offset});
      if (args.prepared.wanted()) kernels_.prepare(prepare, r);
    }
  });
}

void CpuBackend::gated_rms_norm(const GatedRmsNormArgs& args) {
  check_gated_norm(args);
  const bool whole_blocks = args.dim % kBlock == 0;
  const PrepareArgs by_row{.x = args.y, .tokens = args.rows, .dim = args.dim, .prepared = args.prepared};
  split(args.rows, 8 * args.dim, [&](int64_t first, int64_t last, int) {
    for (int64_t r = first; r < last; ++r) {
      kernels_.rms({.y = args.y + r * args.dim,
                    .x = args.x + r * args.dim,
                    .weight = args.weight,
                    .gate = args.gate + r * args.dim,
                    .dim = args.dim,
                    .eps = args.eps,
                    .weight_offset = 0.0f});
      if (args.prepared.wanted() && whole_blocks) kernels_.prepare(by_row, r);
    }
  });
  if (args.prepared.wanted() && !whole_blocks) prepare(prepare_of(args));
}

void CpuBackend::prepare(const PrepareArgs& args) {
  check_prepare(args);
  split(args.tokens, 4 * args.dim, [&](int64_t first, int64_t last, int) {
    for (int64_t t = first; t < last; ++t) kernels_.prepare(args, t);
  });
}

std::unique_ptr<Backend> make_cpu_backend(Isa isa, const BackendOptions& options) {
  if (!isa_supported(isa)) {
    throw Error(ErrorKind::environment, fmt::format("this machine has no {}; its best is {}", isa_name(isa), isa_name(best_isa())));
  }
  return std::make_unique<CpuBackend>(isa, options);
}

}  // namespace pq
