// The demo model as a directory of links in which single files can be replaced, for tests of what programs do with damaged models.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace pq::test {

inline std::string demo_path() { return std::string(PQ_TEST_DATA) + "/demo"; }

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// A directory that is removed with everything in it.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "pq_test_XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = pattern;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A copy of `original` made of symbolic links.
class ModelCopy {
 public:
  explicit ModelCopy(const std::string& original) {
    for (const auto& entry : std::filesystem::directory_iterator(original)) {
      std::filesystem::create_symlink(std::filesystem::absolute(entry.path()), path() + "/" + entry.path().filename().string());
    }
  }
  const std::string& path() const { return directory_.path(); }

  void remove(const std::string& name) { std::filesystem::remove(path() + "/" + name); }
  void replace(const std::string& name, const std::string& content) {
    remove(name);
    std::ofstream(path() + "/" + name, std::ios::binary) << content;
  }
  std::string content(const std::string& name) const { return read_file(path() + "/" + name); }
  // The first file, by name, that ends in `suffix`.
  std::string find(const std::string& suffix) const {
    std::string found;
    for (const auto& entry : std::filesystem::directory_iterator(path())) {
      const std::string name = entry.path().filename().string();
      if (name.size() >= suffix.size() && name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0 &&
          (found.empty() || name < found)) {
        found = name;
      }
    }
    if (found.empty()) throw std::runtime_error("no file ends in " + suffix);
    return found;
  }
  void truncate(const std::string& name, size_t bytes) { replace(name, content(name).substr(0, bytes)); }
  void flip_byte(const std::string& name, size_t offset) {
    std::string bytes = content(name);
    bytes.at(offset) = static_cast<char>(bytes.at(offset) ^ 0x40);
    replace(name, bytes);
  }

 private:
  TemporaryDirectory directory_;
};

}  // namespace pq::test
