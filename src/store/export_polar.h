// Writes a store as a published PolarQuant checkpoint of kind F1 (polar_checkpoint.h), so that the method's own tools can read it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "store/quantize_store.h"
#include "store/tensor_spec.h"

namespace pq {

struct ExportJob {
  std::string store;
  std::string destination;                // absent or empty, or `force`
  std::vector<TensorSpec> specs{};        // of the store's model
  int64_t file_bytes = int64_t{5} << 30;  // a file is closed before it grows beyond this
  bool force = false;
};

struct ExportReport {
  int64_t files = 0;
  int64_t bytes = 0;
  int64_t coded = 0;  // tensors X.codes
  int64_t kept = 0;
};

// Collective: files are shared out over ranks. Text-only names ("model.layers..."), the parts of in_proj_qkv joined, a tied head
// left out. Codes int8, norms fp16, .ct the store's own table in fp32; kept tensors in their own element type. Throws
// ErrorKind::input naming the matrix when one is not pq2 to pq7 (an int8 code holds 7 bits) or when parts of one tensor were coded
// differently.
ExportReport export_polarquant(const ExportJob& job, Communicator& comm, const Agree& agree);

}  // namespace pq
