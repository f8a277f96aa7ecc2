// Sizes of weight planes and what a backend does by its other operations; part of the CUDA plugin too.
#include "kernels/backend.h"

#include "base/error.h"
#include "kernels/check.h"
#include "kernels/polar.h"

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

}  // namespace pq
