// Byte-pair encoding of one word: from bytes to token ids by ranked merges. Cutting text into words is left to pre_tokenizer.h,
// reading the tables to tokenizer_file.h.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace pq {

// Adjacent tokens `left` and `right` may become `merged`. The rank of a merge is its index; lower ranks go first.
struct MergeRule {
  int32_t left;
  int32_t right;
  int32_t merged;
};

// Immutable after construction; encode may be called from several threads, each with its own Scratch.
class Bpe {
 public:
  // Working memory of encode, kept between calls only to save allocations.
  struct Scratch {
    struct Symbol {
      int32_t id;  // negative once merged into the symbol before it
      int32_t previous;
      int32_t next;
    };
    struct Candidate {
      int32_t rank;
      int32_t at;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> candidates;
  };

  // byte_ids[b] is the id of the one-byte token b, or -1. Of two rules for one pair the later is used.
  Bpe(const std::array<int32_t, 256>& byte_ids, const std::vector<MergeRule>& merges);

  // Appends the ids of `word` to `out`: the lowest-ranked pair is merged first, the leftmost of equals, until no rule applies.
  // Time O(n log n) in the bytes of the word. REQUIRES: fewer than 2^31 bytes, each of which has an id.
  void encode(std::string_view word, Scratch* scratch, std::vector<int32_t>* out) const;

 private:
  struct Target {
    int32_t rank;
    int32_t merged;
  };
  const Target* try_find(int32_t left, int32_t right) const;

  std::array<int32_t, 256> byte_ids_;
  std::unordered_map<uint64_t, Target> targets_;
};

}  // namespace pq
