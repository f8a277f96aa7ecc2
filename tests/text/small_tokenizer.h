// A tokenizer.json small enough to check by hand, and a folder to put variants of it in.
// Ids: byte b is b; then the merges below from 256 in order; then the added tokens.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/utf8.h"
#include "text/tokenizer.h"

namespace pq::testing {

inline constexpr const char* kQwenPattern =
    R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";

// GPT-2's bytes_to_unicode.
inline std::string letter_of(int byte) {
  std::vector<int> shifted;
  for (int b = 0; b < 256; ++b)
    if (!((b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF))) shifted.push_back(b);
  std::string out;
  for (size_t i = 0; i < shifted.size(); ++i)
    if (shifted[i] == byte) append_utf8(static_cast<char32_t>(256 + i), &out);
  if (out.empty()) append_utf8(static_cast<char32_t>(byte), &out);
  return out;
}

inline nlohmann::json added_token(int id, const std::string& content, bool special) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

inline nlohmann::json small_tokenizer() {
  nlohmann::json vocab;
  for (int byte = 0; byte < 256; ++byte) vocab[letter_of(byte)] = byte;
  const std::string space = letter_of(' ');
  const std::vector<std::vector<std::string>> merges = {
      {"h", "e"},                          // 256 he
      {"l", "l"},                          // 257 ll
      {"he", "ll"},                        // 258 hell
      {"hell", "o"},                       // 259 hello
      {space, "hello"},                    // 260 " hello"
      {letter_of(0xC3), letter_of(0xA9)},  // 261 é
      {"a", "a"},                          // 262 aa
      {"aa", "aa"},                        // 263 aaaa
      {letter_of('\n'), letter_of('\n')},  // 264 two newlines
      {".", letter_of('\n')},              // 265 full stop and newline
  };
  int id = 256;
  for (const auto& merge : merges) vocab[merge[0] + merge[1]] = id++;
  nlohmann::json split = {{"type", "Split"}, {"pattern", {{"Regex", kQwenPattern}}}, {"behavior", "Isolated"}, {"invert", false}};
  nlohmann::json bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
  return {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens",
       {added_token(300, "<|im_start|>", true), added_token(301, "<|im_end|>", true), added_token(302, "<think>", false),
        added_token(303, "</think>", false), added_token(304, "<|im_end|>!", true)}},
      {"normalizer", {{"type", "NFC"}}},
      {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {split, bytes}}}},
      {"post_processor", bytes},
      {"decoder", bytes},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", ""},
        {"end_of_word_suffix", ""},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", false},
        {"vocab", vocab},
        {"merges", merges}}},
  };
}

// A folder under the system's temporary one, removed with its contents.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "pq_text_XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw Error(ErrorKind::io, "cannot make a temporary folder");
    path_ = pattern;
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }
  void write(const std::string& name, const std::string& content) const {
    std::ofstream(path_ + "/" + name, std::ios::binary) << content;
  }
  void write(const std::string& name, const nlohmann::json& content) const { write(name, content.dump()); }

 private:
  std::string path_;
};

inline Tokenizer load_small_tokenizer(const nlohmann::json& content = small_tokenizer()) {
  const TemporaryFolder folder;
  folder.write("tokenizer.json", content);
  return load_tokenizer(folder.path());
}

}  // namespace pq::testing
