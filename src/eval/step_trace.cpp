// Forwarding with a note after each operation, for step_trace.h.
#include "eval/step_trace.h"

#include "base/error.h"
#include "kernels/device_memory.h"

namespace pq {

void StepTrace::begin() {
  on_ = true;
  kinds_.clear();
  times_.clear();
  if (device_ != nullptr) return device_->mark();
  times_.push_back(std::chrono::steady_clock::now());
}

void StepTrace::ended(StepKind kind) {
  if (!on_) return;
  kinds_.push_back(kind);
  if (device_ != nullptr) return device_->mark();
  times_.push_back(std::chrono::steady_clock::now());
}

std::array<double, kStepKinds.size()> StepTrace::end() {
  on_ = false;
  std::vector<double> seconds;
  if (device_ != nullptr) seconds = device_->intervals();
  for (size_t i = 1; i < times_.size(); ++i) seconds.push_back(std::chrono::duration<double>(times_[i] - times_[i - 1]).count());
  std::array<double, kStepKinds.size()> sums{};
  for (size_t i = 0; i < kinds_.size(); ++i) sums[static_cast<size_t>(kinds_[i])] += seconds[i];
  return sums;
}

namespace {

class TracedBackend : public Backend, public PinnedMemory {
 public:
  TracedBackend(Backend& backend, StepTrace& trace, int64_t vocab_rows)
      : backend_(backend), trace_(trace), vocab_rows_(vocab_rows) {}

  std::string name() const override { return backend_.name(); }
  Buffer allocate(int64_t bytes) override { return backend_.allocate(bytes); }
  Buffer allocate_pinned(int64_t bytes) override {
    auto* pinned = dynamic_cast<PinnedMemory*>(&backend_);
    require(pinned != nullptr, "pinned memory of a backend that has none");
    return pinned->allocate_pinned(bytes);
  }
  void* host_pointer(const Buffer& buffer) const override { return backend_.host_pointer(buffer); }
  void upload(void* device, const void* host, int64_t bytes) override {
    backend_.upload(device, host, bytes);
    trace_.ended(StepKind::copies);
  }
  void download(void* host, const void* device, int64_t bytes) override {
    backend_.download(host, device, bytes);
    trace_.ended(StepKind::copies);
  }
  void zero(void* device, int64_t bytes) override { backend_.zero(device, bytes); }
  void synchronize() override { backend_.synchronize(); }
  void arrange(Matrix* matrix) override { backend_.arrange(matrix); }

  void embed(const EmbedArgs& args) override {
    backend_.embed(args);
    trace_.ended(StepKind::embedding);
  }
  void rms_norm(const RmsNormArgs& args) override {
    backend_.rms_norm(args);
    trace_.ended(StepKind::norms);
  }
  void prepare(const PrepareArgs& args) override {
    backend_.prepare(args);
    trace_.ended(StepKind::rotation);
  }
  void linear(const LinearArgs& args) override {
    backend_.linear(args);
    trace_.ended(args.w.rows == vocab_rows_ ? StepKind::head : StepKind::products);
  }
  void linear_group(std::span<const LinearArgs> products) override {
    backend_.linear_group(products);
    trace_.ended(StepKind::products);
  }
  void swiglu(const SwigluArgs& args) override {
    backend_.swiglu(args);
    trace_.ended(StepKind::products);
  }
  void causal_conv(const CausalConvArgs& args) override {
    backend_.causal_conv(args);
    trace_.ended(StepKind::delta_rule);
  }
  void gated_delta(const GatedDeltaArgs& args) override {
    backend_.gated_delta(args);
    trace_.ended(StepKind::delta_rule);
  }
  void gated_rms_norm(const GatedRmsNormArgs& args) override {
    backend_.gated_rms_norm(args);
    trace_.ended(StepKind::norms);
  }
  void gated_delta_layer(const GatedDeltaLayerArgs& args) override {
    backend_.gated_delta_layer(args);
    trace_.ended(StepKind::delta_rule);
  }
  void attention_input(const AttentionInputArgs& args) override {
    backend_.attention_input(args);
    trace_.ended(StepKind::attention);
  }
  void attention(const AttentionArgs& args) override {
    backend_.attention(args);
    trace_.ended(StepKind::attention);
  }
  void polar_encode(const PolarEncodeArgs& args) override { backend_.polar_encode(args); }
  void int4_encode(const Int4EncodeArgs& args) override { backend_.int4_encode(args); }
  void decode(const DecodeArgs& args) override { backend_.decode(args); }

 private:
  Backend& backend_;
  StepTrace& trace_;
  int64_t vocab_rows_;
};

class TracedCommunicator : public Communicator {
 public:
  TracedCommunicator(Communicator& comm, StepTrace& trace) : comm_(comm), trace_(trace) {}
  int rank() const override { return comm_.rank(); }
  int size() const override { return comm_.size(); }
  std::string name() const override { return comm_.name(); }
  void all_reduce_sum(float* data, int64_t count) override {
    comm_.all_reduce_sum(data, count);
    trace_.ended(StepKind::sums);
  }
  bool sums_on_device() const override { return comm_.sums_on_device(); }
  bool try_sum_and_norm(const RmsNormArgs& args) override {
    const bool done = comm_.try_sum_and_norm(args);
    if (done) trace_.ended(StepKind::sums);
    return done;
  }
  void all_gather(const void* data, int64_t bytes, void* out) override { comm_.all_gather(data, bytes, out); }
  void gather(const void* data, int64_t bytes, void* out) override {
    comm_.gather(data, bytes, out);
    trace_.ended(StepKind::copies);
  }
  void broadcast(void* data, int64_t bytes) override { comm_.broadcast(data, bytes); }
  void barrier() override { comm_.barrier(); }

 private:
  Communicator& comm_;
  StepTrace& trace_;
};

}  // namespace

std::unique_ptr<Backend> make_traced_backend(Backend& backend, StepTrace& trace, int64_t vocab_rows) {
  return std::make_unique<TracedBackend>(backend, trace, vocab_rows);
}

std::unique_ptr<Communicator> make_traced_communicator(Communicator& comm, StepTrace& trace) {
  return std::make_unique<TracedCommunicator>(comm, trace);
}

}  // namespace pq
