// Store directories compared byte by byte.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>

#include "support/demo_model.h"

namespace pq::test {

using Files = std::map<std::string, std::string>;

// Name to content of every file.
inline Files files_of(const std::string& directory) {
  Files files;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    files[entry.path().filename().string()] = read_file(entry.path().string());
  }
  return files;
}

inline bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// EXPECT_EQ on whole files would print them.
inline void expect_same(const Files& expected, const Files& actual) {
  for (const auto& [name, content] : expected) {
    ASSERT_EQ(actual.count(name), 1u) << name << " is missing";
    EXPECT_TRUE(actual.at(name) == content) << name << " differs";
  }
  for (const auto& [name, content] : actual) EXPECT_EQ(expected.count(name), 1u) << name << " is left over";
}

// What a job that did not end may leave under final names: whole shards, and no manifest.
inline void expect_only_whole_shards(const std::string& directory, const Files& expected) {
  if (!std::filesystem::exists(directory)) return;
  for (const auto& [name, content] : files_of(directory)) {
    EXPECT_NE(name, "manifest.json");
    EXPECT_TRUE(!ends_with(name, ".h5") || expected.at(name) == content) << name << " is not whole";
  }
}

inline std::map<std::string, std::filesystem::file_time_type> times_of(const std::string& directory, const std::string& end) {
  std::map<std::string, std::filesystem::file_time_type> times;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    if (ends_with(name, end)) times[name] = entry.last_write_time();
  }
  return times;
}

}  // namespace pq::test
