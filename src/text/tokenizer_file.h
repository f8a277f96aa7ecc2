// Reads and checks tokenizer.json (and the added tokens of tokenizer_config.json) into plain tables. Everything that the
// encoder does not do is refused here, by name; the encoder itself is tokenizer.h.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"

namespace pq {

struct TokenizerFile {
  std::string path;                   // of tokenizer.json
  std::vector<std::string> tokens;    // bytes by id; empty where an id belongs to no token
  std::array<int32_t, 256> byte_ids;  // id of each one-byte token, -1 for bytes that never occur in UTF-8 and have none
  std::vector<MergeRule> merges;      // in rank order
  std::string split_pattern;
  bool normalize_nfc = false;
  std::vector<AddedToken> added;  // in id order
};

// `path` is a tokenizer.json or the directory that holds it. A tokenizer_config.json beside it contributes the tokens of
// its added_tokens_decoder; where both files define one token, ids and contents must agree and tokenizer_config.json decides
// whether it is special, as in Hugging Face transformers.
// ErrorKind::input for anything malformed or outside this model: type BPE without dropout, unknown token, prefix, suffix or
// byte fallback; normalizer NFC or none; Sequence[Split(Regex, Isolated), ByteLevel]; decoder ByteLevel; no truncation,
// padding, template, bos or eos; added tokens matched in raw text (no lstrip, rstrip, single_word, normalized).
TokenizerFile load_tokenizer_file(const std::string& path);

}  // namespace pq
