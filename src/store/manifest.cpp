// JSON of manifest.h, written with sorted, fixed formatting so that equal stores have equal manifests.
#include "store/manifest.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/strict_json.h"
#include "base/utf8.h"
#include "store/quantizer.h"

namespace pq {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr const char* kPlaneNames[kPlanes] = {"data", "scales", "zeros"};
// The last member of manifest.json is the XXH3-64 of all text before its comma.
constexpr const char* kSealMark = ",\n \"xxh3\": \"";
constexpr const char* kSealEnd = "\"\n}\n";

const char* split_name(Split split) { return split == Split::rows ? "rows" : split == Split::cols ? "cols" : "replicated"; }

ordered_json codebooks_json(const std::map<std::string, Codebook>& codebooks) {
  ordered_json result = ordered_json::object();
  for (const auto& [key, codebook] : codebooks)
    result[key] = {{"bits", codebook.bits}, {"kind", table_kind_name(codebook.kind)}, {"centroids", codebook.centroids}};
  return result;
}

ordered_json tensor_json(const TensorRecord& tensor) {
  const TensorSpec& spec = tensor.spec;
  ordered_json result = {{"name", spec.name},
                         {"rows", spec.rows},
                         {"cols", spec.cols},
                         {"split", split_name(spec.split)},
                         {"pieces", spec.pieces},
                         {"matrix", spec.matrix},
                         {"class", spec.tensor_class},
                         {"source", spec.source},
                         {"source_row", spec.source_row},
                         {"shard", spec.shard}};
  if (spec.matrix) {
    result["format"] = encoding_name(tensor.encoding);
  } else {
    result["format"] = "kept";
    result["dtype"] = dtype_name(tensor.encoding.dtype);
  }
  if (tensor.encoding.format == WeightFormat::polar) {
    result["codec"] = "lloyd-max";
    result["codebook"] = tensor.codebook;
  }
  if (!tensor.same_as.empty()) {
    result["same_as"] = tensor.same_as;
    return result;
  }
  result["squared_error"] = tensor.squared_error;
  result["squared_norm"] = tensor.squared_norm;
  result["source_xxh3"] = hex64(tensor.source_hash);
  for (int plane = 0; plane < kPlanes; ++plane) {
    const int64_t bytes = piece_bytes(spec, tensor.encoding, plane) * spec.pieces;
    if (bytes == 0) continue;
    ordered_json sums = ordered_json::array();
    for (const uint64_t sum : tensor.planes[plane].checksums) sums.push_back(hex64(sum));
    result[kPlaneNames[plane]] = {{"offset", tensor.planes[plane].offset}, {"bytes", bytes}, {"xxh3", sums}};
  }
  return result;
}

ordered_json shard_json(const ShardRecord& shard) {
  ordered_json result = {{"file", shard.file}, {"bytes", shard.bytes}};
  if (shard.frame) result["frame_xxh3"] = hex64(*shard.frame);
  return result;
}

uint64_t parse_hex64(const json& value, const std::string& where) {
  const std::string text = value.is_string() ? value.get<std::string>() : "";
  if (text.size() != 16 || text.find_first_not_of("0123456789abcdef") != std::string::npos)
    throw Error(ErrorKind::input, fmt::format("{} is {}, not 16 hexadecimal digits", where, json_excerpt(value)));
  return std::stoull(text, nullptr, 16);
}

std::map<std::string, Codebook> parse_codebooks(const json& root, const std::string& path) {
  std::map<std::string, Codebook> result;
  for (const auto& [key, value] : json_object(root, "codebooks", path).items()) {
    const std::string where = fmt::format("{}: codebook {}", path, shown(key));
    std::vector<float> centroids;
    for (const json& centroid : json_array(value, "centroids", where)) {
      if (!centroid.is_number()) throw Error(ErrorKind::input, where + " holds something that is no number");
      centroids.push_back(centroid.get<float>());
    }
    Codebook codebook;
    try {
      codebook = codebook_from_table(centroids);
    } catch (const Error& e) {
      throw Error(ErrorKind::input, fmt::format("{}: {}", where, e.what()));
    }
    const std::string kind = json_string(value, "kind", where);
    if (kind != table_kind_name(TableKind::file) && !try_parse_table(kind, &codebook.kind))
      throw Error(ErrorKind::input, fmt::format("{} is of unknown kind \"{}\"", where, shown(kind)));
    if (json_integer(value, "bits", where, 2, 8) != codebook.bits || key != codebook_key(codebook))
      throw Error(ErrorKind::input, where + " does not hold the table its key and bits name");
    result.emplace(key, std::move(codebook));
  }
  return result;
}

// A member that names a tensor or a class of them.
std::string parse_name(const json& value, const char* key, const std::string& where) {
  std::string name = json_string(value, key, where);
  if (static_cast<int64_t>(name.size()) > kMaxSafetensorsNameBytes)
    throw Error(ErrorKind::input,
                fmt::format("{}: {} has {} bytes, at most {} are read", where, key, name.size(), kMaxSafetensorsNameBytes));
  return name;
}

PlaneRecord parse_plane(const json& tensor, int plane, const TensorRecord& record, int64_t file_bytes, const std::string& where) {
  const std::string name = fmt::format("{}: {}", where, kPlaneNames[plane]);
  const json& value = json_object(tensor, kPlaneNames[plane], where);
  const int64_t bytes = piece_bytes(record.spec, record.encoding, plane) * record.spec.pieces;
  PlaneRecord result;
  if (const int64_t said = json_integer(value, "bytes", name, 0, INT64_MAX); said != bytes)
    throw Error(ErrorKind::input, fmt::format("{} has {} bytes, shape and format need {}", name, said, bytes));
  result.offset = json_integer(value, "offset", name, 0, INT64_MAX);
  if (bytes > file_bytes || result.offset > file_bytes - bytes)
    throw Error(ErrorKind::input,
                fmt::format("{} ends at byte {}+{} of a file of {} bytes", name, result.offset, bytes, file_bytes));
  for (const json& sum : json_array(value, "xxh3", name)) result.checksums.push_back(parse_hex64(sum, name + " xxh3"));
  if (static_cast<int64_t>(result.checksums.size()) != record.spec.pieces)
    throw Error(ErrorKind::input,
                fmt::format("{} has {} checksums for {} pieces", name, result.checksums.size(), record.spec.pieces));
  return result;
}

TensorRecord parse_tensor(const json& value, const std::map<std::string, Codebook>& codebooks,
                          const std::map<int64_t, ShardRecord>& shards, const std::string& path) {
  TensorRecord record;
  TensorSpec& spec = record.spec;
  spec.name = parse_name(value, "name", path + ": a tensor");
  const std::string where = fmt::format("{}: {}", path, shown(spec.name));
  spec.rows = json_integer(value, "rows", where, 1, kMaxStoreDimension);
  spec.cols = json_integer(value, "cols", where, 1, kMaxStoreDimension);
  checked_count({spec.rows, spec.cols, 8});
  const std::string split = json_string(value, "split", where);
  if (split != "rows" && split != "cols" && split != "replicated")
    throw Error(ErrorKind::input, fmt::format("{} has split \"{}\"", where, shown(split)));
  spec.split = split == "rows" ? Split::rows : split == "cols" ? Split::cols : Split::replicated;
  spec.pieces = json_integer(value, "pieces", where, 1, kMaxPieces);
  spec.matrix = json_bool(value, "matrix", where);
  spec.tensor_class = parse_name(value, "class", where);
  spec.source = parse_name(value, "source", where);
  spec.source_row = json_integer(value, "source_row", where, 0, kMaxStoreDimension);
  spec.shard = json_integer(value, "shard", where, 0, kMaxShards - 1);
  const int64_t cut = spec.split == Split::rows ? spec.rows : spec.split == Split::cols ? spec.cols : spec.pieces;
  if (cut % spec.pieces != 0 || (spec.split == Split::replicated && spec.pieces != 1))
    throw Error(ErrorKind::input, fmt::format("{} cannot be cut into {} pieces", where, spec.pieces));

  const std::string format = json_string(value, "format", where);
  if (spec.matrix) {
    if (!try_parse_encoding(format, &record.encoding))
      throw Error(ErrorKind::input,
                  fmt::format("{} has unknown format \"{}\"; known are {}", where, shown(format), encoding_names()));
  } else {
    record.encoding.format = WeightFormat::f32;
    const std::string dtype = json_string(value, "dtype", where);
    if (format != "kept" || !try_parse_dtype(dtype, &record.encoding.dtype) ||
        (record.encoding.dtype != DType::f32 && record.encoding.dtype != DType::bf16 && record.encoding.dtype != DType::f16))
      throw Error(ErrorKind::input, fmt::format("{} has format \"{}\" and type \"{}\"", where, shown(format), shown(dtype)));
  }
  const bool blocks = record.encoding.format == WeightFormat::polar || record.encoding.format == WeightFormat::int4;
  if (blocks && piece_cols(spec) % kBlock != 0)
    throw Error(ErrorKind::input, fmt::format("{} has {} inputs a piece, no multiple of {}", where, piece_cols(spec), kBlock));
  if (record.encoding.format == WeightFormat::polar) {
    if (const std::string codec = json_string(value, "codec", where); codec != "lloyd-max")
      throw Error(ErrorKind::input, fmt::format("{} has codec \"{}\"; this program knows lloyd-max", where, shown(codec)));
    record.codebook = json_string(value, "codebook", where);
    const auto codebook = codebooks.find(record.codebook);
    if (codebook == codebooks.end() || codebook->second.bits != record.encoding.bits)
      throw Error(ErrorKind::input,
                  fmt::format("{} names codebook {}, which is absent or of another width", where, shown(record.codebook)));
  }
  if (value.contains("same_as")) {
    record.same_as = parse_name(value, "same_as", where);
    return record;
  }

  const auto shard = shards.find(spec.shard);
  if (shard == shards.end())
    throw Error(ErrorKind::input, fmt::format("{} is in shard {}, which does not exist", where, spec.shard));
  record.squared_error = json_number(value, "squared_error", where);
  record.squared_norm = json_number(value, "squared_norm", where);
  record.source_hash = parse_hex64(json_member(value, "source_xxh3", where), where + ": source_xxh3");
  for (int plane = 0; plane < kPlanes; ++plane) {
    if (piece_bytes(spec, record.encoding, plane) > 0) {
      record.planes[plane] = parse_plane(value, plane, record, shard->second.bytes, where);
    } else if (value.contains(kPlaneNames[plane])) {
      throw Error(ErrorKind::input, fmt::format("{} has a plane \"{}\", format {} has none", where, kPlaneNames[plane], format));
    }
  }
  return record;
}

// Of a version that has frames, or when there is one.
void parse_frame(const json& value, bool is_needed, const std::string& where, ShardRecord* shard) {
  if (is_needed || value.contains("frame_xxh3"))
    shard->frame = parse_hex64(json_member(value, "frame_xxh3", where), where + ": frame_xxh3");
}

ShardRecord parse_shard(const json& value, int64_t index, bool has_frame, const std::string& path) {
  const std::string where = fmt::format("{}: shard {}", path, index);
  ShardRecord shard;
  shard.file = json_string(value, "file", where);
  if (shard.file != shard_file_name(index))
    throw Error(ErrorKind::input, fmt::format("{} is the file \"{}\", not {}", where, shown(shard.file), shard_file_name(index)));
  shard.bytes = json_integer(value, "bytes", where, 0, INT64_MAX);
  parse_frame(value, has_frame, where, &shard);
  return shard;
}

void check_seal(const std::string& text, const std::string& path) {
  const size_t at = text.rfind(kSealMark);
  if (at == std::string::npos || seal_manifest(text.substr(0, at) + "\n}") != text)
    throw Error(ErrorKind::input,
                path + " does not match its own checksum: damaged or edited; make the store again or copy it again");
}

// No two planes of a file may share a byte: such a manifest was not made by a writer of this format.
void check_disjoint(const std::vector<TensorRecord>& tensors, const std::string& path) {
  struct Range {
    int64_t shard, begin, end;
    const std::string* name;
  };
  std::vector<Range> ranges;
  for (const TensorRecord& tensor : tensors)
    for (int plane = 0; plane < kPlanes; ++plane)
      if (!tensor.planes[plane].checksums.empty())
        ranges.push_back({tensor.spec.shard, tensor.planes[plane].offset,
                          tensor.planes[plane].offset + tensor.spec.pieces * piece_bytes(tensor.spec, tensor.encoding, plane),
                          &tensor.spec.name});
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return a.shard != b.shard ? a.shard < b.shard : a.begin < b.begin; });
  for (size_t i = 1; i < ranges.size(); ++i)
    if (ranges[i].shard == ranges[i - 1].shard && ranges[i].begin < ranges[i - 1].end)
      throw Error(ErrorKind::input, fmt::format("{}: {} and {} overlap in {}", path, shown(*ranges[i - 1].name),
                                                shown(*ranges[i].name), shard_file_name(ranges[i].shard)));
}

}  // namespace

std::string shard_file_name(int64_t shard) { return fmt::format("shard-{:05}.h5", shard); }

std::string damaged_piece_text(const std::string& path, const TensorRecord& record, int plane, int64_t piece, uint64_t sum) {
  return fmt::format("{}: {} of {}, piece {}, is damaged: checksum {}, the manifest says {}; copy the file again", path,
                     kPlaneNames[plane], shown(record.spec.name), piece, hex64(sum),
                     hex64(record.planes[plane].checksums[static_cast<size_t>(piece)]));
}

std::string codebook_key(const Codebook& codebook) {
  const int64_t bytes = static_cast<int64_t>(codebook.centroids.size() * sizeof(float));
  return fmt::format("pq{}-{}-{}", codebook.bits, table_kind_name(codebook.kind),
                     hex64(xxh3(codebook.centroids.data(), bytes)).substr(0, 8));
}

std::string manifest_text(const Manifest& manifest) {
  ordered_json root = {{"format", kStoreFormat},
                       {"version", {kStoreMajor, manifest.minor}},
                       {"block", kBlock},
                       {"rotation", "sylvester-hadamard-128"},
                       {"norms", "coded blocks: w = norm / sqrt(128) * H c[code], norm the raw L2 norm or its refit, fp16"},
                       {"model_norms", "stored w, applied 1 + w; linear_attn.norm is applied as stored"},
                       {"recipe", manifest.recipe},
                       {"source", manifest.source},
                       {"fingerprint", manifest.fingerprint}};
  root["codebooks"] = codebooks_json(manifest.codebooks);
  root["files"] = ordered_json::object();
  for (const auto& [name, file] : manifest.files) root["files"][name] = {{"bytes", file.bytes}, {"xxh3", hex64(file.hash)}};
  root["shards"] = ordered_json::array();
  for (const ShardRecord& shard : manifest.shards) root["shards"].push_back(shard_json(shard));
  root["tensors"] = ordered_json::array();
  for (const TensorRecord& tensor : manifest.tensors) root["tensors"].push_back(tensor_json(tensor));
  return seal_manifest(root.dump(1));
}

std::string seal_manifest(const std::string& json) {
  require(json.size() > 2 && json.compare(json.size() - 2, 2, "\n}") == 0, "manifest: an object dumped with indentation is sealed");
  const std::string body = json.substr(0, json.size() - 2);
  return body + kSealMark + hex64(xxh3(body.data(), static_cast<int64_t>(body.size()))) + kSealEnd;
}

Manifest parse_manifest(const std::string& text, const std::string& path) {
  const json root = parse_strict_json(text, path);
  if (const std::string format = json_string(root, "format", path); format != kStoreFormat)
    throw Error(ErrorKind::input, fmt::format("{} has format \"{}\", not \"{}\"", path, shown(format), kStoreFormat));
  const json& version = json_array(root, "version", path);
  if (version.size() != 2) throw Error(ErrorKind::input, path + ": the version is not [major, minor]");
  const int64_t major = json_as_integer(version[0], path + ": version", 0, INT32_MAX);
  const int64_t minor = json_as_integer(version[1], path + ": version", 0, INT32_MAX);
  if (major > kStoreMajor)
    throw Error(ErrorKind::input, fmt::format("{} is of store version {}.{}, this program reads up to {}.x; use a newer pq", path,
                                              major, minor, kStoreMajor));
  check_seal(text, path);
  json_integer(root, "block", path, kBlock, kBlock);

  Manifest manifest;
  manifest.minor = minor;
  manifest.recipe = json_string(root, "recipe", path);
  manifest.source = json_string(root, "source", path);
  manifest.fingerprint = json_string(root, "fingerprint", path);
  manifest.codebooks = parse_codebooks(root, path);
  for (const auto& [name, value] : json_object(root, "files", path).items()) {
    const std::string where = fmt::format("{}: file {}", path, shown(name));
    if (!is_plain_file_name(name)) throw Error(ErrorKind::input, where + " is not a plain file name");
    manifest.files[name] = {json_integer(value, "bytes", where, 0, INT64_MAX),
                            parse_hex64(json_member(value, "xxh3", where), where)};
  }
  std::map<int64_t, ShardRecord> shards;
  const json& listed = json_array(root, "shards", path);
  if (static_cast<int64_t>(listed.size()) > kMaxShards)
    throw Error(ErrorKind::input, fmt::format("{} has {} shards, at most {} are read", path, listed.size(), kMaxShards));
  for (const json& value : listed) {
    const int64_t index = static_cast<int64_t>(manifest.shards.size());
    manifest.shards.push_back(parse_shard(value, index, minor >= 1, path));
    shards[index] = manifest.shards.back();
  }
  std::map<std::string, size_t> by_name;
  for (const json& value : json_array(root, "tensors", path)) {
    manifest.tensors.push_back(parse_tensor(value, manifest.codebooks, shards, path));
    const TensorRecord& record = manifest.tensors.back();
    if (!by_name.emplace(record.spec.name, manifest.tensors.size() - 1).second)
      throw Error(ErrorKind::input, fmt::format("{} lists {} twice", path, shown(record.spec.name)));
  }
  for (const TensorRecord& record : manifest.tensors) {
    if (record.same_as.empty()) continue;
    const auto target = by_name.find(record.same_as);
    const TensorRecord* other = target == by_name.end() ? nullptr : &manifest.tensors[target->second];
    if (other == nullptr || !other->same_as.empty() || other->spec.rows != record.spec.rows ||
        other->spec.cols != record.spec.cols || other->spec.split != record.spec.split ||
        other->spec.pieces != record.spec.pieces || other->encoding != record.encoding || other->codebook != record.codebook)
      throw Error(ErrorKind::input, fmt::format("{}: {} is said to be the same as {}, which it is not like", path,
                                                shown(record.spec.name), shown(record.same_as)));
  }
  check_disjoint(manifest.tensors, path);
  return manifest;
}

std::string shard_note_text(const ShardNote& note) {
  ordered_json root = {{"fingerprint", note.fingerprint}, {"shard", shard_json(note.shard)}};
  root["codebooks"] = codebooks_json(note.codebooks);
  root["tensors"] = ordered_json::array();
  for (const TensorRecord& tensor : note.tensors) root["tensors"].push_back(tensor_json(tensor));
  return root.dump(1) + "\n";
}

ShardNote parse_shard_note(const std::string& text, const std::string& path) {
  const json root = parse_strict_json(text, path);
  ShardNote note;
  note.fingerprint = json_string(root, "fingerprint", path);
  note.codebooks = parse_codebooks(root, path);
  const json& shard = json_object(root, "shard", path);
  note.shard.file = json_string(shard, "file", path);
  note.shard.bytes = json_integer(shard, "bytes", path, 0, INT64_MAX);
  parse_frame(shard, true, path, &note.shard);
  std::map<int64_t, ShardRecord> shards;
  for (const json& value : json_array(root, "tensors", path)) {
    const int64_t index = json_integer(value, "shard", path, 0, kMaxShards - 1);
    shards[index] = note.shard;
    note.tensors.push_back(parse_tensor(value, note.codebooks, shards, path));
  }
  return note;
}

}  // namespace pq
