// Recognition and reading of F1 and F2.
#include "store/polar_checkpoint.h"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/limits.h"
#include "base/strict_json.h"
#include "base/utf8.h"
#include "kernels/backend.h"
#include "kernels/polar.h"

namespace pq {
namespace {

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

[[noreturn]] void refuse(const std::string& directory, const std::string& format, const std::string& way_out) {
  throw Error(ErrorKind::input, fmt::format("{} is in the published format {}, which is not read; {}", directory, format, way_out));
}

[[noreturn]] void bad(const CodedTensor& tensor, const std::string& what) {
  throw Error(ErrorKind::input, fmt::format("{}: {}: {}", tensor.codes.file->file().path(), shown(tensor.name), what));
}

constexpr const char* kUseBase = "quantise the BF16 base model instead";

}  // namespace

void refuse_other_formats(const std::string& directory) {
  for (int bits = 2; bits <= 8; ++bits)
    if (path_exists(fmt::format("{}/PQ{}/codes.safetensors", directory, bits)))
      refuse(directory, fmt::format("F3 (bit-packed folders, PQ{}/codes.safetensors)", bits), kUseBase);
  if (path_exists(directory + "/model_int4.pt"))
    refuse(directory, "F5 (torchao INT4 pickle, model_int4.pt): it holds no PolarQuant codes", kUseBase);
  const std::string polar_path = directory + "/polar_config.json";
  if (path_exists(polar_path)) {
    const nlohmann::json polar = parse_strict_json(read_text_file(polar_path, kMaxConfigBytes), polar_path);
    const auto text = [&](const char* key) {
      return polar.contains(key) && polar[key].is_string() ? polar[key].get<std::string>() : "";
    };
    if (text("format").rfind("hlwq-", 0) == 0)
      refuse(directory, "F4 (\"" + shown(text("format")) + "\" in polar_config.json)", kUseBase);
    if (text("weight_format") == "torchao_int4") refuse(directory, "F5 (torchao INT4): it holds no PolarQuant codes", kUseBase);
    if (polar.contains("block_size")) json_integer(polar, "block_size", polar_path, kBlock, kBlock);
  }
  const std::string config_path = directory + "/config.json";
  if (path_exists(config_path)) {
    const nlohmann::json config = parse_strict_json(read_text_file(config_path, kMaxConfigBytes), config_path);
    if (config.is_object() && config.contains("quantization_config")) {
      const nlohmann::json& quantization = config["quantization_config"];
      const auto named = quantization.is_object() ? quantization.find("quant_method") : quantization.end();
      const std::string method = named != quantization.end() && named->is_string() ? named->get<std::string>() : "unnamed";
      if (method == "compressed-tensors" || method == "gptq")
        refuse(directory, fmt::format("F6 (INT4, quantization_config \"{}\"): it holds no PolarQuant codes", method), kUseBase);
      throw Error(ErrorKind::input, fmt::format("{} says quant_method \"{}\"; {}", config_path, shown(method), kUseBase));
    }
  }
}

PublishedFormat published_format(const SafetensorsDirectory& tensors) {
  bool codes = false, raw = false, scaled = false;
  for (const auto& [name, location] : tensors.tensors()) {
    if (ends_with(name, ".weight__packed") || ends_with(name, ".weight__meta"))
      refuse(tensors.directory(), "F4 (hlwq, key \"" + shown(name) + "\")", kUseBase);
    if (ends_with(name, "__packed") || ends_with(name, "__meta"))
      refuse(tensors.directory(), "F3 (bit-packed, key \"" + shown(name) + "\")", kUseBase);
    if (ends_with(name, ".weight_packed") || ends_with(name, ".qweight"))
      refuse(tensors.directory(), "F6 (INT4, key \"" + shown(name) + "\"): it holds no PolarQuant codes", kUseBase);
    codes = codes || ends_with(name, ".codes");
    raw = raw || ends_with(name, ".ct");
    scaled = scaled || ends_with(name, ".ct_scaled");
  }
  if (!codes) return PublishedFormat::none;
  if (raw && scaled) throw Error(ErrorKind::input, tensors.directory() + " mixes keys .ct (F1) and .ct_scaled (F2)");
  if (!raw && !scaled)
    throw Error(ErrorKind::input,
                tensors.directory() + " holds codes and no table (.ct or .ct_scaled); without it they mean nothing");
  return raw ? PublishedFormat::f1 : PublishedFormat::f2;
}

int64_t published_block_bytes(CodePacking packing) {
  switch (packing) {
    case CodePacking::bytes:
      return kBlock;
    case CodePacking::nibbles:
      return kBlock / 2;
    case CodePacking::five:
      return kBlock * 5 / 8;
  }
  throw Error(ErrorKind::internal, "unknown packing of codes");
}

void unpack_published_block(CodePacking packing, const uint8_t* in, uint8_t* codes) {
  switch (packing) {
    case CodePacking::bytes:
      std::copy(in, in + kBlock, codes);
      return;
    case CodePacking::nibbles:
      for (int64_t i = 0; i < kBlock / 2; ++i) {
        codes[i] = in[i] & 15;
        codes[kBlock / 2 + i] = in[i] >> 4;
      }
      return;
    case CodePacking::five:
      for (int64_t group = 0; group < kBlock / 8; ++group) {
        uint64_t bits = 0;
        for (int i = 0; i < 5; ++i) bits |= static_cast<uint64_t>(in[5 * group + i]) << (8 * i);
        for (int k = 0; k < 8; ++k) codes[8 * group + k] = bits >> (5 * k) & 31;
      }
      return;
  }
}

CodedTensor open_coded_tensor(const SafetensorsDirectory& tensors, const std::string& name) {
  CodedTensor result;
  result.name = name;
  const SafetensorsLocation* codes = tensors.find(name + ".codes");
  if (codes == nullptr) throw Error(ErrorKind::input, fmt::format("{} lacks \"{}.codes\"", tensors.directory(), shown(name)));
  result.codes = *codes;
  const SafetensorsLocation* norms = tensors.find(name + ".norms");
  const SafetensorsLocation* raw = tensors.find(name + ".ct");
  const SafetensorsLocation* scaled = tensors.find(name + ".ct_scaled");
  if (norms == nullptr) bad(result, "has codes and no norms");
  if (raw == nullptr && scaled == nullptr) bad(result, "has codes and no table (.ct or .ct_scaled)");
  result.norms = *norms;

  const SafetensorsEntry& table = raw ? *raw->entry : *scaled->entry;
  if (table.dtype != DType::f32 || table.shape.size() != 1)
    bad(result, fmt::format("the table is {} {}, not F32 of one dimension", dtype_name(table.dtype), shape_text(table.shape)));
  for (int bits = 2; bits <= 7; ++bits)
    if (table.shape[0] == int64_t{1} << bits) result.bits = bits;
  if (result.bits == 0) bad(result, fmt::format("a table of {} entries; 4, 8, 16, 32, 64 or 128 are read", table.shape[0]));
  result.centroids.resize(static_cast<size_t>(table.shape[0]));
  (raw ? raw : scaled)->file->file().read_at(result.centroids.data(), table.bytes, table.offset);
  if (!raw)
    for (float& c : result.centroids) c = static_cast<float>(static_cast<double>(c) * std::sqrt(static_cast<double>(kBlock)));

  const SafetensorsEntry& entry = *codes->entry;
  if (entry.shape.size() != 2) bad(result, fmt::format("codes of shape {}, two dimensions expected", shape_text(entry.shape)));
  if (entry.dtype == DType::i8) {
    result.packing = CodePacking::bytes;
  } else if (entry.dtype == DType::u8 && !raw && result.bits <= 5) {
    result.packing = result.bits == 5 ? CodePacking::five : CodePacking::nibbles;
  } else {
    bad(result, fmt::format("codes of type {} with {} and {} bits are in no known format", dtype_name(entry.dtype),
                            raw ? ".ct" : ".ct_scaled", result.bits));
  }
  const int64_t block_bytes = published_block_bytes(result.packing);
  if (entry.shape[1] % block_bytes != 0)
    bad(result, fmt::format("{} code bytes a row are no multiple of {}", entry.shape[1], block_bytes));
  result.rows = entry.shape[0];
  result.blocks = entry.shape[1] / block_bytes;
  const std::vector<int64_t> wanted = {result.rows, result.blocks};
  if (norms->entry->dtype != DType::f16 || norms->entry->shape != wanted)
    bad(result, fmt::format("norms are {} {}, codes need F16 {}", dtype_name(norms->entry->dtype), shape_text(norms->entry->shape),
                            shape_text(wanted)));
  return result;
}

void read_coded_tensor(const CodedTensor& tensor, int64_t row, int64_t rows, int64_t block, int64_t blocks, uint8_t* codes,
                       uint16_t* norms, Xxh3Stream* hash) {
  require(row >= 0 && rows >= 0 && row + rows <= tensor.rows && block >= 0 && blocks >= 0 && block + blocks <= tensor.blocks,
          "coded tensor: range outside the tensor");
  const int64_t block_bytes = published_block_bytes(tensor.packing);
  std::vector<uint8_t> raw(static_cast<size_t>(rows * blocks * block_bytes));
  const auto read = [&](const SafetensorsLocation& from, void* out, int64_t item_bytes) {
    const int64_t wanted = blocks * item_bytes, whole = tensor.blocks * item_bytes;
    if (wanted == whole) {
      from.file->file().read_at(out, rows * wanted, from.entry->offset + row * whole);
    } else {
      for (int64_t r = 0; r < rows; ++r)
        from.file->file().read_at(static_cast<char*>(out) + r * wanted, wanted,
                                  from.entry->offset + (row + r) * whole + block * item_bytes);
    }
    if (hash != nullptr) hash->update(out, rows * wanted);
  };
  read(tensor.codes, raw.data(), block_bytes);
  read(tensor.norms, norms, 2);

  uint8_t one[kBlock];
  const int limit = 1 << tensor.bits;
  for (int64_t i = 0; i < rows * blocks; ++i) {
    unpack_published_block(tensor.packing, raw.data() + i * block_bytes, one);
    for (const uint8_t code : one)
      if (code >= limit) bad(tensor, fmt::format("code {} in row {}, the table has {} entries", code, row + i / blocks, limit));
    const float norm = f16_to_f32(norms[i]);
    if (!(norm >= 0) || std::isinf(norm)) bad(tensor, fmt::format("norm {} in row {}", norm, row + i / blocks));
    pack_block(one, tensor.bits, codes + i * coded_block_bytes(tensor.bits));
  }
}

}  // namespace pq
