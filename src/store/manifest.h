// The table of contents of a store: manifest.json, which says of every tensor what it is, where its planes lie and what they sum
// to. Everything a reader relies on is checked here; the HDF5 files themselves are written by shard_store.h and read by
// store_reader.h.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "kernels/codebook.h"
#include "store/policy.h"
#include "store/tensor_spec.h"

namespace pq {

// A reader takes every minor version of its major one and refuses a newer major. 1.1: every shard has a label and a checksum of its
// frame (shard_frame.h); a store of 1.0 is read without them.
inline constexpr int kStoreMajor = 1;
inline constexpr int kStoreMinor = 1;
inline constexpr const char* kStoreFormat = "pq-store";
inline constexpr const char* kManifestName = "manifest.json";

struct PlaneRecord {
  int64_t offset = 0;               // of the first piece in the shard file
  std::vector<uint64_t> checksums;  // XXH3-64 of each piece; empty: the encoding has no such plane
};

struct TensorRecord {
  TensorSpec spec;  // name, source, source_row, rows, cols, split, pieces, matrix, tensor_class, shard
  Encoding encoding;
  std::string codebook;  // key of Manifest::codebooks; polar only
  std::string same_as;   // not empty: the bytes are those of that tensor (a tied head) and `planes` is empty
  PlaneRecord planes[kPlanes];
  double squared_error = 0;  // of the weights against the source; both 0 when codes were taken over
  double squared_norm = 0;
  uint64_t source_hash = 0;  // XXH3-64 of the source bytes in the order they were read
};

struct ShardRecord {
  std::string file;  // "shard-00003.h5"
  int64_t bytes = 0;
  std::optional<uint64_t> frame = std::nullopt;  // XXH3-64 of all bytes outside the planes; absent in stores of version 1.0
};

struct FileRecord {
  int64_t bytes = 0;
  uint64_t hash = 0;
};

struct Manifest {
  int64_t minor = kStoreMinor;  // version kStoreMajor.minor
  std::string recipe;           // Recipe::text
  std::string source;           // what the store was made from
  std::string fingerprint;      // of recipe, source and cuts
  std::map<std::string, Codebook> codebooks;
  std::map<std::string, FileRecord> files;  // verbatim copies
  std::vector<ShardRecord> shards;
  std::vector<TensorRecord> tensors;
};

// What is known of one finished shard; written beside it until the manifest stands.
struct ShardNote {
  std::string fingerprint;
  ShardRecord shard;
  std::map<std::string, Codebook> codebooks;
  std::vector<TensorRecord> tensors;
};

// The key of a codebook: its bits, kind and the hash of its centroids.
std::string codebook_key(const Codebook& codebook);

std::string manifest_text(const Manifest& manifest);
// Adds the checksum of the text as the last member. json: an object dumped with an indentation of one.
std::string seal_manifest(const std::string& json);
std::string shard_note_text(const ShardNote& note);

// Throw ErrorKind::input naming path, tensor and field. Checked: format and version, the text's own checksum, types and ranges of
// every field, sizes against shape and encoding with overflow checks, planes inside their file, none overlapping another, checksums
// for every piece.
Manifest parse_manifest(const std::string& text, const std::string& path);
ShardNote parse_shard_note(const std::string& text, const std::string& path);

std::string shard_file_name(int64_t shard);

// What to say of a piece of `path` whose bytes have the checksum `sum` and not the one of the record.
std::string damaged_piece_text(const std::string& path, const TensorRecord& record, int plane, int64_t piece, uint64_t sum);

}  // namespace pq
