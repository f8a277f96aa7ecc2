// Which source a directory is.
#include "store/open_weights.h"

#include "store/quantize_source.h"

namespace pq {

std::unique_ptr<WeightSource> open_weights(const std::string& directory, const std::vector<TensorSpec>& specs, const Recipe& recipe,
                                           Backend& backend) {
  return std::make_unique<QuantizingSource>(directory, specs, recipe, backend);
}

}  // namespace pq
