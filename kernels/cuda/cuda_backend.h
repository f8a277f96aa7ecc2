// The backend of one NVIDIA device: memory counted against a limit, one stream, operations as launches of kernels/cuda/*.cu. Made
// by the plugin's factory; which rank takes which device is left to the programs.
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/step_graphs.h"
#include "kernels/cuda/wide_products.h"
#include "kernels/device_measure.h"
#include "kernels/device_memory.h"

namespace pq::cuda {

class CudaBackend : public Backend, public PinnedMemory, public DeviceMeasure {
 public:
  // memory_limit: bytes of device memory that buffers may take together; 0: what the device has. Throws ErrorKind::environment when
  // the device does not exist, is older than sm_80, or cannot be opened. wide_tile_bytes: of the memory for widened weights, where
  // products of many tokens are left to cuBLAS; 0: they are not, and there need be no cuBLAS.
  CudaBackend(int device, int64_t memory_limit, int64_t wide_tile_bytes = 0);
  ~CudaBackend() override;

  std::string name() const override { return name_; }
  Buffer allocate(int64_t bytes) override;
  // Kernels read it where it lies, over the bus. Not counted against the limit.
  Buffer allocate_pinned(int64_t bytes) override;
  void* host_pointer(const Buffer& buffer) const override;
  void upload(void* device, const void* host, int64_t bytes) override;
  void download(void* host, const void* device, int64_t bytes) override;
  void zero(void* device, int64_t bytes) override;
  void synchronize() override;
  // Steps of one token a span are recorded as CUDA graphs.
  std::string run_step(const StepArgs& args, const std::function<void()>& body) override;
  // By way of a buffer of at most kDeviceBounceBytes, or eight rows; coded matrices only (kernels/cuda/tiles.h).
  void arrange(Matrix* matrix) override;

  void embed(const EmbedArgs& args) override;
  void rms_norm(const RmsNormArgs& args) override;
  void prepare(const PrepareArgs& args) override;
  void linear(const LinearArgs& args) override { linear_group({&args, 1}); }
  void linear_group(std::span<const LinearArgs> products) override;
  void swiglu(const SwigluArgs& args) override;
  void causal_conv(const CausalConvArgs& args) override;
  void gated_delta(const GatedDeltaArgs& args) override;
  void gated_rms_norm(const GatedRmsNormArgs& args) override;
  void gated_delta_layer(const GatedDeltaLayerArgs& args) override;
  void attention_input(const AttentionInputArgs& args) override;
  void attention(const AttentionArgs& args) override;
  // Both wait for the device: whether a weight cannot be coded is known when they return.
  void polar_encode(const PolarEncodeArgs& args) override;
  void int4_encode(const Int4EncodeArgs& args) override;
  void decode(const DecodeArgs& args) override;

  void mark() override;
  std::vector<double> intervals() override;
  void copy(void* to, const void* from, int64_t bytes, bool by_kernel) override;
  int64_t multiply(int64_t rounds) override;
  const char* multiply_name() const override { return "mma.sync.m16n8k32.s8"; }
  void fill_random(uint64_t* data, int64_t words, uint64_t seed) override;
  void fill_choices(uint16_t* data, int64_t count, const uint16_t* values, uint64_t seed) override;
  void fill_choices(float* data, int64_t count, const float* values, uint64_t seed) override;
  int64_t held_bytes() const override { return ledger_->used; }
  int64_t peak_bytes() const override { return ledger_->peak; }
  int64_t taken_bytes() const override;
  int64_t free_bytes() const override;

  // Destroys the recorded steps, without waiting for one that runs. False, with nothing done, while a step is being recorded.
  bool forget_graphs();
  // Memory for other ranks to map, of so many bytes; zero or what an earlier use left. What is kept is given out again and freed
  // with the backend: the runtime does not define what becomes of memory that is freed while another process has it mapped. At that
  // end nobody uses it, since a sum has ended when all have written, though a rank may be about to unmap it.
  Buffer take_mapped(int64_t bytes);
  void keep_mapped(Buffer buffer);
  cudaStream_t stream() const { return stream_; }
  int device() const { return device_; }
  // Called again and again while the host waits for the stream, with the seconds it has waited, so that a rank which waits for
  // another in vain hears of it; what it throws ends the wait. May be empty.
  void watch(std::function<void(double)> watcher) { watcher_ = std::move(watcher); }

 private:
  // Bytes taken by buffers, shared with them because they may outlive the backend.
  struct Ledger {
    int64_t used = 0;
    int64_t peak = 0;
    int64_t limit = 0;
  };

  // A table on the device, and what it was made from: another table may come to lie at the address of one that is gone.
  struct Table {
    std::vector<float> centroids;
    DeviceCodebook device;
  };
  struct EncodeTableCopy {
    std::vector<float> centroids;
    Buffer device;
  };

  // Gives back what is no Buffer.
  void close();
  const DeviceCodebook& device_codebook(const Codebook* book);
  // An encoder's launch between its report's memory and what the report says.
  template <typename Args, typename Launch>
  void encode(const char* op, const Args& args, const Launch& launch);
  // Offset of so many bytes of the ring that nothing on its way uses.
  int64_t ring_place(int64_t bytes);
  // Host data for the kernels of one call: where the step has put it, or by way of the ring.
  template <typename T>
  const T* stage(const T* host, int64_t count);
  // False when the step is too large for its place, and its operations stage for themselves.
  bool stage_step(const StepArgs& args);
  // Whether a product goes to cuBLAS.
  bool widens(const LinearArgs& args) const;
  // One product, in the way of any number of tokens.
  void wide_linear(const LinearArgs& args);
  // Scratch of the stream that grows to the largest call and stays.
  float* scratch(int64_t floats);

  int device_;
  std::string name_;
  int multiprocessors_ = 0;
  cudaStream_t stream_ = nullptr;
  std::shared_ptr<Ledger> ledger_;
  std::shared_ptr<std::set<void*>> host_buffers_ = std::make_shared<std::set<void*>>();
  std::map<const Codebook*, Table> codebooks_;
  std::vector<Buffer> tables_;
  std::map<const Codebook*, EncodeTableCopy> encode_tables_;
  Buffer encode_report_;
  Buffer scratch_;
  std::vector<Buffer> mapped_;  // kept, in nobody's use
  // Pinned memory from which ids and spans travel, and where they arrive: in the same place of the ring, or, those of a step, in
  // step_area_, spans first.
  Buffer ring_;
  char* ring_host_ = nullptr;
  int64_t ring_used_ = 0;
  Buffer step_area_;
  StepArgs step_;          // the one that runs, when staged
  bool decoding_ = false;  // the step that runs has one token of each sequence
  StepGraphs graphs_{stream_};
  std::unique_ptr<WideProducts> wide_;  // null: every product in the contract's order
  std::function<void(double)> watcher_;
  std::vector<cudaEvent_t> marks_;  // made so far, of which the first `marked_` are in use
  size_t marked_ = 0;
};

}  // namespace pq::cuda
