// Random planes for synthetic_source.h. A weight has standard deviation 0.02, as published checkpoints do.
#include "eval/synthetic_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/hash.h"
#include "base/random.h"
#include "base/tensor.h"

namespace pq {
namespace {

constexpr double kWeightDeviation = 0.02;

bool ends_with(const std::string& text, const char* tail) {
  const size_t length = std::strlen(tail);
  return text.size() >= length && text.compare(text.size() - length, length, tail) == 0;
}

// Of which each fp32 or bf16 weight of a piece is one: a fresh normal value each would take minutes at full size, and the functions
// it takes are not the same on every device.
template <typename T>
using Choices = std::array<T, 256>;

// Zero-centred norms hold 0, the plain one holds 1, decay rates spread over a decade.
float vector_value(const std::string& name, Random* random) {
  if (ends_with(name, "linear_attn.norm.weight")) return 1.0f;
  if (ends_with(name, "norm.weight")) return 0.0f;
  if (ends_with(name, "A_log")) return static_cast<float>(std::log(1.0 + 15.0 * random->uniform()));
  if (name.find("conv1d") != std::string::npos) return static_cast<float>(0.3 * random->normal());
  return static_cast<float>(kWeightDeviation * random->normal());
}

Choices<float> f32_choices(const std::string& name, Random* random) {
  Choices<float> choices;
  for (float& value : choices) value = vector_value(name, random);
  return choices;
}

Choices<uint16_t> bf16_choices(Random* random) {
  Choices<uint16_t> choices;
  for (uint16_t& value : choices) value = f32_to_bf16(static_cast<float>(kWeightDeviation * random->normal()));
  return choices;
}

template <typename T>
void fill(T* data, int64_t count, const Choices<T>& choices, Random random) {
  for (int64_t i = 0; i < count; ++i) data[i] = choices[random.next_u64() >> 56];
}

Random random_of(const TensorSpec& spec, int64_t piece) {
  return Random(xxh3(spec.name.data(), static_cast<int64_t>(spec.name.size())) + static_cast<uint64_t>(piece));
}

uint16_t block_norm() { return f32_to_f16(static_cast<float>(kWeightDeviation * std::sqrt(static_cast<double>(kBlock)))); }

}  // namespace

SyntheticSource::SyntheticSource(WeightFormat format, int bits, DeviceMeasure* device)
    : format_(format), bits_(bits), device_(device) {
  if (format != WeightFormat::polar && format != WeightFormat::bf16)
    throw Error(ErrorKind::usage, "synthetic weights come as pq2 to pq8 or bf16");
  if (format == WeightFormat::polar) codebook_ = make_codebook(bits, TableKind::converged);
}

WeightInfo SyntheticSource::info(const TensorSpec& spec) const {
  WeightInfo info;
  Matrix whole;
  whole.rows = spec.rows;
  whole.cols = spec.cols;
  if (spec.matrix) {
    info.format = format_;
    info.bits = format_ == WeightFormat::polar ? bits_ : 0;
    info.codebook = format_ == WeightFormat::polar ? &codebook_ : nullptr;
  }
  whole.format = info.format;
  whole.codebook = info.codebook;
  info.bytes = whole.data_bytes() + whole.scale_bytes();
  return info;
}

void SyntheticSource::load(const TensorSpec& spec, int64_t first, int64_t count, void* data, uint16_t* scales, uint16_t*) {
  const WeightInfo whole = info(spec);
  const int64_t elements = spec.rows * spec.cols / spec.pieces;
  for (int64_t piece = first; piece < first + count; ++piece) {
    Random random = random_of(spec, piece);
    const int64_t index = piece - first;
    if (whole.format == WeightFormat::f32) {
      const Choices<float> choices = f32_choices(spec.name, &random);
      fill(static_cast<float*>(data) + index * elements, elements, choices, random);
    } else if (whole.format == WeightFormat::bf16) {
      const Choices<uint16_t> choices = bf16_choices(&random);
      fill(static_cast<uint16_t*>(data) + index * elements, elements, choices, random);
    } else {
      const int64_t blocks = elements / kBlock;
      auto* out = static_cast<uint8_t*>(data) + index * blocks * 16 * bits_;
      for (int64_t at = 0; at < blocks * 16 * bits_; at += 8) {
        const uint64_t word = random.next_u64();
        std::memcpy(out + at, &word, sizeof word);
      }
      std::fill_n(scales + index * blocks, blocks, block_norm());
    }
  }
}

bool SyntheticSource::try_load_on_device(const TensorSpec& spec, int64_t first, int64_t count, void* data, uint16_t* scales,
                                         uint16_t*) {
  if (device_ == nullptr) return false;
  const WeightFormat format = info(spec).format;
  const int64_t elements = spec.rows * spec.cols / spec.pieces;
  for (int64_t piece = first; piece < first + count; ++piece) {
    Random random = random_of(spec, piece);
    const int64_t index = piece - first;
    if (format == WeightFormat::f32) {
      const Choices<float> choices = f32_choices(spec.name, &random);
      device_->fill_choices(static_cast<float*>(data) + index * elements, elements, choices.data(), random.seed());
    } else if (format == WeightFormat::bf16) {
      const Choices<uint16_t> choices = bf16_choices(&random);
      device_->fill_choices(static_cast<uint16_t*>(data) + index * elements, elements, choices.data(), random.seed());
    } else {
      const int64_t words = elements / kBlock * 2 * bits_;
      device_->fill_random(static_cast<uint64_t*>(data) + index * words, words, random.seed());
    }
  }
  if (format == WeightFormat::polar) {
    Choices<uint16_t> norms;
    norms.fill(block_norm());
    device_->fill_choices(scales, count * elements / kBlock, norms.data(), 0);
  }
  return true;
}

std::string SyntheticSource::description() const {
  return format_ == WeightFormat::polar ? fmt::format("synthetic pq{}", bits_) : "synthetic bf16";
}

}  // namespace pq
