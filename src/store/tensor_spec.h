// What the model says of each tensor it needs, in the words of the store: where it stands in a Hugging Face checkpoint, how it is
// cut, which shard it belongs to. The list is made by model/partition.h; nothing here knows ranks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pq {

enum class Split : int {
  replicated,  // every rank holds all of it
  rows,        // column-parallel: cut along the outputs into `pieces` equal row ranges
  cols,        // row-parallel: cut along the inputs into `pieces` equal column ranges
};

struct TensorSpec {
  std::string name;    // canonical, e.g. "layers.3.mlp.down_proj.weight"; "embed_tokens.weight"; "lm_head.weight"
  std::string source;  // name in the checkpoint without the trunk prefix, e.g. "layers.0.linear_attn.in_proj_qkv.weight"
  std::vector<int64_t> source_shape;  // the whole source tensor
  int64_t source_row = 0;             // this tensor is rows [source_row, source_row + rows) of the source seen as [rows, cols]
  int64_t rows = 0;                   // 1-D tensors: rows = length, cols = 1
  int64_t cols = 0;
  Split split = Split::replicated;
  int64_t pieces = 1;  // independent of the number of ranks; 1 when replicated
  // More ranks than pieces: true, a piece is copied to all ranks that need it (kv heads); false, only the first of them holds it.
  bool shared = false;
  bool matrix = false;       // a large matrix, to which the policy applies; others are kept in their own dtype
  std::string tensor_class;  // for reports: "mlp.down_proj", "embed_tokens", ...
  int64_t shard = 0;         // index of the shard that holds it: 0 embedding, 1 + layer, layers + 1 final norm and head
};

}  // namespace pq
