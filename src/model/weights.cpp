// Loading: each tensor goes straight into backend memory where the host can write there or the source has a way of its own, through
// one staging area elsewhere.
#include "model/weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>

#include "base/activity.h"
#include "base/error.h"
#include "kernels/device_memory.h"
#include "model/partition.h"

namespace pq {
namespace {

// Planes of one matrix stand in one buffer at this alignment.
constexpr int64_t kPlaneAlignment = 256;

int64_t aligned(int64_t bytes) { return (bytes + kPlaneAlignment - 1) / kPlaneAlignment * kPlaneAlignment; }

class Loader {
 public:
  Loader(const ModelConfig& config, Backend& backend, WeightSource& source, int rank, int ranks,
         const std::function<void(int64_t)>& progress, Weights* out)
      : backend_(backend), source_(source), rank_(rank), ranks_(ranks), progress_(progress), out_(out) {
    for (TensorSpec& spec : tensor_specs(config)) specs_.emplace(spec.name, spec);
  }

  // One matrix from the row-wise concatenation of `names` (one or more tensors of the same columns and format).
  Matrix matrix(const std::vector<std::string>& names) {
    Matrix m;
    WeightInfo first;
    for (const std::string& name : names) {
      const TensorSpec& spec = specs_.at(name);
      const WeightInfo info = source_.info(spec);
      if (&name == &names.front()) {
        first = info;
        const PieceRange owned = owned_pieces(spec, rank_, ranks_);
        m.format = info.format;
        m.codebook = info.codebook;
        m.units = spec.split == Split::cols ? owned.count : 1;
        m.cols = spec.split == Split::cols ? spec.cols / spec.pieces * owned.count : spec.cols;
      } else if (info.format != first.format || info.bits != first.bits || info.has_zeros != first.has_zeros) {
        throw Error(ErrorKind::input,
                    fmt::format("{} and {} are parts of one matrix but have different formats; give them the same one "
                                "in the policy",
                                names.front(), name));
      }
      m.rows += local_rows(spec);
    }
    const int64_t data_bytes = m.data_bytes();
    const int64_t scale_bytes = m.scale_bytes();
    const int64_t zero_bytes = first.has_zeros ? scale_bytes : 0;
    std::byte* base = allocate(aligned(data_bytes) + aligned(scale_bytes) + zero_bytes);
    std::byte* data = base;
    std::byte* scales = base + aligned(data_bytes);
    std::byte* zeros = scales + aligned(scale_bytes);
    m.data = data;
    // A rank that owns no rows of the vocabulary still has a well-formed, empty matrix.
    const bool has_scales = m.format == WeightFormat::polar || m.format == WeightFormat::int4;
    if (has_scales) m.scales = reinterpret_cast<const uint16_t*>(scales);
    if (first.has_zeros) m.zeros = reinterpret_cast<const uint16_t*>(zeros);
    for (const std::string& name : names) {
      Matrix part = m;
      part.rows = local_rows(specs_.at(name));
      load(name, data, part.data_bytes(), has_scales ? scales : nullptr, part.scale_bytes(), first.has_zeros ? zeros : nullptr);
      data += part.data_bytes();
      scales += part.scale_bytes();
      zeros += part.scale_bytes();
    }
    if (to_host_ == nullptr) backend_.arrange(&m);
    return m;
  }

  Matrix matrix(const std::string& name) { return matrix(std::vector<std::string>{name}); }

  // fp32 vector (or small matrix) from the concatenation of `names`.
  const float* vector(const std::vector<std::string>& names) {
    int64_t bytes = 0;
    for (const std::string& name : names) bytes += 4 * local_rows(specs_.at(name)) * specs_.at(name).cols;
    std::byte* base = allocate(bytes);
    std::byte* data = base;
    for (const std::string& name : names) {
      const int64_t part = 4 * local_rows(specs_.at(name)) * specs_.at(name).cols;
      load(name, data, part, nullptr, 0, nullptr);
      data += part;
    }
    return reinterpret_cast<const float*>(base);
  }

  const float* vector(const std::string& name) { return vector(std::vector<std::string>{name}); }

  // What comes next goes to host memory, or to the backend's own again.
  void to_host(bool on) {
    to_host_ = on ? dynamic_cast<PinnedMemory*>(&backend_) : nullptr;
    require(!on || to_host_ != nullptr, "an embedding in host memory of a backend that has no other");
  }

  int64_t first_row(const std::string& name) const {
    const TensorSpec& spec = specs_.at(name);
    return spec.rows / spec.pieces * owned_pieces(spec, rank_, ranks_).first;
  }

 private:
  int64_t local_rows(const TensorSpec& spec) const {
    return spec.split == Split::rows ? spec.rows / spec.pieces * owned_pieces(spec, rank_, ranks_).count : spec.rows;
  }

  std::byte* allocate(int64_t bytes) {
    const int64_t size = std::max<int64_t>(bytes, 1);
    out_->buffers.push_back(to_host_ != nullptr ? to_host_->allocate_pinned(size) : backend_.allocate(size));
    out_->bytes += to_host_ != nullptr ? 0 : bytes;
    return out_->buffers.back().as<std::byte>();
  }

  void load(const std::string& name, std::byte* data, int64_t data_bytes, std::byte* scales, int64_t scale_bytes,
            std::byte* zeros) {
    const TensorSpec& spec = specs_.at(name);
    const PieceRange owned = owned_pieces(spec, rank_, ranks_);
    if (owned.count == 0) return;
    if (backend_.host_pointer(out_->buffers.back())) {
      source_.load(spec, owned.first, owned.count, data, reinterpret_cast<uint16_t*>(scales), reinterpret_cast<uint16_t*>(zeros));
    } else if (!source_.try_load_on_device(spec, owned.first, owned.count, data, reinterpret_cast<uint16_t*>(scales),
                                           reinterpret_cast<uint16_t*>(zeros))) {
      staging_.resize(static_cast<size_t>(aligned(data_bytes) + 2 * aligned(scale_bytes)));
      std::byte* host_data = staging_.data();
      std::byte* host_scales = host_data + aligned(data_bytes);
      std::byte* host_zeros = host_scales + aligned(scale_bytes);
      source_.load(spec, owned.first, owned.count, host_data, scales ? reinterpret_cast<uint16_t*>(host_scales) : nullptr,
                   zeros ? reinterpret_cast<uint16_t*>(host_zeros) : nullptr);
      backend_.upload(data, host_data, data_bytes);
      if (scales) backend_.upload(scales, host_scales, scale_bytes);
      if (zeros) backend_.upload(zeros, host_zeros, scale_bytes);
    }
    beat();
    loaded_ += data_bytes + scale_bytes + (zeros ? scale_bytes : 0);
    if (progress_) progress_(loaded_);
  }

  Backend& backend_;
  WeightSource& source_;
  int rank_;
  int ranks_;
  const std::function<void(int64_t)>& progress_;
  Weights* out_;
  std::unordered_map<std::string, TensorSpec> specs_;
  std::vector<std::byte> staging_;
  int64_t loaded_ = 0;
  PinnedMemory* to_host_ = nullptr;
};

DeltaWeights load_delta(Loader& loader, const std::string& prefix) {
  const std::string p = prefix + "linear_attn.";
  DeltaWeights w;
  w.in_proj_qkv = loader.matrix({p + "in_proj_q.weight", p + "in_proj_k.weight", p + "in_proj_v.weight"});
  w.in_proj_z = loader.matrix(p + "in_proj_z.weight");
  w.in_proj_b = loader.matrix(p + "in_proj_b.weight");
  w.in_proj_a = loader.matrix(p + "in_proj_a.weight");
  w.conv = loader.vector({p + "conv1d_q.weight", p + "conv1d_k.weight", p + "conv1d_v.weight"});
  w.dt_bias = loader.vector(p + "dt_bias");
  w.a_log = loader.vector(p + "A_log");
  w.norm = loader.vector(p + "norm.weight");
  w.out_proj = loader.matrix(p + "out_proj.weight");
  return w;
}

AttentionWeights load_attention(Loader& loader, const std::string& prefix) {
  const std::string p = prefix + "self_attn.";
  AttentionWeights w;
  w.q_proj = loader.matrix(p + "q_proj.weight");
  w.k_proj = loader.matrix(p + "k_proj.weight");
  w.v_proj = loader.matrix(p + "v_proj.weight");
  w.q_norm = loader.vector(p + "q_norm.weight");
  w.k_norm = loader.vector(p + "k_norm.weight");
  w.o_proj = loader.matrix(p + "o_proj.weight");
  return w;
}

}  // namespace

Weights load_weights(const ModelConfig& config, Backend& backend, WeightSource& source, int rank, int ranks,
                     const std::function<void(int64_t)>& progress, bool host_embedding) {
  Weights weights;
  Loader loader(config, backend, source, rank, ranks, progress, &weights);
  enter_phase(Phase::load);
  require(!host_embedding || !config.tied, "tied embeddings in host memory");
  loader.to_host(host_embedding);
  weights.embed = loader.matrix("embed_tokens.weight");
  loader.to_host(false);
  weights.vocab_first = loader.first_row("embed_tokens.weight");
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    enter_layer(layer);
    const std::string prefix = "layers." + std::to_string(layer) + ".";
    LayerWeights w;
    w.input_norm = loader.vector(prefix + "input_layernorm.weight");
    if (config.layer_kinds[static_cast<size_t>(layer)] == LayerKind::delta)
      w.delta = load_delta(loader, prefix);
    else
      w.attention = load_attention(loader, prefix);
    w.post_norm = loader.vector(prefix + "post_attention_layernorm.weight");
    w.gate_proj = loader.matrix(prefix + "mlp.gate_proj.weight");
    w.up_proj = loader.matrix(prefix + "mlp.up_proj.weight");
    w.down_proj = loader.matrix(prefix + "mlp.down_proj.weight");
    weights.layers.push_back(w);
  }
  enter_layer(-1);
  weights.norm = loader.vector("norm.weight");
  weights.head = config.tied ? weights.embed : loader.matrix("lm_head.weight");
  return weights;
}

}  // namespace pq
