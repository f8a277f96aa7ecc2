// manifest.json of a store. Input: a manifest without its checksum, which is put in, so that what lies behind it is reached; or a
// whole one after "raw:".
#include "fuzz/fuzz_manifests.h"
#include "fuzz/fuzz_support.h"

using namespace pq;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string text = fuzz::text_of(data, size);
  text = text.starts_with("raw:") ? text.substr(4) : fuzz::sealed(text);
  fuzz::accepts([&] {
    const Manifest manifest = parse_manifest(text, "manifest.json");
    for (const TensorRecord& record : manifest.tensors)
      fuzz::expect(tensor_bytes(record.spec, record.encoding) >= 0, "a tensor of negative size");
    const std::string again = manifest_text(manifest);
    fuzz::expect(manifest_text(parse_manifest(again, "again")) == again, "a manifest changes when it is written again");
  });
  return 0;
}
