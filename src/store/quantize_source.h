// Weights quantised while a checkpoint is read: each rank reads the bytes of its own pieces only. Yields the same bits as a store
// made from the checkpoint by the same recipe.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "store/quantizer.h"
#include "store/weight_source.h"

namespace pq {

class QuantizingSource : public WeightSource {
 public:
  // Opens `directory` (Hugging Face or published PolarQuant) and checks every spec and policy rule. `backend` outlives the source.
  QuantizingSource(const std::string& directory, const std::vector<TensorSpec>& specs, const Recipe& recipe, Backend& backend);

  WeightInfo info(const TensorSpec& spec) const override;
  void load(const TensorSpec& spec, int64_t first, int64_t count, void* data, uint16_t* scales, uint16_t* zeros) override;
  int64_t loading_bytes() const override { return on_host_ ? 0 : Quantizer::kWorkBytes; }
  std::string description() const override;

  // One line for each matrix that could not be what the default asks for.
  std::vector<std::string> warnings() const;

 private:
  std::unique_ptr<Checkpoint> checkpoint_;
  std::vector<TensorSpec> specs_;
  Quantizer quantizer_;
  bool on_host_;  // the backend codes in memory of the host
};

// The WeightInfo of a tensor stored as `encoding`.
WeightInfo weight_info(const TensorSpec& spec, const Encoding& encoding, const Codebook* codebook);

}  // namespace pq
