// The note beside a finished shard, which a resumed job reads.
#include "fuzz/fuzz_support.h"
#include "store/manifest.h"

using namespace pq;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::accepts([&] {
    const ShardNote note = parse_shard_note(fuzz::text_of(data, size), "shard-00000.json");
    const std::string again = shard_note_text(note);
    fuzz::expect(shard_note_text(parse_shard_note(again, "again")) == again, "a note changes when it is written again");
  });
  return 0;
}
