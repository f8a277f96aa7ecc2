// Sizes of weight planes and the choice of a backend by name.
#include "kernels/backend.h"

#include <fmt/format.h>

#include "base/error.h"
#include "kernels/check.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/plugin.h"
#include "kernels/polar.h"
#include "kernels/reference/reference_backend.h"

namespace pq {

int64_t Matrix::data_bytes() const {
  switch (format) {
    case WeightFormat::f32:
      return rows * cols * 4;
    case WeightFormat::bf16:
      return rows * cols * 2;
    case WeightFormat::polar:
      require(codebook != nullptr, "a polar matrix without a codebook has no size");
      return rows * (cols / kBlock) * coded_block_bytes(codebook->bits);
    case WeightFormat::int4:
      return rows * (cols / 2);
  }
  throw Error(ErrorKind::internal, "unknown weight format");
}

int64_t Matrix::scale_bytes() const {
  const bool scaled = format == WeightFormat::polar || format == WeightFormat::int4;
  return scaled ? rows * (cols / kBlock) * 2 : 0;
}

void Backend::gated_delta_layer(const GatedDeltaLayerArgs& args) {
  check_gated_delta_layer(args);
  causal_conv(args.conv);
  gated_delta(args.delta);
  gated_rms_norm(args.norm);
}

std::unique_ptr<Backend> make_backend(const std::string& device, const BackendOptions& options) {
  if (device == "reference") return std::make_unique<ReferenceBackend>();
  if (device == "cpu") {
    const std::optional<Isa> isa = options.isa.empty() ? best_isa() : try_parse_isa(options.isa);
    if (!isa)
      throw Error(ErrorKind::usage, fmt::format("there is no instruction set '{}'; known are {}", options.isa, isa_names()));
    return make_cpu_backend(*isa, options);
  }
  if (device == "cuda") return make_cuda_backend(0, 0, options.cublas, nullptr);
  throw Error(ErrorKind::usage, fmt::format("there is no device '{}'; devices are cpu, cuda and reference", device));
}

}  // namespace pq
