// A tree built from nlohmann's events, so that limits hold before memory is taken.
#include "base/strict_json.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "base/error.h"

namespace pq {

using nlohmann::json;

namespace {

class TreeBuilder : public nlohmann::json_sax<json> {
 public:
  TreeBuilder(const std::string& path, size_t bytes, int64_t max_values) : path_(path), bytes_(bytes), max_values_(max_values) {}

  bool null() override { return add(nullptr), true; }
  bool boolean(bool value) override { return add(value), true; }
  bool number_integer(number_integer_t value) override { return add(value), true; }
  bool number_unsigned(number_unsigned_t value) override { return add(value), true; }
  bool number_float(number_float_t value, const string_t&) override { return add(value), true; }
  bool string(string_t& value) override { return add(std::move(value)), true; }
  bool binary(binary_t&) override { return false; }  // not in JSON
  bool start_object(size_t) override { return open(json::object()), true; }
  bool start_array(size_t) override { return open(json::array()), true; }
  bool end_object() override { return open_.pop_back(), true; }
  bool end_array() override { return open_.pop_back(), true; }

  bool key(string_t& name) override {
    count();
    auto& members = open_.back()->get_ref<json::object_t&>();
    const auto [member, is_new] = members.emplace(std::move(name), nullptr);
    if (!is_new) fail(" repeats the key " + json_excerpt(json(member->first)));
    slot_ = &member->second;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    constexpr int kNumberOutOfRange = 406;
    if (error.id == kNumberOutOfRange) fail(" holds a number that no double can represent");
    fail(" is not JSON at byte " + std::to_string(position) + " of " + std::to_string(bytes_));
  }

  json take() { return std::move(root_); }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw Error(ErrorKind::input, path_ + what); }

  void count() {
    if (++values_ > max_values_) fail(" holds more than " + std::to_string(max_values_) + " JSON values, the limit");
  }

  json* add(json&& value) {
    count();
    json* place = open_.empty() ? &root_ : open_.back()->is_object() ? slot_ : nullptr;
    if (place != nullptr) {
      *place = std::move(value);
      return place;
    }
    auto& elements = open_.back()->get_ref<json::array_t&>();
    return &elements.emplace_back(std::move(value));
  }

  void open(json&& value) {
    if (open_.size() >= static_cast<size_t>(kMaxJsonDepth))
      fail(": nested deeper than " + std::to_string(kMaxJsonDepth) + " levels of JSON, the limit");
    open_.push_back(add(std::move(value)));
  }

  const std::string& path_;
  size_t bytes_;
  int64_t max_values_;
  int64_t values_ = 0;
  json root_;
  // The containers that are not closed yet: a parent gets no new element while a child of it is open, so these stay valid.
  std::vector<json*> open_;
  json* slot_ = nullptr;  // of the key read last
};

}  // namespace

json parse_strict_json(std::string_view text, const std::string& path, int64_t max_values) {
  TreeBuilder builder(path, text.size(), max_values);
  json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

std::string json_excerpt(const json& value) {
  constexpr size_t kShownBytes = 80;
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > kShownBytes) text.replace(kShownBytes, std::string::npos, "...");
  return text;
}

const json& json_member(const json& object, const char* key, const std::string& where) {
  if (!object.is_object()) throw Error(ErrorKind::input, where + " is not a JSON object");
  const auto it = object.find(key);
  if (it == object.end()) throw Error(ErrorKind::input, where + " lacks \"" + key + "\"");
  return *it;
}

namespace {

[[noreturn]] void wrong_type(const json& value, const std::string& where, const char* wanted) {
  throw Error(ErrorKind::input, where + " is " + value.type_name() + ", not " + wanted);
}

std::string member_name(const std::string& where, const char* key) { return where + ": \"" + key + "\""; }

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
    throw Error(ErrorKind::input, where + " is " + value.dump() + ", outside " + std::to_string(low) + ".." + std::to_string(high));
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
