// Pieces from the quantizer into the caller's memory.
#include "store/quantize_source.h"

#include <cstring>

#include "base/error.h"

namespace pq {

WeightInfo weight_info(const TensorSpec& spec, const Encoding& encoding, const Codebook* codebook) {
  WeightInfo info{.format = encoding.format, .bits = encoding.bits, .has_zeros = encoding.zeros, .codebook = codebook};
  const Encoding loaded{encoding.format, encoding.bits, encoding.zeros, DType::f32};
  info.bytes = tensor_bytes(spec, loaded);
  return info;
}

QuantizingSource::QuantizingSource(const std::string& directory, const std::vector<TensorSpec>& specs, const Recipe& recipe,
                                   Backend& backend)
    : checkpoint_(std::make_unique<Checkpoint>(Checkpoint::open(directory, specs))),
      specs_(specs),
      quantizer_(*checkpoint_, recipe, backend),
      on_host_(backend.host_pointer(backend.allocate(1)) != nullptr) {
  recipe.policy.check_rules(specs);
  for (const TensorSpec& spec : specs) quantizer_.plan(spec);
}

WeightInfo QuantizingSource::info(const TensorSpec& spec) const {
  const TensorPlan plan = quantizer_.plan(spec);
  return weight_info(spec, plan.encoding, plan.codebook);
}

void QuantizingSource::load(const TensorSpec& spec, int64_t first, int64_t count, void* data, uint16_t* scales, uint16_t* zeros) {
  const Encoding encoding = quantizer_.plan(spec).encoding;
  uint8_t* out[kPlanes] = {static_cast<uint8_t*>(data), reinterpret_cast<uint8_t*>(scales), reinterpret_cast<uint8_t*>(zeros)};
  std::vector<uint8_t> kept;
  const bool convert = encoding.format == WeightFormat::f32 && encoding.dtype != DType::f32;
  if (convert) {
    kept.resize(static_cast<size_t>(count * piece_bytes(spec, encoding, 0)));
    out[0] = kept.data();
  }
  quantizer_.quantize(
      spec, first, count,
      [&](int plane, int64_t piece, int64_t offset, const uint8_t* bytes, int64_t size) {
        require(out[plane] != nullptr, "weights: a plane of the format has no memory to go to");
        std::memcpy(out[plane] + (piece - first) * piece_bytes(spec, encoding, plane) + offset, bytes, static_cast<size_t>(size));
      },
      nullptr, nullptr);
  if (convert) convert_to_f32(kept.data(), encoding.dtype, count * piece_rows(spec) * piece_cols(spec), static_cast<float*>(data));
}

std::string QuantizingSource::description() const { return checkpoint_->description() + ", quantised while loading"; }

std::vector<std::string> QuantizingSource::warnings() const {
  std::vector<std::string> lines;
  for (const TensorSpec& spec : specs_)
    if (const std::string warning = quantizer_.plan(spec).warning; !warning.empty()) lines.push_back(warning);
  return lines;
}

}  // namespace pq
