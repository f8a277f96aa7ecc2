// Formats by name, glob rules, canonical texts.
#include "store/policy.h"

#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <sstream>

#include "base/error.h"
#include "base/limits.h"
#include "base/utf8.h"

namespace pq {
namespace {

constexpr int kDefaultBits = 5;

bool matches(const std::string& glob, const std::string& name) { return fnmatch(glob.c_str(), name.c_str(), 0) == 0; }

}  // namespace

bool try_parse_encoding(std::string_view name, Encoding* encoding) {
  Encoding result;
  if (name.size() == 3 && name.substr(0, 2) == "pq" && name[2] >= '2' && name[2] <= '8') {
    result.format = WeightFormat::polar;
    result.bits = name[2] - '0';
  } else if (name == "int4" || name == "int4a") {
    result.format = WeightFormat::int4;
    result.zeros = name == "int4a";
  } else if (name == "bf16") {
    result.format = WeightFormat::bf16;
  } else if (name == "f32") {
    result.format = WeightFormat::f32;
  } else {
    return false;
  }
  *encoding = result;
  return true;
}

std::string encoding_name(const Encoding& encoding) {
  switch (encoding.format) {
    case WeightFormat::polar:
      return fmt::format("pq{}", encoding.bits);
    case WeightFormat::int4:
      return encoding.zeros ? "int4a" : "int4";
    case WeightFormat::bf16:
      return "bf16";
    case WeightFormat::f32:
      return encoding.dtype == DType::f32 ? "f32" : encoding.dtype == DType::bf16 ? "bf16 (kept)" : "f16 (kept)";
  }
  throw Error(ErrorKind::internal, "unknown weight format");
}

const char* encoding_names() { return "pq2 pq3 pq4 pq5 pq6 pq7 pq8 int4 int4a bf16 f32"; }

int64_t plane_row_bytes(const Encoding& encoding, int64_t cols, int plane) {
  const int64_t blocks = cols / kBlock;
  switch (encoding.format) {
    case WeightFormat::polar:
      return plane == 0 ? blocks * 16 * encoding.bits : plane == 1 ? blocks * 2 : 0;
    case WeightFormat::int4:
      return plane == 0 ? blocks * (kBlock / 2) : plane == 1 || encoding.zeros ? blocks * 2 : 0;
    case WeightFormat::bf16:
      return plane == 0 ? cols * 2 : 0;
    case WeightFormat::f32:
      return plane == 0 ? cols * dtype_bytes(encoding.dtype) : 0;
  }
  throw Error(ErrorKind::internal, "unknown weight format");
}

Policy::Policy(const Encoding& encoding) { rules_.push_back({"*", encoding, "--format"}); }

void Policy::add_rules(const std::string& text, const std::string& path) {
  std::istringstream lines(text);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    line.resize(std::min(line.size(), line.find('#')));
    std::istringstream words(line);
    std::string glob, format, extra;
    if (!(words >> glob)) continue;
    const std::string where = fmt::format("{}:{}", path, number);
    if (!(words >> format) || (words >> extra)) throw Error(ErrorKind::input, where + ": a rule is \"GLOB FORMAT\"");
    if (static_cast<int64_t>(glob.size()) > kMaxGlobBytes)
      throw Error(ErrorKind::input, fmt::format("{}: a glob of {} bytes, at most {} are read", where, glob.size(), kMaxGlobBytes));
    Encoding encoding;
    if (!try_parse_encoding(format, &encoding))
      throw Error(ErrorKind::input, fmt::format("{}: unknown format \"{}\"; known are {}", where, shown(format), encoding_names()));
    if (static_cast<int64_t>(rules_.size()) >= kMaxPolicyRules)
      throw Error(ErrorKind::input, fmt::format("{}: more than {} rules, the limit", where, kMaxPolicyRules));
    rules_.push_back({glob, encoding, where});
  }
}

Policy::Choice Policy::choose(const std::string& name) const {
  for (auto rule = rules_.rbegin(); rule != rules_.rend(); ++rule)
    if (matches(rule->glob, name)) return {rule->encoding, true};
  return {{WeightFormat::polar, kDefaultBits, false, DType::f32}, false};
}

void Policy::check_rules(const std::vector<TensorSpec>& specs) const {
  for (const Rule& rule : rules_) {
    bool matched = false;
    for (const TensorSpec& spec : specs) matched = matched || (spec.matrix && matches(rule.glob, spec.name));
    if (!matched)
      throw Error(ErrorKind::input, fmt::format("{}: \"{}\" matches no matrix of this model; names look like "
                                                "layers.0.mlp.down_proj.weight, small tensors are always kept",
                                                rule.where, shown(rule.glob)));
  }
}

std::string Policy::text() const {
  std::string text;
  for (const Rule& rule : rules_) text += fmt::format("{}{} {}", text.empty() ? "" : "; ", rule.glob, encoding_name(rule.encoding));
  return text.empty() ? fmt::format("default pq{}", kDefaultBits) : text;
}

std::string Recipe::text() const {
  return fmt::format("policy: {}; table: {}; scale search: {}; through: {}", policy.text(), table_kind_name(table),
                     scale_search ? "yes" : "no", through_bits > 0 ? fmt::format("pq{}", through_bits) : "none");
}

bool try_parse_table(std::string_view name, TableKind* kind) {
  for (const TableKind candidate : {TableKind::converged, TableKind::published, TableKind::bounded}) {
    if (name == table_kind_name(candidate)) {
      *kind = candidate;
      return true;
    }
  }
  return false;
}

}  // namespace pq
