// The cpu backend's class, private to kernels/cpu: cpu_backend.cpp holds the operations on rows, cpu_sequence.cpp those that walk the
// positions of a sequence.
#pragma once

#include <fmt/format.h>

#include <string>
#include <vector>

#include "kernels/cpu/kernels.h"
#include "kernels/encode.h"
#include "kernels/reference/reference_backend.h"

namespace pq {

class CpuBackend : public ReferenceBackend {
 public:
  explicit CpuBackend(Isa isa) : isa_(isa), kernels_(kernels_of(isa)) {}
  std::string name() const override { return fmt::format("cpu ({})", isa_name(isa_)); }

  void rms_norm(const RmsNormArgs& args) override;
  void prepare(const PrepareArgs& args) override;
  void linear(const LinearArgs& args) override;
  void silu_mul(const SiluMulArgs& args) override { kernels_.silu_mul(args); }
  void causal_conv(const CausalConvArgs& args) override;
  void gated_delta(const GatedDeltaArgs& args) override;
  void gated_rms_norm(const GatedRmsNormArgs& args) override;
  void attention_input(const AttentionInputArgs& args) override;
  void attention(const AttentionArgs& args) override;
  void polar_encode(const PolarEncodeArgs& args) override { encode_polar(args, isa_); }

 private:
  void sum_codes(const Activation& x);
  void linear_tile(const LinearArgs& args, const IntTable& table, int64_t row, int64_t token, int64_t unit, float* out) const;
  void delta_part(const GatedDeltaArgs& args, const Span& span, int64_t first, int64_t count);
  void norm_and_rotate(const AttentionInputArgs& args, float* y, const float* x, const float* weight) const;

  Isa isa_;
  const Kernels& kernels_;
  // Scratch that grows to the largest call and stays.
  std::vector<int32_t> code_sums_;
  std::vector<float> partial_;
  std::vector<float> queries_;
  std::vector<float> products_;
  std::vector<float> cosine_;
  std::vector<float> sine_;
  std::vector<float> key_;
  std::vector<float> scores_;
};

inline float* reserve(std::vector<float>* scratch, int64_t count) {
  if (static_cast<int64_t>(scratch->size()) < count) scratch->resize(static_cast<size_t>(count));
  return scratch->data();
}

}  // namespace pq
