// Centroids by byte shuffles of sixteen entries, as many as the width has, and a choice between them by the upper bits of the index.
#pragma once

static constexpr bool kRawIndex = false;

struct Tables {
  Ints low[8];
  Ints high[8];
};

// `bias` is added to the low bytes.
template <int B>
PQ_INLINE Tables load_tables(const IntTable& table, int bias) {
  Tables tables;
  for (int i = 0; i < (B <= 5 ? 1 : 1 << (B - 5)); ++i) {
    tables.low[i] = add_bytes(repeat(table.low + 16 * i), all_bytes(bias));
    tables.high[i] = repeat(table.high + 16 * i);
  }
  return tables;
}

template <int B>
PQ_INLINE Ints pick(const Ints* table, Ints index) {
  if constexpr (B <= 5) {
    return shuffle(table[0], index);
  } else {
    return choose<B - 2>(index, pick<B - 1>(table, index), pick<B - 1>(table + (1 << (B - 6)), index));
  }
}
