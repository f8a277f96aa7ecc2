// A backend for the kernel tests, which write operands as host vectors: copies them to the memory of the backend it wraps, runs the
// operation there, and copies all that the operation may write back. Sizes are those of the contract in kernels/backend.h.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/plugin.h"
#include "tests/support/simt/emulated_backend.h"

namespace pq {

class StagingBackend : public Backend {
 public:
  explicit StagingBackend(std::unique_ptr<Backend> device) : device_(std::move(device)) {}

  std::string name() const override { return device_->name(); }
  Buffer allocate(int64_t bytes) override { return device_->allocate(bytes); }
  void* host_pointer(const Buffer& buffer) const override { return device_->host_pointer(buffer); }
  void upload(void* device, const void* host, int64_t bytes) override { device_->upload(device, host, bytes); }
  void download(void* host, const void* device, int64_t bytes) override { device_->download(host, device, bytes); }
  void zero(void* device, int64_t bytes) override { device_->zero(device, bytes); }
  void synchronize() override { device_->synchronize(); }
  void arrange(Matrix*) override {}  // each operation has it done to its copy

  void embed(const EmbedArgs& args) override {
    Call call(*device_);
    EmbedArgs a = args;
    a.y = call.both(args.y, args.tokens * args.table.cols);
    a.table = call.matrix(args.table);
    device_->embed(a);
    call.finish();
  }
  void rms_norm(const RmsNormArgs& args) override {
    Call call(*device_);
    RmsNormArgs a = args;
    const int64_t count = args.rows * args.dim;
    a.x = call.in(args.x, count);
    a.y = args.y == args.x ? const_cast<float*>(a.x) : call.both(args.y, count);
    if (args.y == args.x) call.back(args.y, a.y, count);
    a.weight = call.in(args.weight, args.dim);
    a.prepared = call.prepared(args.prepared, count);
    a.added = call.in(args.added, count);
    if (args.sum == args.y) {
      a.sum = a.y;
    } else if (args.sum == args.x) {
      a.sum = const_cast<float*>(a.x);
      call.back(args.sum, a.sum, count);
    } else {
      a.sum = call.both(args.sum, count);
    }
    device_->rms_norm(a);
    call.finish();
  }
  void prepare(const PrepareArgs& args) override {
    Call call(*device_);
    PrepareArgs a = args;
    a.x = call.in(args.x, args.tokens * args.dim);
    a.prepared = call.prepared(args.prepared, args.tokens * args.dim);
    device_->prepare(a);
    call.finish();
  }
  void linear(const LinearArgs& args) override {
    Call call(*device_);
    LinearArgs a = args;
    a.y = call.both(args.y, args.x.tokens * args.w.rows);
    a.x = call.activation(args.x);
    a.w = call.matrix(args.w);
    device_->linear(a);
    call.finish();
  }
  void linear_group(std::span<const LinearArgs> products) override {
    Call call(*device_);
    std::vector<LinearArgs> copies(products.begin(), products.end());
    if (copies.empty()) return device_->linear_group(copies);
    const Activation x = call.activation(products[0].x);
    for (LinearArgs& a : copies) {
      a.y = call.both(a.y, x.tokens * a.w.rows);
      a.x = x;
      a.w = call.matrix(a.w);
    }
    device_->linear_group(copies);
    call.finish();
  }
  void swiglu(const SwigluArgs& args) override {
    Call call(*device_);
    SwigluArgs a = args;
    a.y = call.both(args.y, args.x.tokens * args.gate.rows);
    a.x = call.activation(args.x);
    a.gate = call.matrix(args.gate);
    a.up = call.matrix(args.up);
    a.prepared = call.prepared(args.prepared, args.x.tokens * args.gate.rows);
    device_->swiglu(a);
    call.finish();
  }
  void causal_conv(const CausalConvArgs& args) override {
    Call call(*device_);
    CausalConvArgs a = args;
    const int64_t rows = rows_of(args.spans);
    a.y = call.both(args.y, rows * args.channels);
    a.x = call.in(args.x, rows * args.channels);
    a.weight = call.in(args.weight, 4 * args.channels);
    a.state = call.both(args.state, slots_of(args.spans) * kConvRows * args.channels);
    device_->causal_conv(a);
    call.finish();
  }
  void gated_delta(const GatedDeltaArgs& args) override {
    Call call(*device_);
    GatedDeltaArgs a = args;
    const int64_t rows = rows_of(args.spans), slots = slots_of(args.spans);
    const int64_t keys = args.key_heads * args.key_dim, values = args.value_heads * args.value_dim;
    a.y = call.both(args.y, rows * values);
    a.qkv = call.in(args.qkv, rows * (2 * keys + values));
    a.a = call.in(args.a, rows * args.value_heads);
    a.b = call.in(args.b, rows * args.value_heads);
    a.a_log = call.in(args.a_log, args.value_heads);
    a.dt_bias = call.in(args.dt_bias, args.value_heads);
    a.state = call.delta_state(args, slots);
    device_->gated_delta(a);
    call.finish();
  }
  void gated_rms_norm(const GatedRmsNormArgs& args) override {
    Call call(*device_);
    GatedRmsNormArgs a = args;
    const int64_t count = args.rows * args.dim;
    a.x = call.in(args.x, count);
    a.y = args.y == args.x ? const_cast<float*>(a.x) : call.both(args.y, count);
    if (args.y == args.x) call.back(args.y, a.y, count);
    a.gate = call.in(args.gate, count);
    a.weight = call.in(args.weight, args.dim);
    a.prepared = call.prepared(args.prepared, count);
    device_->gated_rms_norm(a);
    call.finish();
  }
  void gated_delta_layer(const GatedDeltaLayerArgs& args) override {
    Call call(*device_);
    const GatedDeltaArgs& d = args.delta;
    const int64_t rows = rows_of(d.spans), slots = slots_of(d.spans), values = d.value_heads * d.value_dim;
    GatedDeltaLayerArgs a = args;
    a.conv.y = call.both(args.conv.y, rows * args.conv.channels);
    a.conv.x = call.in(args.conv.x, rows * args.conv.channels);
    a.conv.weight = call.in(args.conv.weight, 4 * args.conv.channels);
    a.conv.state = call.both(args.conv.state, slots * kConvRows * args.conv.channels);
    a.delta.y = call.both(d.y, rows * values);
    a.delta.qkv = d.qkv == args.conv.y ? a.conv.y : d.qkv;
    a.delta.a = call.in(d.a, rows * d.value_heads);
    a.delta.b = call.in(d.b, rows * d.value_heads);
    a.delta.a_log = call.in(d.a_log, d.value_heads);
    a.delta.dt_bias = call.in(d.dt_bias, d.value_heads);
    a.delta.state = call.delta_state(d, slots);
    a.norm.x = args.norm.x == d.y ? a.delta.y : args.norm.x;
    a.norm.y = args.norm.y == args.norm.x ? a.delta.y : call.both(args.norm.y, rows * values);
    a.norm.gate = call.in(args.norm.gate, rows * values);
    a.norm.weight = call.in(args.norm.weight, args.norm.dim);
    a.norm.prepared = call.prepared(args.norm.prepared, rows * values);
    device_->gated_delta_layer(a);
    call.finish();
  }
  void attention_input(const AttentionInputArgs& args) override {
    Call call(*device_);
    AttentionInputArgs a = args;
    const int64_t rows = rows_of(args.spans), dim = args.cache.head_dim;
    a.q = call.both(args.q, rows * args.heads * dim);
    a.q_gate = call.in(args.q_gate, rows * args.heads * 2 * dim);
    a.k = call.in(args.k, rows * args.cache.kv_heads * dim);
    a.v = call.in(args.v, rows * args.cache.kv_heads * dim);
    a.q_norm = call.in(args.q_norm, dim);
    a.k_norm = call.in(args.k_norm, dim);
    a.inv_freq = call.in(args.inv_freq, args.rotary_dim / 2);
    a.cache = call.cache(args.cache, slots_of(args.spans));
    device_->attention_input(a);
    call.finish();
  }
  void attention(const AttentionArgs& args) override {
    Call call(*device_);
    AttentionArgs a = args;
    const int64_t rows = rows_of(args.spans), dim = args.cache.head_dim;
    a.y = call.both(args.y, rows * args.heads * dim);
    a.q = call.in(args.q, rows * args.heads * dim);
    a.q_gate = call.in(args.q_gate, rows * args.heads * 2 * dim);
    a.cache = call.cache(args.cache, slots_of(args.spans));
    a.prepared = call.prepared(args.prepared, rows * args.heads * dim);
    device_->attention(a);
    call.finish();
  }
  void polar_encode(const PolarEncodeArgs& args) override {
    Call call(*device_);
    PolarEncodeArgs a = args;
    const int64_t blocks = args.rows * (args.cols / kBlock);
    a.codes = call.both(args.codes, blocks * 16 * args.codebook->bits);
    a.norms = call.both(args.norms, blocks);
    a.w = call.in(static_cast<const uint8_t*>(args.w), blocks * kBlock * dtype_bytes(args.dtype));
    device_->polar_encode(a);
    call.finish();
  }
  void int4_encode(const Int4EncodeArgs& args) override {
    Call call(*device_);
    Int4EncodeArgs a = args;
    const int64_t blocks = args.rows * (args.cols / kBlock);
    a.codes = call.both(args.codes, blocks * 64);
    a.scales = call.both(args.scales, blocks);
    a.zeros = call.both(args.zeros, blocks);
    a.w = call.in(static_cast<const uint8_t*>(args.w), blocks * kBlock * dtype_bytes(args.dtype));
    device_->int4_encode(a);
    call.finish();
  }
  void decode(const DecodeArgs& args) override {
    Call call(*device_);
    DecodeArgs a = args;
    a.w = call.both(args.w, args.matrix.rows * args.matrix.cols);
    a.matrix = call.matrix(args.matrix);
    device_->decode(a);
    call.finish();
  }

 private:
  static int64_t rows_of(const Spans& spans) {
    int64_t rows = 0;
    for (int64_t i = 0; i < spans.count; ++i) rows = std::max(rows, spans.data[i].row + spans.data[i].tokens);
    return rows;
  }
  static int64_t slots_of(const Spans& spans) {
    int64_t slots = 0;
    for (int64_t i = 0; i < spans.count; ++i) slots = std::max(slots, spans.data[i].slot + 1);
    return slots;
  }

  // The copies of one operation.
  class Call {
   public:
    explicit Call(Backend& device) : device_(device) {}

    template <typename T>
    const T* in(const T* host, int64_t count) {
      if (host == nullptr) return nullptr;
      buffers_.push_back(device_.allocate(std::max<int64_t>(1, count) * static_cast<int64_t>(sizeof(T))));
      device_.upload(buffers_.back().data(), host, count * static_cast<int64_t>(sizeof(T)));
      return buffers_.back().template as<T>();
    }
    template <typename T>
    void back(T* host, const T* device, int64_t count) {
      if (count > 0) results_.push_back({host, device, count * static_cast<int64_t>(sizeof(T))});
    }
    // Copied there and back.
    template <typename T>
    T* both(T* host, int64_t count) {
      T* device = const_cast<T*>(in(host, count));
      if (host != nullptr) back(host, device, count);
      return device;
    }
    Prepared prepared(const Prepared& p, int64_t count) {
      return {.mode = p.mode,
              .rotated = both(p.rotated, count),
              .codes = both(p.codes, count),
              .scales = both(p.scales, count / kBlock)};
    }
    Activation activation(const Activation& x) {
      Activation a = x;
      a.raw = in(x.raw, x.tokens * x.dim);
      a.rotated = in(x.rotated, x.tokens * x.dim);
      a.codes = in(x.codes, x.tokens * x.dim);
      a.scales = in(x.scales, x.tokens * (x.dim / kBlock));
      return a;
    }
    Matrix matrix(const Matrix& m) {
      Matrix a = m;
      a.data = in(static_cast<const uint8_t*>(m.data), m.data_bytes());
      a.scales = in(m.scales, m.scale_bytes() / 2);
      a.zeros = in(m.zeros, m.scale_bytes() / 2);
      device_.arrange(&a);
      return a;
    }
    KvCache cache(const KvCache& c, int64_t slots) {
      KvCache a = c;
      const int64_t bytes = slots * c.kv_heads * c.context * kv_row_bytes(c.type, c.head_dim);
      a.k = both(static_cast<uint8_t*>(c.k), bytes);
      a.v = both(static_cast<uint8_t*>(c.v), bytes);
      return a;
    }
    DeltaState delta_state(const GatedDeltaArgs& args, int64_t slots) {
      const int64_t keys = args.key_heads * args.key_dim, values = args.value_heads * args.value_dim;
      return {.s = both(args.state.s, slots * args.key_dim * values),
              .k = both(args.state.k, slots * kDeltaChunk * keys),
              .delta = both(args.state.delta, slots * kDeltaChunk * values),
              .decay = both(args.state.decay, slots * kDeltaChunk * args.value_heads)};
    }
    void finish() {
      for (const Result& result : results_) device_.download(result.host, result.device, result.bytes);
    }

   private:
    struct Result {
      void* host;
      const void* device;
      int64_t bytes;
    };
    Backend& device_;
    std::vector<Buffer> buffers_;
    std::vector<Result> results_;
  };

  std::unique_ptr<Backend> device_;
};

// Whether this machine has a GPU; PQ_REQUIRE=cuda makes it a failure that it has none.
inline bool gpu_or_required() {
  std::string reason;
  if (cuda_device_count(&reason) > 0) return true;
  const char* required = std::getenv("PQ_REQUIRE");
  if (required != nullptr && std::string(required) == "cuda") ADD_FAILURE() << "PQ_REQUIRE=cuda, but there is no GPU: " << reason;
  return false;
}

// For operands on the host: a backend by its device name; "staged", the cpu backend behind copies, which tests the copies; or
// "cuda-emulated", the CUDA kernels as fibers of this process. Null when there is no GPU.
inline std::unique_ptr<Backend> make_test_backend(const std::string& name) {
  if (name == "cuda-emulated") return std::make_unique<StagingBackend>(make_emulated_cuda_backend());
  if (name == "staged") return std::make_unique<StagingBackend>(make_backend("cpu"));
  if (name != "cuda") return make_backend(name);
  return gpu_or_required() ? std::make_unique<StagingBackend>(make_backend("cuda")) : nullptr;
}

}  // namespace pq
