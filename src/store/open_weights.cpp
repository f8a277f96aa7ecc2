// Which source a directory is.
#include "store/open_weights.h"

#include "base/log.h"
#include "store/quantize_source.h"
#include "store/store_reader.h"

namespace pq {

std::unique_ptr<WeightSource> open_weights(const std::string& directory, const std::vector<TensorSpec>& specs, const Recipe& recipe,
                                           Backend& backend) {
  if (is_store(directory)) {
    auto store = std::make_unique<StoreReader>(directory);
    for (const TensorSpec& spec : specs) store->info(spec);
    return store;
  }
  auto source = std::make_unique<QuantizingSource>(directory, specs, recipe, backend);
  for (const std::string& warning : source->warnings()) log_once(warning);
  return source;
}

}  // namespace pq
