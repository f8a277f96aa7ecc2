// Safetensors files and directories of them: a strict reader of headers that trusts nothing, byte ranges of tensors, and a
// streaming writer. What tensors mean is left to checkpoint.h.
//
// A file is: header length (8 bytes, little endian), header (JSON), data. The data_offsets of the tensors must tile the data
// exactly: no overlap, no hole, nothing after the last. Limits: base/limits.h.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/tensor.h"

namespace pq {

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  int64_t offset = 0;  // from the start of the file
  int64_t bytes = 0;   // product of shape * dtype_bytes(dtype)
};

class SafetensorsFile {
 public:
  // Reads and checks the header. Throws ErrorKind::input naming the path and the defect.
  static SafetensorsFile open(const std::string& path);

  const File& file() const { return file_; }
  // In file order.
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // XXH3-64 of the header with its length.
  uint64_t header_hash() const { return header_hash_; }
  int64_t size() const { return size_; }

 private:
  File file_;
  std::vector<SafetensorsEntry> entries_;
  std::map<std::string, std::string> metadata_;
  uint64_t header_hash_ = 0;
  int64_t size_ = 0;
};

struct SafetensorsLocation {
  const SafetensorsFile* file = nullptr;
  const SafetensorsEntry* entry = nullptr;
};

// All tensors of a directory. With model.safetensors.index.json the files are those its weight_map names, each tensor of the map
// must be in the file it names, and a tensor that such a file holds but the map does not is refused: index and files are then of
// different versions. Files the index does not name are not opened. Without an index: model.safetensors, else every
// model*.safetensors. Owns its files.
class SafetensorsDirectory {
 public:
  static SafetensorsDirectory open(const std::string& directory);

  const std::string& directory() const { return directory_; }
  const std::vector<std::unique_ptr<SafetensorsFile>>& files() const { return files_; }
  const std::map<std::string, SafetensorsLocation>& tensors() const { return tensors_; }
  // Null when absent.
  const SafetensorsLocation* find(const std::string& name) const;
  // 16 hexadecimal digits over names, sizes and headers of the files: the identity of the checkpoint without reading its data.
  std::string fingerprint() const;

 private:
  std::string directory_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, SafetensorsLocation> tensors_;
};

// Writes one file: the tensors are declared at once, their bytes follow in any order, finish publishes.
class SafetensorsWriter {
 public:
  struct Tensor {
    std::string name;
    DType dtype = DType::f32;
    std::vector<int64_t> shape;
  };
  // Creates `path`.tmp and writes the header, padded so that the data starts at a multiple of 64.
  SafetensorsWriter(const std::string& path, const std::vector<Tensor>& tensors,
                    const std::map<std::string, std::string>& metadata);
  // `bytes` of tensor `index` (its place in `tensors`) from byte `offset` of that tensor on.
  void write(int64_t index, int64_t offset, const void* data, int64_t bytes);
  // Syncs and renames to `path`. Without it the temporary file stays.
  void finish();

 private:
  std::string path_;
  File file_;
  std::vector<int64_t> offsets_;
  std::vector<int64_t> bytes_;
};

}  // namespace pq
