// A checkpoint directory of Qwen3.5 seen through the tensors a model asks for: Hugging Face safetensors, or a published PolarQuant
// checkpoint (polar_checkpoint.h), with multimodal or text-only names. What tensors become is left to quantizer.h.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/hash.h"
#include "kernels/codebook.h"
#include "store/polar_checkpoint.h"
#include "store/safetensors.h"
#include "store/tensor_spec.h"

namespace pq {

// One tensor of the checkpoint as a matrix. Plain when bits is 0.
struct SourceTensor {
  std::string name;  // as in the files
  int64_t rows = 0;
  int64_t cols = 0;           // without padding
  DType dtype = DType::bf16;  // plain: f32, bf16 or f16
  SafetensorsLocation plain;
  int bits = 0;  // coded: 2..7
  CodedTensor coded;
  const Codebook* codebook = nullptr;  // coded; owned by the checkpoint
};

class Checkpoint {
 public:
  // Finds the source of every spec. Names: trunk tensors stand under "model.language_model." when any name does, else under
  // "model."; lm_head at top level. Tensors of vision ("model.visual.", "visual.") and of multi-token prediction ("mtp.") are
  // skipped and counted, so is an lm_head.weight that no spec asks for (a tied model saved with its copy). Throws ErrorKind::input
  // naming the tensor when one is absent, of another shape or element type, and listing those that belong to nothing known.
  static Checkpoint open(const std::string& directory, const std::vector<TensorSpec>& specs);

  const std::string& directory() const { return tensors_.directory(); }
  PublishedFormat format() const { return format_; }
  int64_t skipped_vision() const { return skipped_vision_; }
  int64_t skipped_mtp() const { return skipped_mtp_; }
  const SafetensorsDirectory& files() const { return tensors_; }
  // "Hugging Face checkpoint DIR", "published PolarQuant checkpoint DIR (F1)", with the number of skipped tensors.
  std::string description() const;

  // Throws ErrorKind::input when no spec given to open had this source.
  const SourceTensor& tensor(const TensorSpec& spec) const;

  // Elements of a plain tensor: rows [row, row + rows) of the spec (spec.source_row is added here), columns [col, col + cols), in
  // the tensor's own dtype, dense. Whole rows are one read. The bytes are added to `hash` when it is not null.
  void read_plain(const TensorSpec& spec, int64_t row, int64_t rows, int64_t col, int64_t cols, void* out, Xxh3Stream* hash) const;

  // Blocks of a coded tensor, as read_coded_tensor; rows as above.
  void read_codes(const TensorSpec& spec, int64_t row, int64_t rows, int64_t block, int64_t blocks, uint8_t* codes, uint16_t* norms,
                  Xxh3Stream* hash) const;

 private:
  SafetensorsDirectory tensors_;
  PublishedFormat format_ = PublishedFormat::none;
  std::map<std::string, SourceTensor> sources_;  // by TensorSpec::source
  std::map<std::vector<float>, std::unique_ptr<Codebook>> codebooks_;
  int64_t skipped_vision_ = 0;
  int64_t skipped_mtp_ = 0;
};

// Converts `count` elements of dtype f32, bf16 or f16; from fp32 by rounding to nearest even.
void convert_to_f32(const void* in, DType dtype, int64_t count, float* out);
void convert_from_f32(const float* in, DType dtype, int64_t count, void* out);

}  // namespace pq
