// The JSON side of tokenizer_file.h.
#include "text/tokenizer_file.h"

#include <algorithm>
#include <filesystem>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string_view>
#include <unordered_map>

#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"
#include "base/strict_json.h"
#include "base/utf8.h"
#include "text/unicode.h"

namespace pq {
namespace {

using Json = nlohmann::json;

// One JSON file: names it in every error.
struct Source {
  std::string path;

  [[noreturn]] void fail(const std::string& what) const { throw Error(ErrorKind::input, path + ": " + what); }

  [[noreturn]] void refuse(const std::string& where, const Json& value, const std::string& accepted) const {
    const std::string found = value.dump(-1, ' ', false, Json::error_handler_t::replace);
    fail(where + " is " + in_quotes(found) + ", only " + accepted + " is implemented");
  }

  Json parse() const {
    Json root = parse_strict_json(read_text_file(path, kMaxTokenizerBytes), path);
    if (!root.is_object()) fail(std::string("is a JSON ") + root.type_name() + ", an object is needed");
    return root;
  }

  // The member `key` of `object`, null when absent.
  static const Json& member(const Json& object, const char* key) {
    static const Json null;
    const auto found = object.find(key);
    return found == object.end() ? null : *found;
  }

  const Json& object_at(const Json& parent, const char* key, const std::string& where) const {
    const Json& value = member(parent, key);
    if (!value.is_object()) fail(where + " is " + value.type_name() + ", an object is needed");
    return value;
  }

  const std::string& string_at(const Json& parent, const char* key, const std::string& where) const {
    const Json& value = member(parent, key);
    if (!value.is_string()) fail(where + "." + key + " is " + value.type_name() + ", a string is needed");
    return value.get_ref<const std::string&>();
  }

  bool flag_at(const Json& parent, const char* key, const std::string& where) const {
    const Json& value = member(parent, key);
    if (value.is_null()) return false;
    if (!value.is_boolean()) fail(where + "." + key + " is " + value.type_name() + ", true or false is needed");
    return value.get<bool>();
  }

  int32_t id_of(const Json& value, const std::string& content) const {
    if (!value.is_number_integer()) fail("the id of " + in_quotes(content) + " is " + value.type_name() + ", an integer is needed");
    const bool in_range = value.is_number_unsigned() ? value.get<uint64_t>() < static_cast<uint64_t>(kMaxTokenIds) : false;
    if (!in_range)
      fail("the id of " + in_quotes(content) + " is " + json_excerpt(value) + ", ids are 0 to " + std::to_string(kMaxTokenIds - 1));
    return value.get<int32_t>();
  }

  void require_absent(const Json& parent, const char* key, const std::string& where) const {
    const Json& value = member(parent, key);
    if (!value.is_null()) refuse(where + key, value, "null");
  }

  void require_type(const Json& value, const std::string& where, const std::string& type) const {
    const Json& found = value.is_object() ? member(value, "type") : value;
    if (found != Json(type)) refuse(where + " type", found, in_quotes(type));
  }

  void require_known_keys(const Json& object, const std::string& where, std::initializer_list<std::string_view> known) const {
    for (const auto& item : object.items())
      if (std::find(known.begin(), known.end(), item.key()) == known.end())
        fail(where + " has the field " + in_quotes(item.key()) + ", which pq does not know");
  }
};

// GPT-2 writes bytes as characters: printable ones of Latin-1 as themselves, the others as U+0100 and up in byte order.
class ByteLetters {
 public:
  ByteLetters() {
    byte_of_.fill(-1);
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      letter_of_[byte] = printable ? static_cast<char32_t>(byte) : next++;
      byte_of_[letter_of_[byte]] = static_cast<int16_t>(byte);
    }
  }

  std::string letter_of(int byte) const {
    std::string letter;
    append_utf8(letter_of_[byte], &letter);
    return letter;
  }

  // A token with any other character stands for itself, as in Hugging Face's decoder; no merge can produce it.
  std::string bytes_of(std::string_view letters) const {
    std::string out;
    for (size_t at = 0; at < letters.size();) {
      const Utf8Unit unit = next_utf8(letters.substr(at));
      const char32_t letter = decode_utf8(letters.substr(at, unit.bytes));
      if (letter >= byte_of_.size() || byte_of_[letter] < 0) return std::string(letters);
      out += static_cast<char>(byte_of_[letter]);
      at += unit.bytes;
    }
    return out;
  }

 private:
  std::array<char32_t, 256> letter_of_;
  std::array<int16_t, 0x144> byte_of_;
};

// Makes the table of tokens reach `id`. A few bytes of a file must not ask for a table of millions: `expected` ids and
// kMaxUnusedTokenIds more are believed.
void make_room(const Source& source, int32_t id, size_t expected, TokenizerFile* file) {
  if (static_cast<size_t>(id) < file->tokens.size()) return;
  if (id >= static_cast<int64_t>(expected) + kMaxUnusedTokenIds)
    source.fail("the id " + std::to_string(id) + " leaves more than " + std::to_string(kMaxUnusedTokenIds) +
                " ids before it without a token, the limit");
  file->tokens.resize(id + size_t{1});
}

bool occurs_in_utf8(int byte) { return byte != 0xC0 && byte != 0xC1 && byte < 0xF5; }

using Vocabulary = std::unordered_map<std::string_view, int32_t>;

Vocabulary read_vocabulary(const Source& source, const Json& model, TokenizerFile* file) {
  const Json& entries = source.object_at(model, "vocab", "model.vocab");
  Vocabulary vocabulary;
  vocabulary.reserve(entries.size());
  const ByteLetters letters;
  for (const auto& item : entries.get_ref<const Json::object_t&>()) {
    const std::string& letter_text = item.first;
    if (letter_text.empty()) source.fail("model.vocab has an empty token");
    const int32_t id = source.id_of(item.second, letter_text);
    make_room(source, id, entries.size(), file);
    if (!file->tokens[id].empty())
      source.fail("id " + std::to_string(id) + " belongs to two tokens, " + in_quotes(file->tokens[id]) + " and " +
                  in_quotes(letter_text));
    file->tokens[id] = letters.bytes_of(letter_text);
    vocabulary.emplace(letter_text, id);
  }
  for (int byte = 0; byte < 256; ++byte) {
    const auto found = vocabulary.find(letters.letter_of(byte));
    file->byte_ids[byte] = found == vocabulary.end() ? -1 : found->second;
    if (file->byte_ids[byte] < 0 && occurs_in_utf8(byte))
      source.fail("model.vocab has no token for byte " + std::to_string(byte) + "; all bytes of UTF-8 are needed");
  }
  return vocabulary;
}

void read_merges(const Source& source, const Json& model, const Vocabulary& vocabulary, TokenizerFile* file) {
  const Json& merges = Source::member(model, "merges");
  if (!merges.is_array()) source.fail(std::string("model.merges is ") + merges.type_name() + ", an array is needed");
  file->merges.reserve(merges.size());
  std::string merged;
  for (const Json& merge : merges) {
    const std::string where = "model.merges[" + std::to_string(file->merges.size()) + "]";
    std::string_view left;
    std::string_view right;
    if (merge.is_string()) {
      const std::string_view pair = merge.get_ref<const std::string&>();
      const size_t space = pair.find(' ');
      if (space == std::string_view::npos || pair.find(' ', space + 1) != std::string_view::npos)
        source.fail(where + " is " + in_quotes(pair) + ", two tokens and one space are needed");
      left = pair.substr(0, space);
      right = pair.substr(space + 1);
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      left = merge[0].get_ref<const std::string&>();
      right = merge[1].get_ref<const std::string&>();
    } else {
      source.fail(where + " is neither a string nor a pair of strings");
    }
    const auto id_in_vocabulary = [&](std::string_view token) {
      const auto found = vocabulary.find(token);
      if (found == vocabulary.end())
        source.fail(where + " (" + in_quotes(left) + " + " + in_quotes(right) + ") needs the token " + in_quotes(token) +
                    ", which model.vocab lacks");
      return found->second;
    };
    merged.assign(left).append(right);
    file->merges.push_back({id_in_vocabulary(left), id_in_vocabulary(right), id_in_vocabulary(merged)});
  }
}

void read_model(const Source& source, const Json& root, TokenizerFile* file) {
  const Json& model = source.object_at(root, "model", "model");
  source.require_type(model, "model", "BPE");
  source.require_known_keys(model, "model",
                            {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
                             "byte_fallback", "ignore_merges", "vocab", "merges"});
  const Json& dropout = Source::member(model, "dropout");
  if (!dropout.is_null() && dropout != 0) source.refuse("model.dropout", dropout, "0");
  source.require_absent(model, "unk_token", "model.");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (Source::member(model, key) != Json("")) source.require_absent(model, key, "model.");
  for (const char* key : {"byte_fallback", "ignore_merges"})
    if (source.flag_at(model, key, "model")) source.refuse(std::string("model.") + key, Json(true), "false");

  const Vocabulary vocabulary = read_vocabulary(source, model, file);
  read_merges(source, model, vocabulary, file);
}

void read_pipeline(const Source& source, const Json& root, TokenizerFile* file) {
  source.require_known_keys(
      root, "the file",
      {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model"});
  source.require_absent(root, "truncation", "");
  source.require_absent(root, "padding", "");

  const Json& normalizer = Source::member(root, "normalizer");
  if (!normalizer.is_null()) source.require_type(normalizer, "normalizer", "NFC");
  file->normalize_nfc = !normalizer.is_null();

  const Json& sequence = Source::member(root, "pre_tokenizer");
  source.require_type(sequence, "pre_tokenizer", "Sequence");
  const Json& steps = Source::member(sequence, "pretokenizers");
  if (!steps.is_array() || steps.size() != 2) source.fail("pre_tokenizer.pretokenizers is not the pair [Split, ByteLevel]");
  source.require_type(steps[0], "pre_tokenizer.pretokenizers[0]", "Split");
  source.require_type(steps[1], "pre_tokenizer.pretokenizers[1]", "ByteLevel");
  const Json& behavior = Source::member(steps[0], "behavior");
  if (behavior != Json("Isolated")) source.refuse("Split behavior", behavior, "'Isolated'");
  if (source.flag_at(steps[0], "invert", "Split")) source.refuse("Split invert", Json(true), "false");
  file->split_pattern = source.string_at(source.object_at(steps[0], "pattern", "Split pattern"), "Regex", "Split pattern");
  // Both are true where the file leaves them out.
  for (const char* key : {"add_prefix_space", "use_regex"})
    if (Source::member(steps[1], key) != Json(false))
      source.refuse(std::string("ByteLevel ") + key, Source::member(steps[1], key), "false");

  const Json& post_processor = Source::member(root, "post_processor");
  if (!post_processor.is_null()) source.require_type(post_processor, "post_processor", "ByteLevel");
  source.require_type(Source::member(root, "decoder"), "decoder", "ByteLevel");
}

// Checks one added token against the vocabulary and those read before, and enters it in both tables.
void add_token(const Source& source, const Json& entry, const Json& id_value, TokenizerFile* file) {
  if (!entry.is_object()) source.fail(std::string("an added token is ") + entry.type_name() + ", an object is needed");
  AddedToken token;
  token.content = source.string_at(entry, "content", "an added token");
  if (token.content.empty() || static_cast<int64_t>(token.content.size()) > kMaxAddedTokenBytes)
    source.fail("the added token " + in_quotes(token.content) + " has " + std::to_string(token.content.size()) + " bytes, 1 to " +
                std::to_string(kMaxAddedTokenBytes) + " are allowed");
  token.id = source.id_of(id_value, token.content);
  const std::string where = "the added token " + in_quotes(token.content);
  for (const char* key : {"single_word", "lstrip", "rstrip", "normalized"})
    if (source.flag_at(entry, key, where)) source.refuse(where + " " + key, Json(true), "false");
  token.special = source.flag_at(entry, "special", where);

  for (AddedToken& known : file->added) {
    if (known.content != token.content && known.id != token.id) continue;
    if (known.content != token.content || known.id != token.id)
      source.fail(where + " has id " + std::to_string(token.id) + ", but " + in_quotes(known.content) + " has id " +
                  std::to_string(known.id));
    known.special = token.special;
    return;
  }
  if (static_cast<int64_t>(file->added.size()) == kMaxAddedTokens)
    source.fail("more than " + std::to_string(kMaxAddedTokens) + " added tokens");
  make_room(source, token.id, file->tokens.size(), file);
  std::string& bytes = file->tokens[token.id];
  if (!bytes.empty() && bytes != token.content)
    source.fail(where + " has id " + std::to_string(token.id) + ", which belongs to " + in_quotes(bytes) + " in model.vocab");
  bytes = token.content;
  file->added.push_back(std::move(token));
}

void read_added_tokens(const Source& source, const Json& root, TokenizerFile* file) {
  const Json& added = Source::member(root, "added_tokens");
  if (added.is_null()) return;
  if (!added.is_array()) source.fail(std::string("added_tokens is ") + added.type_name() + ", an array is needed");
  for (const Json& entry : added) add_token(source, entry, entry.is_object() ? Source::member(entry, "id") : Json(), file);
}

void read_tokenizer_config(const Source& source, TokenizerFile* file) {
  const Json root = source.parse();
  for (const char* key : {"add_bos_token", "add_eos_token"})
    if (source.flag_at(root, key, "the file")) source.refuse(key, Json(true), "false");
  const Json& decoder = Source::member(root, "added_tokens_decoder");
  if (decoder.is_null()) return;
  if (!decoder.is_object()) source.fail(std::string("added_tokens_decoder is ") + decoder.type_name() + ", an object is needed");
  for (const auto& item : decoder.items()) {
    const std::string& key = item.key();
    const bool is_number =
        !key.empty() && key.size() <= 9 && std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!is_number) source.fail("added_tokens_decoder has the key " + in_quotes(key) + ", an id is needed");
    add_token(source, item.value(), Json(static_cast<uint64_t>(std::stoul(key))), file);
  }
}

void check_added_tokens_are_unique(const Source& source, const TokenizerFile& file) {
  Vocabulary added;
  for (const AddedToken& token : file.added) added.emplace(token.content, token.id);
  for (size_t id = 0; id < file.tokens.size(); ++id) {
    const auto found = added.find(file.tokens[id]);
    if (found != added.end() && static_cast<size_t>(found->second) != id)
      source.fail("the added token " + in_quotes(found->first) + " has id " + std::to_string(found->second) +
                  ", but model.vocab gives it " + std::to_string(id));
  }
}

}  // namespace

TokenizerFile load_tokenizer_file(const std::string& path) {
  const std::filesystem::path given(path);
  TokenizerFile file;
  file.path = (is_directory(path) ? given / "tokenizer.json" : given).string();

  const Source source{file.path};
  const Json root = source.parse();
  read_pipeline(source, root, &file);
  read_model(source, root, &file);
  read_added_tokens(source, root, &file);
  const Source config{(std::filesystem::path(file.path).parent_path() / "tokenizer_config.json").string()};
  if (path_exists(config.path)) read_tokenizer_config(config, &file);
  check_added_tokens_are_unique(source, file);
  std::sort(file.added.begin(), file.added.end(), [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  return file;
}

}  // namespace pq
