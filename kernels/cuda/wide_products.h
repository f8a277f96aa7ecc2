// Products of many tokens by cuBLAS (BackendOptions::cublas): weights are widened to bfloat16 a tile at a time, in rotated space,
// and met by activations of bfloat16. Their bits are not those of the contract's order; kernels/README.md has what they promise and
// from how many tokens they can win.
#pragma once

#include <memory>

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launch.h"

namespace pq::cuda {

// Rows that are widened at a time: as many as `tile_bytes` hold, but shared out evenly; a multiple of eight, of 128 where there are
// as many. Eight at least.
int64_t wide_tile_rows(int64_t rows, int64_t unit_cols, int64_t tile_bytes);

class WideProducts {
 public:
  // Takes tile and workspace of `backend`, on whose stream it works; outlived by both. Throws what make_gemm throws.
  WideProducts(Backend& backend, cudaStream_t stream, int64_t tile_bytes);

  // f32 matrices are not made narrower; fewer tokens are no win.
  static bool worthwhile(const LinearArgs& args) { return args.w.format != WeightFormat::f32 && args.x.tokens >= kWideTokens; }
  // The sums of each unit, unit_sums [units][tokens][rows]; args.y is not looked at.
  void linear(const LinearArgs& args, float* unit_sums, const DeviceCodebook& book);
  const Gemm& gemm() const { return *gemm_; }

 private:
  Backend& backend_;
  cudaStream_t stream_;
  Buffer workspace_;
  Buffer tile_;
  Buffer inputs_;  // grows to the largest call and stays
  std::unique_ptr<Gemm> gemm_;
};

}  // namespace pq::cuda
