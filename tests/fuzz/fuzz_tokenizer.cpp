// tokenizer.json, and texts through what it makes: the split pattern is a program that the file brings. "@bytes" in the input
// stands for the 256 entries of a vocabulary that every file needs, so that inputs stay short.
#include "fuzz/fuzz_support.h"
#include "fuzz/fuzz_tokens.h"

using namespace pq;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::Folder folder;
  folder.write("tokenizer.json", fuzz::with_byte_tokens(fuzz::text_of(data, size)));
  std::optional<Tokenizer> tokenizer;
  if (!fuzz::accepts([&] { tokenizer = load_tokenizer(folder.path()); })) return 0;
  for (const char* text :
       {"Hello, w\xC3\xB6rld! 1234567  \n\n\tit's", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!",
        "          \r\n  \xE2\x80\x83<|im_end|>\xF0\x9F\x98\x80\xCC\x81"})
    fuzz::accepts([&] { fuzz::expect(tokenizer->encode(text, {true}).size() < 1000, "more tokens than bytes"); });
  for (int32_t id = -1; id < 300; ++id) tokenizer->is_special(id);
  return 0;
}
