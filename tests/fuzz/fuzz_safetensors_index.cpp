// model.safetensors.index.json over two files that hold "a" and "b", "c".
#include "fuzz/fuzz_support.h"
#include "store/safetensors.h"

using namespace pq;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::Folder folder;
  static const bool made = [] {
    folder.write("x.safetensors", fuzz::safetensors_bytes(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "1"));
    folder.write("y.safetensors", fuzz::safetensors_bytes(R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                                          R"("c":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                                                          "23"));
    return true;
  }();
  (void)made;
  folder.write("model.safetensors.index.json", fuzz::text_of(data, size));
  fuzz::accepts([&] {
    const SafetensorsDirectory directory = SafetensorsDirectory::open(folder.path());
    for (const auto& [name, location] : directory.tensors())
      fuzz::expect(location.entry->name == name && directory.find(name) != nullptr, "a tensor is lost");
    fuzz::expect(directory.fingerprint().size() == 16, "no fingerprint");
  });
  return 0;
}
