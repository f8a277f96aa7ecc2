// Centroids by VBMI: one permutation reads a table of 64 bytes, two registers hold the 128 of 8 bits.
#pragma once

// A permutation takes the low six bits of an index, and a table of sixteen entries is held four times.
static constexpr bool kRawIndex = true;

struct Tables {
  Ints low[2];
  Ints high[2];
};

// `bias` is added to the low bytes.
template <int B>
PQ_INLINE Tables load_tables(const IntTable& table, int bias) {
  Tables tables;
  for (int i = 0; i < 2; ++i) {
    tables.low[i] = add_bytes(B <= 5 ? repeat(table.low) : load_ints(table.low + 64 * i), all_bytes(bias));
    tables.high[i] = load_ints(table.high + 64 * i);
  }
  return tables;
}

template <int B>
PQ_INLINE Ints pick(const Ints* table, Ints index) {
  if constexpr (B == 8) {
    return _mm512_permutex2var_epi8(table[0], index, table[1]);
  } else {
    return _mm512_permutexvar_epi8(index, table[0]);
  }
}
