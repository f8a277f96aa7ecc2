// Joins the steps: added tokens, NFC, words, merges.
#include "text/tokenizer.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <unordered_map>
#include <utility>

#include "base/activity.h"
#include "base/error.h"
#include "base/utf8.h"
#include "text/tokenizer_file.h"
#include "text/unicode.h"

namespace pq {

Tokenizer load_tokenizer(const std::string& path) { return Tokenizer(load_tokenizer_file(path)); }

// cppcheck-suppress passedByValue ; moved from, member by member
Tokenizer::Tokenizer(TokenizerFile file)
    : tokens_(std::move(file.tokens)),
      added_(std::move(file.added)),
      added_matcher_(added_),
      pre_tokenizer_(file.split_pattern, file.path),
      bpe_(file.byte_ids, file.merges),
      normalize_nfc_(file.normalize_nfc) {}

std::vector<int32_t> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  const std::string clean = replace_invalid_utf8(text);
  return encode_between(clean, options.allow_special ? added_matcher_.find(clean) : std::vector<AddedTokens::Match>());
}

std::vector<int32_t> Tokenizer::encode(const std::vector<Segment>& segments) const {
  std::string text;
  std::vector<AddedTokens::Match> matches;
  for (const Segment& segment : segments) {
    const std::string clean = replace_invalid_utf8(segment.text);
    if (segment.is_control)
      for (const AddedTokens::Match& match : added_matcher_.find(clean))
        matches.push_back({text.size() + match.begin, text.size() + match.end, match.id});
    text += clean;
  }
  return encode_between(text, matches);
}

std::vector<int32_t> Tokenizer::encode_between(const std::string& text, const std::vector<AddedTokens::Match>& matches) const {
  if (text.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max()))
    throw Error(ErrorKind::input, "a text of " + std::to_string(text.size()) + " bytes cannot be encoded at once, the limit is " +
                                      std::to_string(std::numeric_limits<int32_t>::max()));
  std::vector<int32_t> ids;
  Bpe::Scratch scratch;
  std::deque<std::string> normalized;  // owns the keys of `seen`; a deque never moves its elements
  std::unordered_map<std::string_view, std::pair<size_t, size_t>> seen;  // word -> range of `ids` that holds its tokens

  const auto encode_gap = [&](std::string_view gap) {
    if (normalize_nfc_) gap = normalized.emplace_back(normalize_nfc(gap));
    for (const std::string_view word : pre_tokenizer_.split(gap)) {
      beat();
      const auto [entry, is_new] = seen.try_emplace(word, ids.size(), ids.size());
      if (is_new) {
        bpe_.encode(word, &scratch, &ids);
        entry->second.second = ids.size();
      } else {
        for (size_t i = entry->second.first; i < entry->second.second; ++i) ids.push_back(int32_t{ids[i]});
      }
    }
  };
  size_t at = 0;
  for (const AddedTokens::Match& match : matches) {
    encode_gap(std::string_view(text).substr(at, match.begin - at));
    ids.push_back(match.id);
    at = match.end;
  }
  encode_gap(std::string_view(text).substr(at));
  return ids;
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids, DecodeOptions options) const {
  std::string bytes;
  for (const int32_t id : ids)
    if (!options.skip_special || !is_special(id)) bytes += token_bytes(id);
  return replace_invalid_utf8(bytes);
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  return id >= 0 && id < vocab_size() ? std::string_view(tokens_[id]) : std::string_view();
}

std::optional<int32_t> Tokenizer::id_of(std::string_view content) const {
  if (content.empty()) return std::nullopt;
  const auto added = std::find_if(added_.begin(), added_.end(), [&](const AddedToken& token) { return token.content == content; });
  if (added != added_.end()) return added->id;
  const auto found = std::find(tokens_.begin(), tokens_.end(), content);
  if (found == tokens_.end()) return std::nullopt;
  return static_cast<int32_t>(found - tokens_.begin());
}

bool Tokenizer::is_special(int32_t id) const {
  const auto found =
      std::lower_bound(added_.begin(), added_.end(), id, [](const AddedToken& token, int32_t value) { return token.id < value; });
  return found != added_.end() && found->id == id && found->special;
}

}  // namespace pq
