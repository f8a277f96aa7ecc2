// The cpu backend's class, private to kernels/cpu. cpu_backend.cpp holds the operations on rows; cpu_sequence.cpp those that carry
// a state along a sequence; cpu_attention.cpp those on the cache.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/encode.h"
#include "kernels/host_memory.h"
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
  void causal_conv(const CausalConvArgs& args) override;
  void gated_delta(const GatedDeltaArgs& args) override;
  void gated_rms_norm(const GatedRmsNormArgs& args) override;
  void attention_input(const AttentionInputArgs& args) override;
  void attention(const AttentionArgs& args) override;
  void polar_encode(const PolarEncodeArgs& args) override { encode_polar(args, isa_, &pool_); }
  void int4_encode(const Int4EncodeArgs& args) override { encode_int4(args, isa_, &pool_); }

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
    pool_.parallel_for(parts, [&](int64_t part, int worker) { body(count * part / parts, count * (part + 1) / parts, worker); });
  }

  // One side of a product as the tiles read it.
  struct Operand {
    const Activation* x;
    const Matrix* w;
    bool integer;
    IntTable table;
    PolarInput input;
    int64_t scratch_floats() const;
  };
  // The input of an integer product put into order, in the scratch of that place: 0, or 1 for the second matrix of swiglu.
  Operand make_operand(const Activation& x, const Matrix& w, int place);
  // Row t of y, y_stride floats apart: token `token` + t, rows from `row`. next: rows that will be read after these.
  void product_tile(const Operand& o, int64_t row, int64_t token, const Matrix& next, int64_t next_row, float* y, int64_t y_stride,
                    float* scratch) const;
  // tile(row, token, worker) for every tile of a product of `rows` x x.tokens.
  template <typename Tile>
  void for_tiles(int64_t rows, const Activation& x, const Tile& tile);
  void delta_part(const GatedDeltaArgs& args, const Span& span, int64_t first, int64_t count);
  void norm_and_rotate(const AttentionInputArgs& args, float* y, const float* x, const float* weight, const float* cosine,
                       const float* sine) const;
  void attention_input_row(const AttentionInputArgs& args, int64_t row, int64_t position, int64_t slot, float* scratch) const;

  Isa isa_;
  const Kernels& kernels_;
  const PolarKernels& polar_;
  ThreadPool pool_;
  // Scratch that grows to the largest call and stays.
  struct PackedScratch {
    std::vector<float> steps;
    std::vector<int32_t> excess;
    std::vector<uint8_t> packed;
  };
  PackedScratch packed_[2];
  std::vector<std::vector<float>> partial_;  // by thread
  std::vector<float> queries_;
  std::vector<float> products_;
  Buffer attention_area_;
};

inline float* reserve(Buffer* scratch, int64_t count) {
  if (scratch->bytes() < 4 * count) *scratch = allocate_host(4 * count);
  return scratch->as<float>();
}

inline float* reserve(std::vector<float>* scratch, int64_t count) {
  if (static_cast<int64_t>(scratch->size()) < count) scratch->resize(static_cast<size_t>(count));
  return scratch->data();
}

// The same on a boundary of 64 bytes.
template <typename T>
T* reserve_lines(std::vector<T>* scratch, int64_t count) {
  const size_t size = static_cast<size_t>(count) + 64 / sizeof(T);
  if (scratch->size() < size) scratch->resize(size);
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(scratch->data()) + 63) / 64 * 64);
}

}  // namespace pq
