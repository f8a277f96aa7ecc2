// Finds the added tokens (<|im_end|>, <think>, ...) inside raw text. What is done with the text between them is left to
// tokenizer.h.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace pq {

// special: a control token, left out of text shown to users. <think> and <tool_call> are added tokens that are not special.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;
};

// Immutable after construction; find may be called from several threads.
class AddedTokens {
 public:
  struct Match {
    size_t begin;  // byte offset in the text
    size_t end;
    int32_t id;
  };

  // REQUIRES: contents are not empty and distinct.
  explicit AddedTokens(const std::vector<AddedToken>& tokens);

  // The matches in order, not overlapping: the leftmost first, of those at one place the longest.
  std::vector<Match> find(std::string_view text) const;

 private:
  std::array<bool, 256> starts_{};
  std::unordered_map<uint64_t, int32_t> children_;  // trie edges: node << 8 | byte -> node
  std::vector<int32_t> ids_;                        // by node; negative where no token ends
};

}  // namespace pq
