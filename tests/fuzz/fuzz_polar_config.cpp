// What tells the published formats apart. Input: polar_config.json and, behind a NUL, config.json.
#include "fuzz/fuzz_support.h"
#include "store/polar_checkpoint.h"

using namespace pq;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::Folder folder;
  std::string text = fuzz::text_of(data, size);
  folder.write("polar_config.json", fuzz::take_part(&text));
  folder.write("config.json", text);
  fuzz::accepts([&] { refuse_other_formats(folder.path()); });
  return 0;
}
