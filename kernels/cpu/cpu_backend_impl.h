// The cpu backend's class, private to kernels/cpu: cpu_backend.cpp holds the operations on rows, cpu_sequence.cpp those that walk the
// positions of a sequence.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/encode.h"
#include "kernels/reference/reference_backend.h"

namespace pq {

class CpuBackend : public ReferenceBackend {
 public:
  CpuBackend(Isa isa, const BackendOptions& options);
  std::string name() const override;

  void rms_norm(const RmsNormArgs& args) override;
  void prepare(const PrepareArgs& args) override;
  void linear(const LinearArgs& args) override;
  void swiglu(const SwigluArgs& args) override;
  void add(const AddArgs& args) override;
  void causal_conv(const CausalConvArgs& args) override;
  void gated_delta(const GatedDeltaArgs& args) override;
  void gated_rms_norm(const GatedRmsNormArgs& args) override;
  void attention_input(const AttentionInputArgs& args) override;
  void attention(const AttentionArgs& args) override;
  void polar_encode(const PolarEncodeArgs& args) override { encode_polar(args, isa_); }

 private:
  // body(first, last, worker) over consecutive parts of [0, count): one part when all of it costs less than waking a thread.
  // cost: of one index, in operations.
  template <typename Body>
  void split(int64_t count, int64_t cost, const Body& body) {
    constexpr int64_t kPartsPerThread = 4;
    constexpr int64_t kWorthwhile = int64_t{1} << 16;
    const int64_t parts = count * cost < kWorthwhile ? 1 : std::min(count, kPartsPerThread * pool_.threads());
    if (pool_.threads() == 1 || parts <= 1) {
      if (count > 0) body(int64_t{0}, count, 0);
      return;
    }
    pool_.parallel_for(parts, [&](int64_t part, int worker) {
      body(count * part / parts, count * (part + 1) / parts, worker);
    });
  }

  // The integer form of an input: sums of its codes by block.
  void sum_codes(const Activation& x);
  // out [kTileTokens][kTileRows]: the product of one tile, units added; scratch of w.units - 1 such tiles follows it.
  void product_tile(const Activation& x, const Matrix& w, const IntTable& table, int64_t row, int64_t token, float* out) const;
  // tile(row, token, worker) for every tile of a product of `rows` x x.tokens.
  template <typename Tile>
  void for_tiles(int64_t rows, const Activation& x, const Tile& tile);
  void delta_part(const GatedDeltaArgs& args, const Span& span, int64_t first, int64_t count);
  void norm_and_rotate(const AttentionInputArgs& args, float* y, const float* x, const float* weight) const;

  Isa isa_;
  const Kernels& kernels_;
  ThreadPool pool_;
  // Scratch that grows to the largest call and stays.
  std::vector<int32_t> code_sums_;
  std::vector<std::vector<float>> partial_;  // by thread
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
