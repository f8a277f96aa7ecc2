// Merges by a priority queue over a linked list of symbols.
#include "text/bpe.h"

#include <algorithm>

#include "base/error.h"

namespace pq {
namespace {

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// std heaps keep the greatest element in front.
bool goes_later(const Bpe::Scratch::Candidate& a, const Bpe::Scratch::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.at > b.at;
}

}  // namespace

Bpe::Bpe(const std::array<int32_t, 256>& byte_ids, const std::vector<MergeRule>& merges) : byte_ids_(byte_ids) {
  targets_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank)
    targets_[pair_key(merges[rank].left, merges[rank].right)] = {static_cast<int32_t>(rank), merges[rank].merged};
}

const Bpe::Target* Bpe::try_find(int32_t left, int32_t right) const {
  const auto found = targets_.find(pair_key(left, right));
  return found == targets_.end() ? nullptr : &found->second;
}

void Bpe::encode(std::string_view word, Scratch* scratch, std::vector<int32_t>* out) const {
  auto& symbols = scratch->symbols;
  auto& candidates = scratch->candidates;
  symbols.clear();
  candidates.clear();

  const auto count = static_cast<int32_t>(word.size());
  for (int32_t i = 0; i < count; ++i) {
    const int32_t id = byte_ids_[static_cast<unsigned char>(word[i])];
    require(id >= 0, "a byte without a token reached the merges");
    symbols.push_back({id, i - 1, i + 1 < count ? i + 1 : -1});
  }
  const auto add_candidate = [&](int32_t at) {
    if (at < 0 || symbols[at].next < 0) return;
    const Target* target = try_find(symbols[at].id, symbols[symbols[at].next].id);
    if (target != nullptr) candidates.push_back({target->rank, at});
  };
  for (int32_t i = 0; i < count; ++i) add_candidate(i);
  std::make_heap(candidates.begin(), candidates.end(), goes_later);

  while (!candidates.empty()) {
    std::pop_heap(candidates.begin(), candidates.end(), goes_later);
    const Scratch::Candidate best = candidates.back();
    candidates.pop_back();
    Scratch::Symbol& left = symbols[best.at];
    if (left.id < 0 || left.next < 0) continue;
    Scratch::Symbol& right = symbols[left.next];
    const Target* target = try_find(left.id, right.id);
    // One of the two has changed since the candidate was queued.
    if (target == nullptr || target->rank != best.rank) continue;

    left.id = target->merged;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].previous = best.at;
    for (const int32_t at : {left.previous, best.at}) {
      const size_t before = candidates.size();
      add_candidate(at);
      if (candidates.size() > before) std::push_heap(candidates.begin(), candidates.end(), goes_later);
    }
  }
  for (int32_t i = count > 0 ? 0 : -1; i >= 0; i = symbols[i].next) out->push_back(symbols[i].id);
}

}  // namespace pq
