// Chunks of rows: read, encoded by the backend, cut into pieces.
#include "store/quantizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace pq {
namespace {

bool needs_blocks(const Encoding& encoding) {
  return encoding.format == WeightFormat::polar || encoding.format == WeightFormat::int4;
}

// The encoders of block formats read the elements of a plain source as they are.
bool takes_source_elements(const TensorPlan& plan, const SourceTensor& source) {
  return source.bits == 0 && plan.through_bits == 0 && needs_blocks(plan.encoding);
}

// Memory of the backend with a host side: the same bytes where the backend's memory is the host's, else copied on demand.
class Staged {
 public:
  Staged(Backend& backend, int64_t bytes) : backend_(backend), buffer_(backend.allocate(std::max<int64_t>(bytes, 1))) {
    host_ = static_cast<uint8_t*>(backend.host_pointer(buffer_));
    if (host_ == nullptr) {
      copy_.resize(static_cast<size_t>(bytes));
      host_ = copy_.data();
    }
  }
  void* device() const { return buffer_.data(); }
  uint8_t* host() const { return host_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(host_);
  }
  void to_device(int64_t bytes) {
    if (!copy_.empty()) backend_.upload(buffer_.data(), host_, bytes);
  }
  void to_host(int64_t bytes) {
    if (!copy_.empty()) backend_.download(host_, buffer_.data(), bytes);
  }

 private:
  Backend& backend_;
  Buffer buffer_;
  uint8_t* host_ = nullptr;
  std::vector<uint8_t> copy_;
};

void add_error(const float* w, const float* q, int64_t count, EncodeError* error) {
  double squared_error = 0, squared_norm = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double value = w[i], difference = value - q[i];
    squared_error += difference * difference;
    squared_norm += value * value;
  }
  error->squared_error += squared_error;
  error->squared_norm += squared_norm;
}

}  // namespace

int64_t piece_rows(const TensorSpec& spec) { return spec.split == Split::rows ? spec.rows / spec.pieces : spec.rows; }
int64_t piece_cols(const TensorSpec& spec) { return spec.split == Split::cols ? spec.cols / spec.pieces : spec.cols; }

int64_t piece_bytes(const TensorSpec& spec, const Encoding& encoding, int plane) {
  return piece_rows(spec) * plane_row_bytes(encoding, piece_cols(spec), plane);
}

int64_t tensor_bytes(const TensorSpec& spec, const Encoding& encoding) {
  int64_t bytes = 0;
  for (int plane = 0; plane < kPlanes; ++plane) bytes += spec.pieces * piece_bytes(spec, encoding, plane);
  return bytes;
}

// Rows [row, row + rows) and inputs [col, col + cols) of a spec.
struct Quantizer::Chunk {
  int64_t row = 0;
  int64_t rows = 0;
  int64_t col = 0;
  int64_t cols = 0;
};

// The weights of a chunk in the backend's memory.
struct Quantizer::Weights {
  const void* data;
  DType dtype;
};

// Buffers for the largest chunk of one tensor. `decode`: codes are expanded on the way (a coded source, or a detour through codes).
class Quantizer::Work {
 public:
  Work(Backend& backend, const TensorPlan& plan, const SourceTensor& source, int64_t rows, int64_t cols, bool decode)
      : raw(backend, source.bits == 0 ? rows * cols * dtype_bytes(source.dtype) : 0),
        w(backend, plan.same_codes || takes_source_elements(plan, source) ? 0 : rows * cols * 4),
        // A range of inputs that starts and ends inside a block touches up to two blocks more.
        decoded(backend, decode ? rows * (cols + 2 * kBlock) * 4 : 0),
        codes(backend, decode ? rows * (cols / kBlock + 2) * kBlock : 0),
        norms(backend, decode ? rows * (cols / kBlock + 2) * 2 : 0),
        planes{Staged(backend, rows * plane_row_bytes(plan.encoding, cols, 0)),
               Staged(backend, rows * plane_row_bytes(plan.encoding, cols, 1)),
               Staged(backend, rows * plane_row_bytes(plan.encoding, cols, 2))},
        original(plan.through_bits > 0 ? static_cast<size_t>(rows * cols) : 0),
        backend_(backend) {}

  // The matrix of codes and norms (of `blocks` blocks a row) in the original basis, rounded to BF16 as the published decoder does.
  void decode_to_bf16(int64_t rows, int64_t blocks, const Codebook* codebook) {
    codes.to_device(rows * blocks * 16 * codebook->bits);
    norms.to_device(rows * blocks * 2);
    const Matrix matrix{.format = WeightFormat::polar,
                        .rows = rows,
                        .cols = blocks * kBlock,
                        .data = codes.device(),
                        .scales = static_cast<const uint16_t*>(norms.device()),
                        .codebook = codebook};
    backend_.decode({.w = static_cast<float*>(decoded.device()), .matrix = matrix});
    decoded.to_host(rows * blocks * kBlock * 4);
    float* values = decoded.as<float>();
    for (int64_t i = 0; i < rows * blocks * kBlock; ++i) values[i] = bf16_to_f32(f32_to_bf16(values[i]));
  }

  Staged raw;      // elements of a plain source
  Staged w;        // fp32, the weights to encode when they are not `raw`
  Staged decoded;  // fp32
  Staged codes;    // packed codes and norms that are decoded again
  Staged norms;
  Staged planes[kPlanes];       // the result, [rows][all inputs of the chunk]
  std::vector<float> original;  // what the error of a detour is measured against

 private:
  Backend& backend_;
};

Quantizer::Quantizer(const Checkpoint& checkpoint, const Recipe& recipe, Backend& backend)
    : checkpoint_(checkpoint), recipe_(recipe), backend_(backend) {}

const Codebook* Quantizer::codebook(int bits) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::unique_ptr<Codebook>& codebook = codebooks_[bits];
  if (!codebook) codebook = std::make_unique<Codebook>(make_codebook(bits, recipe_.table));
  return codebook.get();
}

TensorPlan Quantizer::plan(const TensorSpec& spec) const {
  const SourceTensor& source = checkpoint_.tensor(spec);
  require(spec.pieces >= 1 && piece_rows(spec) * (spec.split == Split::rows ? spec.pieces : 1) == spec.rows &&
              piece_cols(spec) * (spec.split == Split::cols ? spec.pieces : 1) == spec.cols,
          "quantizer: the pieces of a tensor must be equal");
  TensorPlan plan;
  if (!spec.matrix) {
    plan.encoding = {WeightFormat::f32, 0, false, source.bits != 0 ? DType::bf16 : source.dtype};
    return plan;
  }
  const Policy::Choice choice = recipe_.policy.choose(spec.name);
  plan.encoding = choice.encoding;
  const bool whole_blocks = piece_cols(spec) % kBlock == 0;
  if (source.bits != 0 && !choice.asked) plan.encoding = {WeightFormat::polar, source.bits, false, DType::f32};
  if (needs_blocks(plan.encoding) && !whole_blocks) {
    const std::string inputs = fmt::format("\"{}\" has {} inputs{}, no multiple of {}", spec.name, piece_cols(spec),
                                           spec.split == Split::cols ? " a piece" : "", kBlock);
    if (choice.asked)
      throw Error(ErrorKind::input,
                  fmt::format("{}: {} is impossible for it; give it bf16 in a policy file", inputs, encoding_name(plan.encoding)));
    plan.encoding = {WeightFormat::bf16, 0, false, DType::f32};
    plan.warning = inputs + ": kept in bf16";
  }
  if (plan.encoding.format == WeightFormat::polar) {
    plan.same_codes = source.bits == plan.encoding.bits;
    plan.codebook = plan.same_codes ? source.codebook : codebook(plan.encoding.bits);
  } else if (source.bits == 0 && whole_blocks && recipe_.through_bits > 0) {
    plan.through_bits = recipe_.through_bits;
  }
  return plan;
}

// The chunk in work.raw, or as fp32 in work.w; decoded codes are rounded to BF16.
Quantizer::Weights Quantizer::read_chunk(const TensorSpec& spec, const TensorPlan& plan, const Chunk& chunk, Work& work,
                                         Xxh3Stream* hash) const {
  const SourceTensor& source = checkpoint_.tensor(spec);
  const int64_t rows = chunk.rows, cols = chunk.cols;
  float* w = work.w.as<float>();
  if (source.bits == 0) {
    checkpoint_.read_plain(spec, chunk.row, rows, chunk.col, cols, work.raw.host(), hash);
    if (takes_source_elements(plan, source)) {
      work.raw.to_device(rows * cols * dtype_bytes(source.dtype));
      return {work.raw.device(), source.dtype};
    }
    convert_to_f32(work.raw.host(), source.dtype, rows * cols, w);
    return {work.w.device(), DType::f32};
  }
  const int64_t first = chunk.col / kBlock, blocks = (chunk.col + cols + kBlock - 1) / kBlock - first;
  checkpoint_.read_codes(spec, chunk.row, rows, first, blocks, work.codes.as<uint8_t>(), work.norms.as<uint16_t>(), hash);
  work.decode_to_bf16(rows, blocks, source.codebook);
  const float* from = work.decoded.as<float>() + (chunk.col - first * kBlock);
  for (int64_t r = 0; r < rows; ++r) std::copy_n(from + r * blocks * kBlock, cols, w + r * cols);
  return {work.w.device(), DType::f32};
}

// work.w through codes of `bits` and back.
void Quantizer::pass_through(int bits, const Chunk& chunk, Work& work) const {
  const Codebook* table = codebook(bits);
  const int64_t count = chunk.rows * chunk.cols, blocks = chunk.cols / kBlock;
  work.w.to_device(count * 4);
  backend_.polar_encode({.codes = static_cast<uint8_t*>(work.codes.device()),
                         .norms = static_cast<uint16_t*>(work.norms.device()),
                         .w = static_cast<const float*>(work.w.device()),
                         .rows = chunk.rows,
                         .cols = chunk.cols,
                         .codebook = table,
                         .scale_search = recipe_.scale_search,
                         .error = nullptr});
  work.codes.to_host(chunk.rows * blocks * 16 * bits);
  work.norms.to_host(chunk.rows * blocks * 2);
  work.decode_to_bf16(chunk.rows, blocks, table);
  std::copy_n(work.decoded.as<float>(), count, work.w.as<float>());
}

// `weights` to work.planes.
void Quantizer::encode_chunk(const TensorPlan& plan, const Chunk& chunk, const Weights& weights, Work& work,
                             EncodeError* error) const {
  const int64_t rows = chunk.rows, cols = chunk.cols, count = rows * cols;
  const float* w = work.w.as<float>();
  if (weights.data == work.w.device()) work.w.to_device(count * 4);
  switch (plan.encoding.format) {
    case WeightFormat::polar:
      backend_.polar_encode({.codes = static_cast<uint8_t*>(work.planes[0].device()),
                             .norms = static_cast<uint16_t*>(work.planes[1].device()),
                             .w = weights.data,
                             .rows = rows,
                             .cols = cols,
                             .codebook = plan.codebook,
                             .scale_search = recipe_.scale_search,
                             .error = error,
                             .dtype = weights.dtype});
      break;
    case WeightFormat::int4: {
      uint16_t* zeros = plan.encoding.zeros ? static_cast<uint16_t*>(work.planes[2].device()) : nullptr;
      backend_.int4_encode({.codes = static_cast<uint8_t*>(work.planes[0].device()),
                            .scales = static_cast<uint16_t*>(work.planes[1].device()),
                            .zeros = zeros,
                            .w = weights.data,
                            .rows = rows,
                            .cols = cols,
                            .error = plan.through_bits > 0 ? nullptr : error,
                            .dtype = weights.dtype});
      if (plan.through_bits > 0 && error != nullptr) {
        const Matrix matrix{.format = WeightFormat::int4,
                            .rows = rows,
                            .cols = cols,
                            .data = work.planes[0].device(),
                            .scales = static_cast<const uint16_t*>(work.planes[1].device()),
                            .zeros = zeros};
        backend_.decode({.w = static_cast<float*>(work.decoded.device()), .matrix = matrix});
        work.decoded.to_host(count * 4);
        add_error(work.original.data(), work.decoded.as<float>(), count, error);
      }
      break;
    }
    case WeightFormat::bf16:
    case WeightFormat::f32: {
      const DType dtype = plan.encoding.format == WeightFormat::bf16 ? DType::bf16 : plan.encoding.dtype;
      convert_from_f32(w, dtype, count, work.planes[0].host());
      if (error == nullptr) return;
      const float* original = plan.through_bits > 0 ? work.original.data() : w;
      std::vector<float> stored(static_cast<size_t>(count));
      convert_to_f32(work.planes[0].host(), dtype, count, stored.data());
      add_error(original, stored.data(), count, error);
      return;
    }
  }
  for (int plane = 0; plane < kPlanes; ++plane) work.planes[plane].to_host(rows * plane_row_bytes(plan.encoding, cols, plane));
}

// work.planes to `sink`, cut into pieces.
void Quantizer::emit_chunk(const TensorSpec& spec, const TensorPlan& plan, const Chunk& chunk, const Work& work,
                           const PieceSink& sink) {
  for (int plane = 0; plane < kPlanes; ++plane) {
    const int64_t row_bytes = plane_row_bytes(plan.encoding, piece_cols(spec), plane);
    if (row_bytes == 0) continue;
    const uint8_t* data = work.planes[plane].as<uint8_t>();
    if (spec.split == Split::cols) {
      const int64_t first = chunk.col / piece_cols(spec), count = chunk.cols / piece_cols(spec);
      std::vector<uint8_t> piece(static_cast<size_t>(chunk.rows * row_bytes));
      for (int64_t p = 0; p < count; ++p) {
        for (int64_t r = 0; r < chunk.rows; ++r)
          std::copy_n(data + (r * count + p) * row_bytes, row_bytes, piece.data() + r * row_bytes);
        sink(plane, first + p, chunk.row * row_bytes, piece.data(), chunk.rows * row_bytes);
      }
    } else {
      for (int64_t r = 0; r < chunk.rows;) {
        const int64_t row = chunk.row + r, piece = row / piece_rows(spec), within = row % piece_rows(spec);
        const int64_t rows = std::min(chunk.rows - r, piece_rows(spec) - within);
        sink(plane, piece, within * row_bytes, data + r * row_bytes, rows * row_bytes);
        r += rows;
      }
    }
  }
}

void Quantizer::quantize(const TensorSpec& spec, int64_t first, int64_t count, const PieceSink& sink, EncodeError* error,
                         Xxh3Stream* source_hash) const {
  require(first >= 0 && count > 0 && first + count <= spec.pieces, "quantizer: no such pieces");
  const TensorPlan plan = this->plan(spec);
  const SourceTensor& source = checkpoint_.tensor(spec);
  const bool by_cols = spec.split == Split::cols;
  const int64_t col = by_cols ? first * piece_cols(spec) : 0, cols = by_cols ? count * piece_cols(spec) : spec.cols;
  const int64_t begin = by_cols ? 0 : first * piece_rows(spec), end = by_cols ? spec.rows : (first + count) * piece_rows(spec);
  const int64_t step = std::clamp<int64_t>(kChunkBytes / (4 * std::max<int64_t>(cols, 1)), 1, std::max<int64_t>(end - begin, 1));
  Work work(backend_, plan, source, step, cols, (source.bits != 0 && !plan.same_codes) || plan.through_bits > 0);
  for (int64_t row = begin; row < end; row += step) {
    const Chunk chunk{row, std::min(step, end - row), col, cols};
    if (plan.same_codes) {
      checkpoint_.read_codes(spec, chunk.row, chunk.rows, col / kBlock, cols / kBlock, work.planes[0].as<uint8_t>(),
                             work.planes[1].as<uint16_t>(), source_hash);
    } else {
      const Weights weights = read_chunk(spec, plan, chunk, work, source_hash);
      EncodeError part;
      try {
        if (plan.through_bits > 0) {
          std::copy_n(work.w.as<float>(), chunk.rows * cols, work.original.data());
          pass_through(plan.through_bits, chunk, work);
        }
        encode_chunk(plan, chunk, weights, work, error != nullptr ? &part : nullptr);
      } catch (const Error& e) {
        // The backend knows neither the tensor nor where its rows begin.
        throw Error(e.kind(), fmt::format("{}, in rows {} to {}: {}", spec.name, row, row + chunk.rows - 1, e.what()));
      }
      if (error != nullptr) {
        error->squared_error += part.squared_error;
        error->squared_norm += part.squared_norm;
      }
    }
    emit_chunk(spec, plan, chunk, work, sink);
  }
}

}  // namespace pq
