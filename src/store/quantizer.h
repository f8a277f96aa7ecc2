// Turns tensors of a checkpoint into pieces of their stored form, a bounded chunk of rows at a time. Where the pieces go (memory, a
// shard file) is the caller's: QuantizingSource and the store job share this code, so both yield the same bits.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "base/hash.h"
#include "kernels/backend.h"
#include "store/checkpoint.h"
#include "store/policy.h"
#include "store/tensor_spec.h"

namespace pq {

// What one tensor becomes.
struct TensorPlan {
  Encoding encoding;
  const Codebook* codebook = nullptr;  // polar; owned by the quantizer or the checkpoint
  bool same_codes = false;             // the codes of the checkpoint are taken over
  int through_bits = 0;                // codes of this width and BF16 come first
  std::string warning;                 // not empty: the default could not be kept; one line
};

// Rows of a piece (split rows: rows / pieces, else rows) and the inputs of one (split cols: cols / pieces, else cols).
int64_t piece_rows(const TensorSpec& spec);
int64_t piece_cols(const TensorSpec& spec);
// Bytes of one piece of `plane`; pieces follow each other.
int64_t piece_bytes(const TensorSpec& spec, const Encoding& encoding, int plane);
// Bytes of all pieces and planes.
int64_t tensor_bytes(const TensorSpec& spec, const Encoding& encoding);

// Bytes [offset, offset + bytes) of `piece` of `plane`. Calls for one piece of one plane come in order and without gaps.
using PieceSink = std::function<void(int plane, int64_t piece, int64_t offset, const uint8_t* data, int64_t bytes)>;

class Quantizer {
 public:
  // Both outlive the quantizer.
  Quantizer(const Checkpoint& checkpoint, const Recipe& recipe, Backend& backend);

  // Throws ErrorKind::input when the recipe asks for a block format and the inputs (of a piece) are no multiple of 128.
  // Tables are made on first use; safe to call from several threads.
  TensorPlan plan(const TensorSpec& spec) const;

  // Pieces [first, first + count) to `sink`. error, when not null, receives the squared error and squared norm of the weights read
  // (copied codes: error 0). source_hash, when not null, receives the source bytes in the order they were read; it is meaningful
  // when all pieces are asked for. Temporary memory of the backend is below kWorkBytes, or 8 rows; as much on the host when the
  // backend's memory is another.
  void quantize(const TensorSpec& spec, int64_t first, int64_t count, const PieceSink& sink, EncodeError* error,
                Xxh3Stream* source_hash) const;

  // fp32 bytes of the rows that are in flight at once: read, coded and written while they are in the cache.
  static constexpr int64_t kChunkBytes = 4 << 20;
  static constexpr int64_t kWorkBytes = 8 * kChunkBytes;

 private:
  struct Chunk;
  struct Weights;
  class Work;
  const Codebook* codebook(int bits) const;
  Weights read_chunk(const TensorSpec& spec, const TensorPlan& plan, const Chunk& chunk, Work& work, Xxh3Stream* hash) const;
  void pass_through(int bits, const Chunk& chunk, Work& work) const;
  void encode_chunk(const TensorPlan& plan, const Chunk& chunk, const Weights& weights, Work& work, EncodeError* error) const;
  static void emit_chunk(const TensorSpec& spec, const TensorPlan& plan, const Chunk& chunk, const Work& work,
                         const PieceSink& sink);

  const Checkpoint& checkpoint_;
  const Recipe recipe_;
  Backend& backend_;
  mutable std::mutex mutex_;
  mutable std::map<int, std::unique_ptr<Codebook>> codebooks_;  // by bits; guarded by mutex_
};

}  // namespace pq
