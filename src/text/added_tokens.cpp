// A trie over the contents of the added tokens.
#include "text/added_tokens.h"

namespace pq {
namespace {

uint64_t edge_key(int32_t node, char byte) { return static_cast<uint64_t>(node) << 8 | static_cast<unsigned char>(byte); }

}  // namespace

AddedTokens::AddedTokens(const std::vector<AddedToken>& tokens) : ids_{-1} {
  for (const AddedToken& token : tokens) {
    starts_[static_cast<unsigned char>(token.content[0])] = true;
    int32_t node = 0;
    for (const char byte : token.content) {
      const auto [edge, is_new] = children_.try_emplace(edge_key(node, byte), static_cast<int32_t>(ids_.size()));
      if (is_new) ids_.push_back(-1);
      node = edge->second;
    }
    ids_[node] = token.id;
  }
}

std::vector<AddedTokens::Match> AddedTokens::find(std::string_view text) const {
  std::vector<Match> matches;
  for (size_t at = 0; at < text.size();) {
    Match longest{at, at, -1};
    if (starts_[static_cast<unsigned char>(text[at])]) {
      int32_t node = 0;
      for (size_t end = at; end < text.size();) {
        const auto edge = children_.find(edge_key(node, text[end]));
        if (edge == children_.end()) break;
        node = edge->second;
        ++end;
        if (ids_[node] >= 0) longest = {at, end, ids_[node]};
      }
    }
    if (longest.id >= 0) matches.push_back(longest);
    at = longest.id >= 0 ? longest.end : at + 1;
  }
  return matches;
}

}  // namespace pq
