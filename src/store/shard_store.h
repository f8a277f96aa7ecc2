// One shard of a store: an HDF5 file that h5py reads and whose planes have known file offsets. HDF5 lays the file out; bytes are
// written by offset, so no HDF5 call moves data, and readers (store_reader.h) need none at all.
//
// Layout: /label (shard_frame.h), /tensors/<name>/{codes, norms} (polar), {codes, scales, zeros} (int4) or {data};
// /codebooks/<key>. Data sets of weights are contiguous, allocated at creation, never filled, aligned to 4096 bytes. Tensors cut
// along their inputs have a leading axis of pieces. Equal content gives equal bytes: no time stamps, fixed format bounds.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/hash.h"
#include "store/manifest.h"

namespace pq {

class ShardWriter {
 public:
  // Creates `path` with room for every record of the note whose same_as is empty; fills in their plane offsets. Codebooks are
  // written. The note names fingerprint, codebooks and tensors, all of shard `shard`, and outlives the writer. Throws ErrorKind::io
  // when HDF5 refuses.
  ShardWriter(const std::string& path, int64_t shard, ShardNote* note);

  // Tensors are written one after the other: begin, write in the order of PieceSink, end. end fills in the checksums.
  void begin_tensor(size_t index);
  void write(int plane, int64_t piece, int64_t offset, const uint8_t* data, int64_t bytes);
  void end_tensor();

  // Writes the label, syncs, renames to shard_file_name in `directory` and fills in the shard record of the note.
  void publish(const std::string& directory);

 private:
  std::string path_;
  File file_;
  int64_t shard_;
  ShardNote* note_;
  int64_t label_offset_ = 0;
  size_t current_ = 0;
  std::vector<Xxh3Stream> streams_[kPlanes];
  std::vector<int64_t> written_[kPlanes];
  int64_t unsynced_bytes_ = 0;
};

}  // namespace pq
