// The step that rank 0 broadcasts: lengths from a peer are checked before they are used.
#include <cstring>

#include "fuzz/fuzz_support.h"
#include "model/transformer.h"

using namespace pq;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::vector<uint8_t> bytes(data, data + size);
  try {
    fuzz::expect(serialize_step(parse_step(bytes)) == bytes, "a step changed on its way");
  } catch (const Error& error) {
    fuzz::expect(error.kind() == ErrorKind::internal, error.what());
  }
  return 0;
}
