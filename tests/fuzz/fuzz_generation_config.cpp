// generation_config.json.
#include "engine/generation_config.h"
#include "fuzz/fuzz_support.h"

using namespace pq;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::Folder folder;
  folder.write("generation_config.json", fuzz::text_of(data, size));
  fuzz::accepts([&] {
    const GenerationConfig config = load_generation_config(folder.path());
    for (const int32_t id : stop_ids({7}, config)) fuzz::expect(id >= 0, "a negative token");
    check(config.sampling);
  });
  return 0;
}
