// What `--plan` says: which part of the model and how much memory each rank would have, from a store, a checkpoint, a bare
// config.json or the name of a published size. Loads nothing.
#pragma once

#include <string>

#include "app/options.h"

namespace pq {

// The report for `ranks` ranks, as text or as one JSON object. Throws ErrorKind::usage for an illegal rank count.
std::string plan_report(const ModelFlags& flags, int ranks, bool json);

}  // namespace pq
