// What every matrix of a model becomes: formats, the policy that maps names to them, and the recipe of a quantisation job. The work
// is left to quantizer.h.
//
// A policy file has one rule a line, "GLOB FORMAT"; '#' starts a comment; a later line wins over an earlier one. GLOB is matched
// against whole canonical names ("layers.3.mlp.down_proj.weight", "embed_tokens.weight") with * ? and [...] of the shell; * crosses
// dots.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/tensor.h"
#include "kernels/backend.h"
#include "kernels/codebook.h"
#include "store/tensor_spec.h"

namespace pq {

// How one tensor is represented in a store and in memory.
struct Encoding {
  WeightFormat format = WeightFormat::bf16;
  int bits = 0;              // polar: 2..8
  bool zeros = false;        // int4: asymmetric
  DType dtype = DType::f32;  // format f32 only: element type on disk (f32, bf16, f16); it is loaded as float

  bool operator==(const Encoding&) const = default;
};

// "pq2".."pq8", "int4" (symmetric), "int4a" (asymmetric), "bf16", "f32". False when `name` is none of them.
bool try_parse_encoding(std::string_view name, Encoding* encoding);
// The inverse; kept tensors read "bf16 (kept)", "f16 (kept)", "f32".
std::string encoding_name(const Encoding& encoding);
// The spellings try_parse_encoding takes, for messages.
const char* encoding_names();

// Bytes one row of `cols` inputs takes in plane 0 (data), 1 (scales), 2 (zeros); 0 for a plane the encoding has not.
int64_t plane_row_bytes(const Encoding& encoding, int64_t cols, int plane);
inline constexpr int kPlanes = 3;

class Policy {
 public:
  struct Choice {
    Encoding encoding;
    bool asked = false;  // a rule or --format names it; else it is the default pq5
  };

  // Every matrix pq5.
  Policy() = default;
  // Every matrix `encoding`, asked for.
  explicit Policy(const Encoding& encoding);
  // Appends the rules of a policy file. Throws ErrorKind::input naming path and line.
  void add_rules(const std::string& text, const std::string& path);

  Choice choose(const std::string& name) const;
  // Throws ErrorKind::input when a rule matches no matrix of `specs`: a misspelt glob would otherwise pass unseen.
  void check_rules(const std::vector<TensorSpec>& specs) const;
  // Canonical text, equal for equal rules: "* pq5; *.down_proj.* pq6".
  std::string text() const;

 private:
  struct Rule {
    std::string glob;
    Encoding encoding;
    std::string where;  // "path:line"
  };
  std::vector<Rule> rules_;
};

struct Recipe {
  Policy policy;
  TableKind table = TableKind::converged;
  bool scale_search = true;
  int through_bits = 0;  // n > 0: a matrix of another format than pq goes through pq n codes and BF16 first

  // Canonical text; part of a store's fingerprint.
  std::string text() const;
};

// "converged", "published", "bounded". False when `name` is none of them.
bool try_parse_table(std::string_view name, TableKind* kind);

}  // namespace pq
