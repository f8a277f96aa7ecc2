// Sampling and comparing for source_record.h.
#include "store/source_record.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/hash.h"
#include "base/strict_json.h"
#include "base/utf8.h"

namespace pq {
namespace {

constexpr int64_t kSampleBytes = 4096;

std::string sample(const SafetensorsLocation& tensor) {
  std::array<uint8_t, kSampleBytes> block{};
  Xxh3Stream hash;
  const int64_t bytes = std::min(tensor.entry->bytes, kSampleBytes), rest = tensor.entry->bytes - bytes;
  for (const int64_t at : {int64_t{0}, rest / 2, rest}) {
    tensor.file->file().read_at(block.data(), bytes, tensor.entry->offset + at);
    hash.update(block.data(), bytes);
    if (rest == 0) break;
  }
  return hex64(hash.digest());
}

}  // namespace

std::string source_record_text(const SafetensorsDirectory& source) {
  nlohmann::ordered_json samples = nlohmann::ordered_json::object();
  for (const auto& [name, tensor] : source.tensors()) samples[name] = sample(tensor);
  return nlohmann::ordered_json({{"samples", samples}}).dump(1) + "\n";
}

void check_source_record(const std::vector<SafetensorsLocation>& tensors, const std::string& record, const std::string& path) {
  const nlohmann::json root = parse_strict_json(record, path);
  const nlohmann::json& samples = json_object(root, "samples", path);
  for (const SafetensorsLocation& tensor : tensors) {
    if (json_string(samples, tensor.entry->name.c_str(), path) == sample(tensor)) continue;
    throw Error(
        ErrorKind::input,
        fmt::format("{} holds another \"{}\" than the one that {} was made from; bring it back, name another directory, or "
                    "begin anew with --force",
                    tensor.file->file().path(), shown(tensor.entry->name), std::filesystem::path(path).parent_path().string()));
  }
}

}  // namespace pq
