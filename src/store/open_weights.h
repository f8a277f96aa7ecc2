// The weights of a model directory, whatever it is: a store, or a checkpoint that is quantised while it is read.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "store/policy.h"
#include "store/tensor_spec.h"
#include "store/weight_source.h"

namespace pq {

// A store is told by its manifest.json; `recipe` then says nothing and `backend` is not used. Otherwise the checkpoint is quantised
// by `recipe` on `backend`, which outlives the source.
std::unique_ptr<WeightSource> open_weights(const std::string& directory, const std::vector<TensorSpec>& specs, const Recipe& recipe,
                                           Backend& backend);

}  // namespace pq
