// Implementation of strict_json.h over nlohmann's parser with callbacks.
#include "store/strict_json.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "base/error.h"

namespace pq {

using nlohmann::json;

json parse_strict_json(std::string_view text, const std::string& path) {
  std::vector<std::set<std::string>> keys;
  const auto callback = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth > kMaxJsonDepth)
      throw Error(ErrorKind::input, fmt::format("{} nests deeper than {} levels of JSON", path, kMaxJsonDepth));
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second)
      throw Error(ErrorKind::input, fmt::format("{} repeats the key {}", path, parsed.dump()));
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), callback);
  } catch (const json::exception& e) {
    throw Error(ErrorKind::input, fmt::format("{} is not valid JSON: {}", path, e.what()));
  }
}

const json& json_member(const json& object, const char* key, const std::string& where) {
  if (!object.is_object()) throw Error(ErrorKind::input, fmt::format("{} is not a JSON object", where));
  const auto it = object.find(key);
  if (it == object.end()) throw Error(ErrorKind::input, fmt::format("{} lacks \"{}\"", where, key));
  return *it;
}

namespace {

[[noreturn]] void wrong_type(const json& value, const std::string& where, const char* wanted) {
  throw Error(ErrorKind::input, fmt::format("{} is {}, not {}", where, value.type_name(), wanted));
}

std::string member_name(const std::string& where, const char* key) { return fmt::format("{}: \"{}\"", where, key); }

}  // namespace

std::string json_string(const json& object, const char* key, const std::string& where) {
  const json& value = json_member(object, key, where);
  if (!value.is_string()) wrong_type(value, member_name(where, key), "a string");
  return value.get<std::string>();
}

bool json_bool(const json& object, const char* key, const std::string& where) {
  const json& value = json_member(object, key, where);
  if (!value.is_boolean()) wrong_type(value, member_name(where, key), "true or false");
  return value.get<bool>();
}

int64_t json_as_integer(const json& value, const std::string& where, int64_t low, int64_t high) {
  if (!value.is_number_integer()) wrong_type(value, where, "an integer");
  const bool too_big = value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  const int64_t number = too_big ? INT64_MAX : value.get<int64_t>();
  if (too_big || number < low || number > high)
    throw Error(ErrorKind::input, fmt::format("{} is {}, outside {}..{}", where, value.dump(), low, high));
  return number;
}

int64_t json_integer(const json& object, const char* key, const std::string& where, int64_t low, int64_t high) {
  return json_as_integer(json_member(object, key, where), member_name(where, key), low, high);
}

double json_number(const json& object, const char* key, const std::string& where) {
  const json& value = json_member(object, key, where);
  if (!value.is_number()) wrong_type(value, member_name(where, key), "a number");
  return value.get<double>();
}

const json& json_array(const json& object, const char* key, const std::string& where) {
  const json& value = json_member(object, key, where);
  if (!value.is_array()) wrong_type(value, member_name(where, key), "an array");
  return value;
}

const json& json_object(const json& object, const char* key, const std::string& where) {
  const json& value = json_member(object, key, where);
  if (!value.is_object()) wrong_type(value, member_name(where, key), "an object");
  return value;
}

}  // namespace pq
