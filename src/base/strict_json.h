// JSON from files that others wrote: parsed with limits on depth and number of values and with duplicate keys refused, and read
// field by field with the path of the file and the key in every error. What the fields mean is left to the callers.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "base/limits.h"

namespace pq {

// Throws ErrorKind::input naming `path` when `text` is not JSON, nests deeper than kMaxJsonDepth, holds more than `max_values`
// values and keys, or repeats a key in an object.
nlohmann::json parse_strict_json(std::string_view text, const std::string& path, int64_t max_values = kMaxJsonValues);

// A JSON string or any value for an error message: at most 80 bytes of it.
std::string json_excerpt(const nlohmann::json& value);

// The member `key` of the object `object`; `where` names the object in errors ("path: tensors[3]"). Each throws ErrorKind::input
// when the member is absent or of another type; integers must lie in [low, high].
const nlohmann::json& json_member(const nlohmann::json& object, const char* key, const std::string& where);
std::string json_string(const nlohmann::json& object, const char* key, const std::string& where);
bool json_bool(const nlohmann::json& object, const char* key, const std::string& where);
int64_t json_integer(const nlohmann::json& object, const char* key, const std::string& where, int64_t low, int64_t high);
double json_number(const nlohmann::json& object, const char* key, const std::string& where);
const nlohmann::json& json_array(const nlohmann::json& object, const char* key, const std::string& where);
const nlohmann::json& json_object(const nlohmann::json& object, const char* key, const std::string& where);

// The value itself as an integer in [low, high].
int64_t json_as_integer(const nlohmann::json& value, const std::string& where, int64_t low, int64_t high);

}  // namespace pq
