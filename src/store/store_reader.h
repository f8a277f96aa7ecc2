// Weights from a store directory: the manifest is checked against the files once, pieces are read by offset and verified as they
// come. No HDF5 call.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "store/manifest.h"
#include "store/weight_source.h"

namespace pq {

// Whether `directory` holds a manifest.json.
bool is_store(const std::string& directory);

class StoreReader : public WeightSource {
 public:
  // Reads and checks the manifest, that every copied file (config.json, tokenizer.json, ...) is the one the store was made with
  // and, with `verify`, that every shard is the one the manifest means, its bytes outside the weights included (check_shard).
  // verify: each piece is compared with its checksum when it is loaded. Throws ErrorKind::input naming the thing that is wrong.
  explicit StoreReader(const std::string& directory, bool verify = true);

  WeightInfo info(const TensorSpec& spec) const override;
  void load(const TensorSpec& spec, int64_t first, int64_t count, void* data, uint16_t* scales, uint16_t* zeros) override;
  std::string description() const override;

  const Manifest& manifest() const { return manifest_; }
  // The record that holds the bytes of tensor `name` (same_as resolved). Throws ErrorKind::input when absent.
  const TensorRecord& bytes_of(const std::string& name) const;
  // One piece of one plane as stored, verified. out [piece_bytes].
  void read_piece(const TensorRecord& record, int plane, int64_t piece, void* out) const;
  // Reads everything and throws at the first piece that differs from its checksum.
  void verify_all() const;
  // Bits a weight over all matrices, planes included, a shared one counted once.
  double bits_per_weight() const;

 private:
  const TensorRecord& record(const TensorSpec& spec) const;

  std::string directory_;
  bool verify_;
  Manifest manifest_;
  std::map<std::string, const TensorRecord*> by_name_;
  std::vector<File> shards_;
};

}  // namespace pq
