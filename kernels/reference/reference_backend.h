// The definition of every operation: scalar loops, double accumulators, one rounding to fp32 at the end where the contract has
// many. Speed is left to kernels/cpu, which inherits from this class; encoders and decoders are shared with it (kernels/encode.h).
#pragma once

#include "kernels/backend.h"

namespace pq {

class ReferenceBackend : public Backend {
 public:
  std::string name() const override { return "reference"; }

  Buffer allocate(int64_t bytes) override;
  void* host_pointer(const Buffer& buffer) const override { return buffer.data(); }
  void upload(void* device, const void* host, int64_t bytes) override;
  void download(void* host, const void* device, int64_t bytes) override;
  void zero(void* device, int64_t bytes) override;
  void synchronize() override {}

  void embed(const EmbedArgs& args) override;
  void rms_norm(const RmsNormArgs& args) override;
  void prepare(const PrepareArgs& args) override;
  void linear(const LinearArgs& args) override;
  void swiglu(const SwigluArgs& args) override;
  void causal_conv(const CausalConvArgs& args) override;
  void gated_delta(const GatedDeltaArgs& args) override;
  void gated_rms_norm(const GatedRmsNormArgs& args) override;
  void attention_input(const AttentionInputArgs& args) override;
  void attention(const AttentionArgs& args) override;

  void polar_encode(const PolarEncodeArgs& args) override;
  void int4_encode(const Int4EncodeArgs& args) override;
  void decode(const DecodeArgs& args) override;
};

}  // namespace pq
