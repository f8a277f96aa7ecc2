// source.json beside a store: samples of the weights it was made from, by which pq-quantize tells that a source has changed since,
// although names, sizes and headers are what they were. Nothing else reads it, and a store without one is as good.
#pragma once

#include <string>
#include <vector>

#include "store/safetensors.h"

namespace pq {

inline constexpr const char* kSourceRecordName = "source.json";

// For each tensor one checksum (XXH3-64) over at most 4 KiB at its beginning, middle and end: 10 MB of a model of 850 tensors. Sees
// a tensor that was trained on, not a single weight. The same text for the same weights, wherever they lie.
std::string source_record_text(const SafetensorsDirectory& source);

// `record`: a source.json's text, read from `path`. Throws ErrorKind::input naming the file and the tensor when one of `tensors`
// differs from it.
void check_source_record(const std::vector<SafetensorsLocation>& tensors, const std::string& record, const std::string& path);

}  // namespace pq
