// Published PolarQuant checkpoints: which format a directory is in, and the codes of one tensor in the layout of kernels/polar.h.
// Two formats are read (spec: polarquant §2); four more are recognised and refused by name. Names and plain tensors are left to
// checkpoint.h.
//
//   F1  X.codes int8 [out, in_pad], one code a byte; X.norms fp16 [out, in_pad / 128]; X.ct fp32 [2^b], raw centroids.
//   F2  X.codes uint8 [out, in_pad * 5 / 8] for 5 bits (LSB first), uint8 [out, in_pad / 2] for 2 to 4 bits (byte i of a block:
//   code
//       i low nibble, code 64 + i high nibble), int8 [out, in_pad] for 6 and 7; X.ct_scaled fp32 [2^b] = centroid / sqrt(128).
// A tensor is always decoded with its own table, whatever polar_config.json says.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/hash.h"
#include "kernels/codebook.h"
#include "store/safetensors.h"

namespace pq {

enum class PublishedFormat : int { none, f1, f2 };

// Throws ErrorKind::input, naming the format and the way out, when `directory` is in one of the formats that are not read and can
// be told without opening a safetensors file: F3 (folders PQ2...PQ8), F4 (polar_config.json), F5 (torchao pickle), F6 and GPTQ
// (quantization_config); also for a block size other than 128.
void refuse_other_formats(const std::string& directory);

// Told by the keys: none when no tensor has codes. Throws ErrorKind::input for keys of F3, F4 and F6, and for a directory that
// mixes .ct and .ct_scaled.
PublishedFormat published_format(const SafetensorsDirectory& tensors);

enum class CodePacking : int { bytes, nibbles, five };

struct CodedTensor {
  std::string name;  // X
  int64_t rows = 0;
  int64_t blocks = 0;  // in_pad / 128
  int bits = 0;        // 2..7
  CodePacking packing = CodePacking::bytes;
  SafetensorsLocation codes;
  SafetensorsLocation norms;
  std::vector<float> centroids;  // 2^bits, raw
};

// X.codes, X.norms and the table of X, checked against each other. Throws ErrorKind::input naming X and the defect.
CodedTensor open_coded_tensor(const SafetensorsDirectory& tensors, const std::string& name);

// Rows [row, row + rows), blocks [block, block + blocks): codes packed [rows][blocks][16 * bits], norms fp16 [rows][blocks].
// The bytes read are added to `hash` when it is not null. Throws ErrorKind::input for a code outside the table or a norm that is
// negative or not finite.
void read_coded_tensor(const CodedTensor& tensor, int64_t row, int64_t rows, int64_t block, int64_t blocks, uint8_t* codes,
                       uint16_t* norms, Xxh3Stream* hash);

// One block of published bytes (128, 64 or 80 of them) to one code a byte.
void unpack_published_block(CodePacking packing, const uint8_t* in, uint8_t* codes);
int64_t published_block_bytes(CodePacking packing);

}  // namespace pq
