// Directories of safetensors files: the index, or the files themselves when there is none.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/strict_json.h"
#include "base/utf8.h"
#include "store/safetensors.h"

namespace pq {
namespace {

std::map<std::string, std::string> read_weight_map(const std::string& path) {
  const nlohmann::json index = parse_strict_json(read_text_file(path, kMaxSafetensorsIndexBytes), path);
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : json_object(index, "weight_map", path).items()) {
    if (static_cast<int64_t>(tensor.size()) > kMaxSafetensorsNameBytes)
      throw Error(ErrorKind::input,
                  fmt::format("{}: a tensor name of {} bytes, at most {} are read", path, tensor.size(), kMaxSafetensorsNameBytes));
    if (!file.is_string())
      throw Error(ErrorKind::input, fmt::format("{}: the file of \"{}\" is not a string", path, shown(tensor)));
    const std::string name = file.get<std::string>();
    if (!is_plain_file_name(name))
      throw Error(ErrorKind::input, fmt::format("{}: {} is said to be in {}, which is not a plain file name", path,
                                                json_excerpt(nlohmann::json(tensor)), json_excerpt(file)));
    files[tensor] = name;
  }
  return files;
}

std::vector<std::string> find_files(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    if (name == "model.safetensors") return {name};
    if (name.rfind("model", 0) == 0 && name.size() > 12 && name.compare(name.size() - 12, 12, ".safetensors") == 0)
      names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

SafetensorsDirectory SafetensorsDirectory::open(const std::string& directory) {
  if (!is_directory(directory)) throw Error(ErrorKind::input, directory + " is not a directory");
  SafetensorsDirectory result;
  result.directory_ = directory;
  const std::string index_path = directory + "/model.safetensors.index.json";
  const bool indexed = path_exists(index_path);
  std::map<std::string, std::string> weight_map;
  std::vector<std::string> names;
  if (indexed) {
    weight_map = read_weight_map(index_path);
    for (const auto& [tensor, file] : weight_map) names.push_back(file);
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
  } else {
    names = find_files(directory);
  }
  if (names.empty()) throw Error(ErrorKind::input, directory + " holds no model.safetensors and no model.safetensors.index.json");
  if (names.size() > static_cast<size_t>(kMaxSafetensorsFiles))
    throw Error(ErrorKind::input,
                fmt::format("{} names {} files, at most {} are read", directory, names.size(), kMaxSafetensorsFiles));

  for (const std::string& name : names) {
    const std::string path = directory + "/" + name;
    if (!path_exists(path)) throw Error(ErrorKind::input, fmt::format("{} is missing; the index names it", path));
    result.files_.push_back(std::make_unique<SafetensorsFile>(SafetensorsFile::open(path)));
    const SafetensorsFile* file = result.files_.back().get();
    for (const SafetensorsEntry& entry : file->entries()) {
      if (indexed) {
        const auto expected = weight_map.find(entry.name);
        if (expected == weight_map.end() || expected->second != name)
          throw Error(ErrorKind::input,
                      fmt::format("{} holds \"{}\", which the index {}", path, shown(entry.name),
                                  expected == weight_map.end() ? "does not name" : "places in " + shown(expected->second)));
      }
      if (!result.tensors_.emplace(entry.name, SafetensorsLocation{file, &entry}).second)
        throw Error(ErrorKind::input,
                    fmt::format("{} holds \"{}\", which another file of the directory holds too", path, shown(entry.name)));
    }
  }
  for (const auto& [tensor, file] : weight_map)
    if (result.tensors_.count(tensor) == 0)
      throw Error(ErrorKind::input,
                  fmt::format("{} places \"{}\" in {}, which does not hold it", index_path, shown(tensor), shown(file)));
  return result;
}

const SafetensorsLocation* SafetensorsDirectory::find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

std::string SafetensorsDirectory::fingerprint() const {
  std::string text;
  for (const auto& file : files_)
    text += fmt::format("{} {} {}\n", std::filesystem::path(file->file().path()).filename().string(), file->size(),
                        hex64(file->header_hash()));
  return hex64(xxh3(text.data(), static_cast<int64_t>(text.size())));
}

}  // namespace pq
