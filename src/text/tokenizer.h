// Text to token ids and back, exactly as Hugging Face `tokenizers` does it for the Qwen3.5 family (byte-level BPE after NFC and
// a split by regular expression). Which files and features are accepted is tokenizer_file.h; how a chat becomes text is
// chat_template.h; showing tokens as they arrive is utf8_stream.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer_file.h"

namespace pq {

// allow_special: whether added tokens (<|im_end|>, <think>, ...) are recognised in the text. When false none of them is, the
// ones with special=false included: Hugging Face would still turn <think> or <tool_response> in a user's text into the token
// that steers the format, and untrusted text must not be able to.
struct EncodeOptions {
  bool allow_special = false;
};

// skip_special: leave out tokens for which is_special holds.
struct DecodeOptions {
  bool skip_special = false;
};

// A stretch of text to encode: control text may hold added tokens, other text is plain whatever it says.
struct Segment {
  std::string text;
  bool is_control = false;
};

// Immutable after loading; every member may be called from several threads at once. Movable.
class Tokenizer {
 public:
  // The ids of `text`. Invalid UTF-8 is read as Hugging Face would see it after Python's decode("utf-8", "replace"): each
  // maximal invalid subpart becomes U+FFFD. Added tokens are matched in the raw text, the leftmost first, then the longest;
  // what lies between is normalised and split on its own. No token is ever added in front or behind.
  // ErrorKind::input when the text has 2^31 bytes or more or exhausts the limits of the file's regular expression.
  std::vector<int32_t> encode(std::string_view text, EncodeOptions options = {}) const;

  // The ids of the concatenated segments; words and merges may cross from one segment to the next, added tokens may not.
  // With no added token spelled out in a plain segment or across two, this equals encode of the whole text with allow_special.
  std::vector<int32_t> encode(const std::vector<Segment>& segments) const;

  // The text of `ids`: valid UTF-8, invalid bytes as U+FFFD. Ids without a token contribute nothing.
  std::string decode(const std::vector<int32_t>& ids, DecodeOptions options = {}) const;

  // The bytes that `id` stands for, possibly part of a character; empty for ids without a token, such as the padding rows of
  // an embedding or negative ids. Valid as long as the tokenizer.
  std::string_view token_bytes(int32_t id) const;

  // One more than the greatest id that has a token. A model may have more rows than this.
  int64_t vocab_size() const { return static_cast<int64_t>(tokens_.size()); }

  // The id whose bytes are exactly `content`, the added token where several are. Looks through the whole vocabulary.
  std::optional<int32_t> id_of(std::string_view content) const;

  // True for control tokens. False for <think>, <tool_call> and their like, which users see, and for ids without a token.
  bool is_special(int32_t id) const;

 private:
  friend Tokenizer load_tokenizer(const std::string& path);
  explicit Tokenizer(TokenizerFile file);

  std::vector<int32_t> encode_between(const std::string& text, const std::vector<AddedTokens::Match>& matches) const;

  std::vector<std::string> tokens_;  // by id
  std::vector<AddedToken> added_;
  AddedTokens added_matcher_;
  PreTokenizer pre_tokenizer_;
  Bpe bpe_;
  bool normalize_nfc_;
};

// Loads `path`, a tokenizer.json or the directory that holds it, by the rules of load_tokenizer_file.
Tokenizer load_tokenizer(const std::string& path);

}  // namespace pq
