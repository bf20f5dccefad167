// One row times the K formats with AVX-512: each word is unpacked once and stays in a register between the column sums
// and the products. Same operations in the same order as the tiles of widened groups. For linear_packed_avx512.h only.
#pragma once
#include <immintrin.h>

#include <utility>

#include "linear_tile_avx512.h"

namespace tampu::detail {
namespace {

constexpr bool is_k_format(QType q) { return q == QType::Q4_K || q == QType::Q5_K || q == QType::Q6_K; }

template <int kLeft>
inline __m512i shift_left(__m512i v) {
  if constexpr (kLeft > 0) return _mm512_slli_epi16(v, kLeft);
  if constexpr (kLeft < 0) return _mm512_srli_epi16(v, -kLeft);
  return v;
}

// word(q, h) as WidenedWords has it, of group J of a packed block.
template <QType Q, int J>
inline __m512i unpack_word(const uint8_t* block, int q, int h) {
  const auto load = [&](size_t begin, int word) { return load_bytes(block + begin + size_t(word + q) * kWordBytes + 64 * h); };
  constexpr size_t kQuants = (Q == QType::Q6_K ? 2 : 4) * kPanel;
  if constexpr (Q == QType::Q6_K) {
    const __m512i v = load(kQuants, J / 4 * 16 + J % 2 * 8);
    const __m512i upper = shift_left<4 - J % 4 * 2>(load(kQuants, 32 + J / 4 * 8));   // two bits, to the fifth and sixth
    const __m512i four = J % 4 / 2 == 0 ? low_nibbles(v) : high_nibbles(v);
    const __m512i six = _mm512_or_si512(four, _mm512_and_si512(upper, _mm512_set1_epi8(0x30)));
    return _mm512_sub_epi8(six, _mm512_set1_epi8(32));
  } else {
    const __m512i v = load(kQuants, 3 + (Q == QType::Q5_K ? 8 : 0) + J / 2 * 8);
    const __m512i four = J % 2 == 0 ? low_nibbles(v) : high_nibbles(v);
    if constexpr (Q == QType::Q4_K) return four;
    const __m512i fifth = shift_left<4 - J>(load(kQuants, 3));
    return _mm512_or_si512(four, _mm512_and_si512(fifth, _mm512_set1_epi8(16)));
  }
}

struct RegisterWords {
  __m512i w[8][2];
  __m512i word(int q, int h) const { return w[q][h]; }
  static __m512i start(const uint8_t*) { return _mm512_setzero_si512(); }
};

template <QType Q, Precision P, int J>
[[gnu::always_inline]] inline void one_row_group(const uint8_t* block, GroupScales& group, const uint8_t* row,
                                                 __m512 (*sums)[2]) {
  RegisterWords words;
  ColumnSums columns[2];   // of the halves of Q6_K; else the first is of the group
  TAMPU_UNROLL for (int q = 0; q < 8; ++q) {
    TAMPU_UNROLL for (int h = 0; h < 2; ++h) {
      words.w[q][h] = unpack_word<Q, J>(block, q, h);
      columns[Q == QType::Q6_K ? q / 4 : 0].add(h, words.w[q][h]);
    }
  }
  if constexpr (Q == QType::Q6_K) {
    store_sum_of_halves(group, columns[0], columns[1]);
    tile_group<1, GroupKind::Halves, P>(words, group, &row, sums);
  } else {
    store_scaled_sum(group, {_mm512_load_ps(group.scale), _mm512_load_ps(group.scale + 16)}, columns[0]);
    tile_group<1, GroupKind::Minimum, P>(words, group, &row, sums);
  }
}

template <QType Q>
inline void expand_block_scales(const uint8_t* block, GroupScales* out) {
  if constexpr (Q == QType::Q6_K) {
    expand_k6_scales(block + 2 * kPanel + 48 * kWordBytes, load_halves(block), out);
  } else {
    const Columns d = load_halves(block), dmin = load_halves(block + 2 * kPanel);
    expand_six_bit_scales<false>(block + 4 * kPanel, d, dmin, out);
    expand_six_bit_scales<true>(block + 4 * kPanel, d, dmin, out + 4);
  }
}

// As a PackedTile; the scales are made here, block by block.
template <QType Q, Precision P>
void one_row_tile(const uint8_t* packed, size_t block_bytes, const GroupScales*, int num_groups, const uint8_t* row,
                  size_t, const TileOutput& output, Ahead& ahead) {
  constexpr size_t kRecord = P == Precision::High ? sizeof(Int16Record) : sizeof(Int8Record);
  GroupScales scales[8];
  __m512 sums[1][2];
  load_sums<1>(output, sums);
  for (int g = 0; g < num_groups; g += 8, packed += block_bytes, row += 8 * kRecord) {
    expand_block_scales<Q>(packed, scales);
    [&]<int... J>(std::integer_sequence<int, J...>) {
      (..., (ahead.fetch(), ahead.fetch(), one_row_group<Q, P, J>(packed, scales[J], row + J * kRecord, sums)));
    }(std::make_integer_sequence<int, 8>());
  }
  store_sums<1>(output, sums);
}

}  // namespace
}  // namespace tampu::detail
