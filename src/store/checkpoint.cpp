// Names, shapes and reads of checkpoint.h.
#include "store/checkpoint.h"

#include <fmt/format.h>

#include <cstring>
#include <set>

#include "base/error.h"
#include "kernels/backend.h"

namespace pq {
namespace {

constexpr const char* kMultimodalPrefix = "model.language_model.";
constexpr const char* kTextPrefix = "model.";
constexpr size_t kListedUnknown = 5;
// How far the disk reads ahead of us.
constexpr int64_t kReadAheadBytes = 8 << 20;

bool starts_with(const std::string& text, const char* start) { return text.rfind(start, 0) == 0; }

std::string without_weight_suffix(const std::string& name) {
  constexpr const char* suffix = ".weight";
  const size_t length = std::strlen(suffix);
  if (name.size() > length && name.compare(name.size() - length, length, suffix) == 0) return name.substr(0, name.size() - length);
  return name;
}

// A source of shape [a, b, c] is the matrix [a, b * c].
void matrix_shape(const TensorSpec& spec, int64_t* rows, int64_t* cols) {
  const int64_t count = checked_count(spec.source_shape);
  *rows = spec.source_shape.empty() ? 1 : spec.source_shape[0];
  *cols = *rows == 0 ? 0 : count / *rows;
}

}  // namespace

void convert_to_f32(const void* in, DType dtype, int64_t count, float* out) {
  const uint16_t* half = static_cast<const uint16_t*>(in);
  switch (dtype) {
    case DType::f32:
      std::memcpy(out, in, static_cast<size_t>(count) * 4);
      return;
    case DType::bf16:
      for (int64_t i = 0; i < count; ++i) out[i] = bf16_to_f32(half[i]);
      return;
    case DType::f16:
      for (int64_t i = 0; i < count; ++i) out[i] = f16_to_f32(half[i]);
      return;
    default:
      throw Error(ErrorKind::internal, fmt::format("{} is no weight type", dtype_name(dtype)));
  }
}

void convert_from_f32(const float* in, DType dtype, int64_t count, void* out) {
  uint16_t* half = static_cast<uint16_t*>(out);
  switch (dtype) {
    case DType::f32:
      std::memcpy(out, in, static_cast<size_t>(count) * 4);
      return;
    case DType::bf16:
      for (int64_t i = 0; i < count; ++i) half[i] = f32_to_bf16(in[i]);
      return;
    case DType::f16:
      for (int64_t i = 0; i < count; ++i) half[i] = f32_to_f16(in[i]);
      return;
    default:
      throw Error(ErrorKind::internal, fmt::format("{} is no weight type", dtype_name(dtype)));
  }
}

Checkpoint Checkpoint::open(const std::string& directory, const std::vector<TensorSpec>& specs) {
  if (!is_directory(directory)) throw Error(ErrorKind::input, directory + " is not a directory");
  refuse_other_formats(directory);
  Checkpoint result;
  result.tensors_ = SafetensorsDirectory::open(directory);
  result.format_ = published_format(result.tensors_);

  std::string prefix = kTextPrefix;
  for (const auto& [name, location] : result.tensors_.tensors())
    if (starts_with(name, kMultimodalPrefix)) prefix = kMultimodalPrefix;

  std::set<std::string> used;
  for (const TensorSpec& spec : specs) {
    if (result.sources_.count(spec.source) != 0) continue;
    SourceTensor source;
    source.name = starts_with(spec.source, "lm_head.") ? spec.source : prefix + spec.source;
    matrix_shape(spec, &source.rows, &source.cols);
    if (const SafetensorsLocation* plain = result.tensors_.find(source.name)) {
      if (plain->entry->shape != spec.source_shape)
        throw Error(ErrorKind::input, fmt::format("{}: \"{}\" has shape {}, config.json asks for {}", plain->file->file().path(),
                                                  source.name, shape_text(plain->entry->shape), shape_text(spec.source_shape)));
      source.dtype = plain->entry->dtype;
      if (source.dtype != DType::f32 && source.dtype != DType::bf16 && source.dtype != DType::f16)
        throw Error(ErrorKind::input, fmt::format("{}: \"{}\" has element type {}; weights are F32, BF16 or F16",
                                                  plain->file->file().path(), source.name, dtype_name(source.dtype)));
      source.plain = *plain;
      used.insert(source.name);
    } else if (const std::string base = without_weight_suffix(source.name); result.tensors_.find(base + ".codes") != nullptr) {
      source.coded = open_coded_tensor(result.tensors_, base);
      source.bits = source.coded.bits;
      const int64_t blocks = (source.cols + kBlock - 1) / kBlock;
      if (spec.source_shape.size() != 2 || source.coded.rows != source.rows || source.coded.blocks != blocks)
        throw Error(ErrorKind::input, fmt::format("{}: \"{}\" has {} rows of {} blocks of codes, config.json asks for shape {}",
                                                  source.coded.codes.file->file().path(), base, source.coded.rows,
                                                  source.coded.blocks, shape_text(spec.source_shape)));
      std::unique_ptr<Codebook>& codebook = result.codebooks_[source.coded.centroids];
      if (!codebook) codebook = std::make_unique<Codebook>(codebook_from_table(source.coded.centroids));
      source.codebook = codebook.get();
      for (const char* suffix : {".codes", ".norms", ".ct", ".ct_scaled"}) used.insert(base + suffix);
    } else {
      throw Error(ErrorKind::input, fmt::format("{} lacks \"{}\"; does its config.json belong to it?", directory, source.name));
    }
    result.sources_.emplace(spec.source, std::move(source));
  }

  std::vector<std::string> unknown;
  for (const auto& [name, location] : result.tensors_.tensors()) {
    if (used.count(name) != 0 || starts_with(name, "lm_head.")) continue;
    if (starts_with(name, "model.visual.") || starts_with(name, "visual.")) {
      ++result.skipped_vision_;
    } else if (starts_with(name, "mtp.") || starts_with(name, "model.mtp.")) {
      ++result.skipped_mtp_;
    } else {
      unknown.push_back(name);
    }
  }
  if (!unknown.empty()) {
    std::string list;
    for (size_t i = 0; i < unknown.size() && i < kListedUnknown; ++i) list += (i ? ", " : "") + unknown[i];
    if (unknown.size() > kListedUnknown) list += ", ...";
    throw Error(ErrorKind::input, fmt::format("{} holds {} tensors that a Qwen3.5 dense model of its config.json does not have: {}",
                                              directory, unknown.size(), list));
  }
  return result;
}

std::string Checkpoint::description() const {
  std::string text = "Hugging Face checkpoint " + directory();
  if (format_ != PublishedFormat::none)
    text = fmt::format("published PolarQuant checkpoint {} ({})", directory(), format_ == PublishedFormat::f1 ? "F1" : "F2");
  if (skipped_vision_ + skipped_mtp_ > 0)
    text += fmt::format(" ({} vision and {} multi-token-prediction tensors skipped)", skipped_vision_, skipped_mtp_);
  return text;
}

const SourceTensor& Checkpoint::tensor(const TensorSpec& spec) const {
  const auto it = sources_.find(spec.source);
  if (it == sources_.end()) throw Error(ErrorKind::input, fmt::format("{} was opened without \"{}\"", directory(), spec.source));
  return it->second;
}

void Checkpoint::read_plain(const TensorSpec& spec, int64_t row, int64_t rows, int64_t col, int64_t cols, void* out,
                            Xxh3Stream* hash) const {
  const SourceTensor& source = tensor(spec);
  const int64_t first = spec.source_row + row;
  require(source.bits == 0 && first >= 0 && rows >= 0 && first + rows <= source.rows && col >= 0 && cols >= 0 &&
              col + cols <= source.cols,
          "checkpoint: range outside the tensor");
  const int64_t item = dtype_bytes(source.dtype);
  const File& file = source.plain.file->file();
  const int64_t offset = source.plain.entry->offset + (first * source.cols + col) * item;
  if (cols == source.cols) {
    file.will_need(offset + kReadAheadBytes, rows * cols * item);
    file.read_at(out, rows * cols * item, offset);
  } else {
    for (int64_t r = 0; r < rows; ++r)
      file.read_at(static_cast<char*>(out) + r * cols * item, cols * item, offset + r * source.cols * item);
  }
  if (hash != nullptr) hash->update(out, rows * cols * item);
}

void Checkpoint::read_codes(const TensorSpec& spec, int64_t row, int64_t rows, int64_t block, int64_t blocks, uint8_t* codes,
                            uint16_t* norms, Xxh3Stream* hash) const {
  const SourceTensor& source = tensor(spec);
  require(source.bits != 0, "checkpoint: tensor is not coded");
  read_coded_tensor(source.coded, spec.source_row + row, rows, block, blocks, codes, norms, hash);
}

}  // namespace pq
