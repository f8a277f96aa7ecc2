// Who owns what: the units every tensor is cut in, the slice of each rank, and the memory a rank needs, known before a byte of
// weights is read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "model/config.h"
#include "store/tensor_spec.h"
#include "store/weight_source.h"

namespace pq {

// The number of units of a model: the largest of 8, 4, 2, 1 that divides key heads, query heads, and the inputs of every
// row-parallel matrix in whole 128-blocks, and that is a multiple or divisor of the kv heads. Rank counts dividing it are legal.
int64_t model_units(const ModelConfig& config);

// Rank counts that may hold the model, ascending.
std::vector<int> legal_rank_counts(const ModelConfig& config);

// Throws ErrorKind::usage with the reason and the legal counts when `ranks` is not one of them.
void check_rank_count(const ModelConfig& config, int ranks);

// Every tensor of the text model in shard order; in_proj_qkv and conv1d appear as their q, k and v parts.
std::vector<TensorSpec> tensor_specs(const ModelConfig& config);

// Pieces [first, first + count) of a tensor that one rank owns. Ranks beyond the pieces (kv heads) share one.
struct PieceRange {
  int64_t first = 0;
  int64_t count = 0;
};
PieceRange owned_pieces(const TensorSpec& spec, int rank, int ranks);

// Whose memory a rank's model takes.
enum class Place : int { host, gpu };

struct RuntimeOptions {
  int64_t context = 4096;  // positions a slot can hold
  int64_t slots = 1;
  int64_t batch = 256;      // tokens a step holds at most
  int64_t asked_batch = 0;  // what batch is where the positions of all slots allow it; 0: batch, whatever they are
  ActivationMode activations = ActivationMode::int8;
  KvType kv_type = KvType::f16;
  Place place = Place::host;
  bool nccl = false;    // gpu: room for a communicator of NCCL
  bool cublas = false;  // gpu: products of many tokens by cuBLAS (BackendOptions::cublas)
};

// Bytes one rank needs, itemised. total() is what `--memory` is compared with: memory of the host, or of the GPU.
struct MemoryPlan {
  int64_t weights = 0;
  int64_t kv_cache = 0;
  int64_t delta_state = 0;
  int64_t conv_state = 0;
  int64_t workspace = 0;
  int64_t communication = 0;
  int64_t graphs = 0;   // gpu: recorded steps
  int64_t process = 0;  // host: code, libraries, MPI, tokenizer; gpu: the CUDA context, code and cuBLAS; an allowance
  int64_t total() const { return weights + kv_cache + delta_state + conv_state + workspace + communication + graphs + process; }
  int64_t host_embedding = 0;   // gpu: bytes of the embedding, which stays in host memory and is no part of the total
  int64_t largest_context = 0;  // that fits `memory_limit`, at most config.max_position; 0: not even one position
};

// Bytes of weights of `rank`, from what `source` will deliver.
int64_t weight_bytes(const ModelConfig& config, const WeightSource& source, int rank, int ranks);

// Of those, the embedding's.
int64_t embedding_bytes(const ModelConfig& config, const WeightSource& source, int rank, int ranks);

// The plan of a rank with the weights of `source`. On a gpu the embedding goes to host memory where the model does not fit
// otherwise, unless the head needs it too (tied embeddings).
MemoryPlan plan_rank(const ModelConfig& config, const RuntimeOptions& options, const WeightSource& source, int rank, int ranks,
                     int64_t memory_limit);

// `weight_bytes` as above; memory_limit 0 means none (largest_context is then config.max_position). loading_bytes: what the source
// takes of a gpu meanwhile (WeightSource::loading_bytes).
MemoryPlan plan_memory(const ModelConfig& config, const RuntimeOptions& options, int rank, int ranks, int64_t weight_bytes,
                       int64_t memory_limit, int64_t loading_bytes = 0);

}  // namespace pq
