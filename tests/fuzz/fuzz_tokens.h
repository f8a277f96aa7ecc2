// Vocabularies for the targets that need a tokenizer.
#pragma once

#include <string>

#include "base/utf8.h"
#include "fuzz/fuzz_support.h"
#include "text/tokenizer.h"

namespace pq::fuzz {

// "letter":id for each byte, as GPT-2 spells bytes; ids are the bytes.
inline const std::string& byte_tokens() {
  static const std::string text = [] {
    std::string out;
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      out += byte == 0 ? "\"" : ",\"";
      if (byte == '"' || byte == '\\') out += '\\';
      append_utf8(printable ? static_cast<char32_t>(byte) : next++, &out);
      out += "\":" + std::to_string(byte);
    }
    return out;
  }();
  return text;
}

inline std::string with_byte_tokens(std::string text) {
  const size_t at = text.find("@bytes");
  if (at != std::string::npos) text.replace(at, 6, byte_tokens());
  return text;
}

// The pattern of the Qwen family, two merges, three added tokens.
inline constexpr const char* kTokenizerJson =
    R"json({"version":"1.0","truncation":null,"padding":null,"added_tokens":[
{"id":300,"content":"<|im_start|>","special":true},{"id":301,"content":"<|im_end|>","special":true},
{"id":302,"content":"<think>","special":false}],"normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"Sequence","pretokenizers":[
{"type":"Split","pattern":{"Regex":"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]},
"post_processor":{"type":"ByteLevel"},"decoder":{"type":"ByteLevel"},
"model":{"type":"BPE","vocab":{@bytes,"aa":256,"aaaa":257},"merges":[["a","a"],["aa","aa"]]}})json";

}  // namespace pq::fuzz
