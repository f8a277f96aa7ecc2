// Manifests with a checksum that fits.
#pragma once

#include <string>

#include "store/manifest.h"
#include "store/quantizer.h"

namespace pq::fuzz {

// `json` without what stands behind its last member, sealed.
inline std::string sealed(std::string json) {
  while (!json.empty() && (json.back() == '\n' || json.back() == ' ')) json.pop_back();
  if (!json.empty() && json.back() == '}') json.pop_back();
  while (!json.empty() && (json.back() == '\n' || json.back() == ' ')) json.pop_back();
  return seal_manifest(json + " \n}");
}

}  // namespace pq::fuzz
