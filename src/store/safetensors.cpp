// One safetensors file: header checks and the writer. Directories stand in safetensors_directory.cpp.
#include "store/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/strict_json.h"
#include "base/utf8.h"

namespace pq {
namespace {

using nlohmann::json;

constexpr int64_t kDataAlignment = 64;

[[noreturn]] void bad(const std::string& path, const std::string& what) { throw Error(ErrorKind::input, path + ": " + what); }

SafetensorsEntry parse_entry(const std::string& path, const std::string& name, const json& value, int64_t data_start,
                             int64_t data_bytes) {
  const std::string quoted = fmt::format("tensor \"{}\"", shown(name));
  const std::string where = path + ": " + quoted;
  if (!value.is_object()) bad(path, quoted + " is not an object");
  if (value.size() != 3) bad(path, fmt::format("{} has {} fields, not dtype, shape and data_offsets", quoted, value.size()));
  SafetensorsEntry entry;
  entry.name = name;
  const std::string dtype = json_string(value, "dtype", where);
  if (!try_parse_dtype(dtype, &entry.dtype))
    bad(path, fmt::format("{} has element type \"{}\"; F32 BF16 F16 I8 U8 I32 I64 are read", quoted, shown(dtype)));
  const json& shape = json_array(value, "shape", where);
  if (shape.size() > static_cast<size_t>(kMaxSafetensorsDims))
    bad(path, fmt::format("{} has {} dimensions, at most {} are read", quoted, shape.size(), kMaxSafetensorsDims));
  for (const json& dim : shape) entry.shape.push_back(json_as_integer(dim, where + " dimension", 0, INT64_MAX));
  const json& offsets = json_array(value, "data_offsets", where);
  if (offsets.size() != 2) bad(path, fmt::format("{} has {} data_offsets, not 2", quoted, offsets.size()));
  const int64_t begin = json_as_integer(offsets[0], where + " data_offsets", 0, INT64_MAX);
  const int64_t end = json_as_integer(offsets[1], where + " data_offsets", 0, INT64_MAX);
  if (begin > end || end > data_bytes)
    bad(path, fmt::format("{} lies at bytes {}..{} of {} bytes of data", quoted, begin, end, data_bytes));
  int64_t count = 0;
  try {
    count = checked_count(entry.shape);
  } catch (const Error& e) {
    bad(path, fmt::format("{}: {}", quoted, e.what()));
  }
  // Both factors are bounded (2^62 and 8), so the comparison by division cannot overflow.
  if ((end - begin) % dtype_bytes(entry.dtype) != 0 || (end - begin) / dtype_bytes(entry.dtype) != count)
    bad(path, fmt::format("{} of shape {} and type {} has {} bytes", quoted, shape_text(entry.shape), dtype, end - begin));
  entry.offset = data_start + begin;
  entry.bytes = end - begin;
  return entry;
}

}  // namespace

SafetensorsFile SafetensorsFile::open(const std::string& path) {
  SafetensorsFile result;
  result.file_ = File::open_read(path);
  result.size_ = result.file_.size();
  if (result.size_ < 8) bad(path, fmt::format("{} bytes are too few for a safetensors file", result.size_));
  uint64_t length = 0;
  result.file_.read_at(&length, 8, 0);  // the targets of pq are little endian
  if (length > static_cast<uint64_t>(kMaxSafetensorsHeaderBytes))
    bad(path,
        fmt::format("header of {} bytes, at most {} are read; is this a safetensors file?", length, kMaxSafetensorsHeaderBytes));
  const int64_t header_bytes = static_cast<int64_t>(length);
  if (header_bytes > result.size_ - 8)
    bad(path, fmt::format("header of {} bytes in a file of {} bytes; fetch it again", header_bytes, result.size_));
  std::string header(static_cast<size_t>(header_bytes), '\0');
  result.file_.read_at(header.data(), header_bytes, 8);
  if (header.empty() || header[0] != '{') bad(path, "the header does not start with '{'");
  const json root = parse_strict_json(header, path);
  if (root.size() > static_cast<size_t>(kMaxSafetensorsTensors))
    bad(path, fmt::format("{} tensors, at most {} are read", root.size(), kMaxSafetensorsTensors));

  const int64_t data_start = 8 + header_bytes;
  const int64_t data_bytes = result.size_ - data_start;
  for (const auto& [name, value] : root.items()) {
    if (static_cast<int64_t>(name.size()) > kMaxSafetensorsNameBytes)
      bad(path, fmt::format("a tensor name of {} bytes, at most {} are read", name.size(), kMaxSafetensorsNameBytes));
    if (std::any_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }))
      bad(path, fmt::format("the tensor name {} holds a control character", json_excerpt(json(name))));
    if (name == "__metadata__") {
      if (!value.is_object()) bad(path, "__metadata__ is not an object");
      for (const auto& [key, text] : value.items()) {
        if (!text.is_string()) bad(path, fmt::format("__metadata__ \"{}\" is not a string", shown(key)));
        result.metadata_[key] = text.get<std::string>();
      }
      continue;
    }
    result.entries_.push_back(parse_entry(path, name, value, data_start, data_bytes));
  }

  std::sort(result.entries_.begin(), result.entries_.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return a.offset != b.offset ? a.offset < b.offset : a.offset + a.bytes < b.offset + b.bytes;
  });
  int64_t covered = data_start;
  for (const SafetensorsEntry& entry : result.entries_) {
    if (entry.offset < covered) bad(path, fmt::format("tensor \"{}\" overlaps the one before it", shown(entry.name)));
    if (entry.offset > covered)
      bad(path, fmt::format("{} bytes before tensor \"{}\" belong to no tensor", entry.offset - covered, shown(entry.name)));
    covered = entry.offset + entry.bytes;
  }
  if (covered != result.size_) bad(path, fmt::format("{} bytes at the end belong to no tensor", result.size_ - covered));

  Xxh3Stream hash;
  hash.update(&length, 8);
  hash.update(header.data(), header_bytes);
  result.header_hash_ = hash.digest();
  return result;
}

SafetensorsWriter::SafetensorsWriter(const std::string& path, const std::vector<Tensor>& tensors,
                                     const std::map<std::string, std::string>& metadata)
    : path_(path) {
  nlohmann::ordered_json root = nlohmann::ordered_json::object();
  if (!metadata.empty()) root["__metadata__"] = metadata;
  int64_t at = 0;
  for (const Tensor& tensor : tensors) {
    const int64_t bytes = checked_count(tensor.shape) * dtype_bytes(tensor.dtype);
    root[tensor.name] = {{"dtype", dtype_name(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {at, at + bytes}}};
    offsets_.push_back(at);
    bytes_.push_back(bytes);
    at += bytes;
  }
  std::string header = root.dump();
  while ((8 + static_cast<int64_t>(header.size())) % kDataAlignment != 0) header += ' ';
  const uint64_t length = header.size();
  for (int64_t& offset : offsets_) offset += 8 + static_cast<int64_t>(length);
  file_ = File::create(path + ".tmp");
  file_.write_at(&length, 8, 0);
  file_.write_at(header.data(), static_cast<int64_t>(length), 8);
}

void SafetensorsWriter::write(int64_t index, int64_t offset, const void* data, int64_t bytes) {
  require(index >= 0 && index < static_cast<int64_t>(offsets_.size()), "safetensors writer: no such tensor");
  require(offset >= 0 && bytes >= 0 && offset + bytes <= bytes_[index], "safetensors writer: bytes outside the tensor");
  file_.write_at(data, bytes, offsets_[index] + offset);
}

void SafetensorsWriter::finish() {
  file_.sync_and_close();
  publish_file(path_ + ".tmp", path_);
}

}  // namespace pq
