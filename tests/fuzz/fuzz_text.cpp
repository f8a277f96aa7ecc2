// Any bytes as a prompt: UTF-8, NFC, splitting, merges, and back. Input: plain text and, behind a NUL, text with added tokens.
#include "fuzz/fuzz_support.h"
#include "fuzz/fuzz_tokens.h"
#include "text/unicode.h"
#include "text/utf8_stream.h"

using namespace pq;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Tokenizer tokenizer = [] {
    const fuzz::Folder folder;
    folder.write("tokenizer.json", fuzz::with_byte_tokens(fuzz::kTokenizerJson));
    return load_tokenizer(folder.path());
  }();
  const std::string whole = fuzz::text_of(data, size);
  std::string control = whole;
  const std::string plain = fuzz::take_part(&control);
  const std::string clean = normalize_nfc(replace_invalid_utf8(whole));
  const std::vector<int32_t> ids = tokenizer.encode(whole);
  fuzz::expect(tokenizer.decode(ids) == clean, "a text is another one after encoding and decoding");
  for (const int32_t id : ids) fuzz::expect(id >= 0 && id < 258, "a plain text became a control token");
  tokenizer.encode(std::vector<Segment>{{plain, false}, {control, true}});
  tokenizer.encode(control, {.allow_special = true});
  return 0;
}
