// An HDF5 file of the logits of a perplexity run, for h5py and other readers: written row by row while the run goes on, under a
// temporary name until it is whole. Reading it back is left to others.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "eval/perplexity.h"
#include "eval/protocol.h"

namespace pq {

// What the file says of itself, as string attributes of the root group beside format ("pq-logits") and version (1).
struct LogitsFileInfo {
  std::string protocol;
  std::string text_sha256;
  std::string tokens_sha256;  // of the ids of the whole text as little-endian int32
  std::string model;          // WeightSource::description
};

// Datasets, rows = the windows' positions one after the other:
//   /logits       float32 [rows, vocab]  after the token of the row
//   /tokens       int32   [rows]         token of the row
//   /scored       uint8   [rows]         1 where the prediction of the next token counts
//   /nll          float64 [rows]         of the next token; NaN where not scored
//   /windows      int64   [windows, 3]   first token in the text, length, index of the first scored token
//   /text_tokens  int32   [tokens]       the whole text
class LogitsFile {
 public:
  // Creates `path`.tmp. Throws ErrorKind::io naming it when that fails (as every call does).
  LogitsFile(const std::string& path, const LogitsFileInfo& info, const std::vector<int32_t>& text_tokens,
             const std::vector<Window>& windows, int64_t vocab);
  // Removes the temporary file unless finish() was called.
  ~LogitsFile();
  LogitsFile(const LogitsFile&) = delete;
  LogitsFile& operator=(const LogitsFile&) = delete;

  // Rows come in file order, all of them.
  void append(const EvaluatedRow& row);

  // Writes what is buffered, syncs and renames to `path`. Throws ErrorKind::internal when rows are missing.
  void finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pq
