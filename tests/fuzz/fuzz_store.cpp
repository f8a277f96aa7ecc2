// A store as it is read: any manifest over shard files of the sizes it claims. Every tensor is loaded into memory of exactly the
// size that its record asks for, with checksums off and on; the files are labelled, cut and hashed. Input: a manifest without its
// checksum and, behind a NUL, the first bytes of every shard.
#include "fuzz/fuzz_manifests.h"
#include "fuzz/fuzz_support.h"
#include "store/shard_frame.h"
#include "store/store_reader.h"
#include "store/verify.h"

using namespace pq;

namespace {

// Large enough for what a store of the corpus holds; every pass over it is instrumented.
constexpr int64_t kLargestShard = 1 << 16;
constexpr int64_t kLargestTensor = 1 << 16;

void load_whole(StoreReader& store, const TensorRecord& record) {
  const WeightInfo info = store.info(record.spec);
  if (info.bytes > kLargestTensor) return;
  const Encoding loaded{info.format, info.bits, info.has_zeros, DType::f32};
  std::vector<uint8_t> planes[kPlanes];
  for (int plane = 0; plane < kPlanes; ++plane)
    planes[plane].resize(static_cast<size_t>(record.spec.pieces * piece_bytes(record.spec, loaded, plane)));
  const auto half = [&](int plane) { return planes[plane].empty() ? nullptr : reinterpret_cast<uint16_t*>(planes[plane].data()); };
  store.load(record.spec, 0, record.spec.pieces, planes[0].data(), half(1), half(2));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::Folder folder;
  static const std::string config = folder.write("config.json", "{}");
  std::string shard_start = fuzz::text_of(data, size);
  const std::string text = fuzz::sealed(fuzz::take_part(&shard_start));
  folder.write("manifest.json", text);
  fuzz::accepts([&] {
    const Manifest manifest = parse_manifest(text, "manifest.json");
    if (manifest.shards.size() > 4 || manifest.tensors.size() > 64) return;
    for (const ShardRecord& shard : manifest.shards) {
      if (shard.bytes > kLargestShard) return;
      std::string bytes = shard_start;
      bytes.resize(static_cast<size_t>(shard.bytes));
      folder.write(shard.file, bytes);
    }
    // Damage is what these shards are full of: reading must say so and nothing else.
    fuzz::accepts([&] { StoreReader checked(folder.path()); });
    StoreReader store(folder.path(), false);
    for (const TensorRecord& record : manifest.tensors) load_whole(store, record);
    verify_store(folder.path(), manifest, 0, 1, 1);
    ShardLabel label;
    for (const ShardRecord& shard : manifest.shards)
      if (try_read_label(File::open_read(folder / shard.file), &label)) fuzz::expect(label.shard >= 0, "a negative shard");
    store.description();
  });
  return 0;
}
