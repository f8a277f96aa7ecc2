// tokenizer_config.json beside a sound tokenizer.json.
#include "fuzz/fuzz_support.h"
#include "fuzz/fuzz_tokens.h"

using namespace pq;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::Folder folder;
  static const std::string whole = folder.write("tokenizer.json", fuzz::with_byte_tokens(fuzz::kTokenizerJson));
  folder.write("tokenizer_config.json", fuzz::text_of(data, size));
  fuzz::accepts([&] {
    const TokenizerFile file = load_tokenizer_file(whole);
    for (const AddedToken& token : file.added)
      fuzz::expect(file.tokens.at(static_cast<size_t>(token.id)) == token.content, "an added token has another text");
  });
  return 0;
}
