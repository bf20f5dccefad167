// Few rows with AVX-512: the tiles read a panel as it is packed, instead of from a widened copy. Same operations per
// row in the same order, so a row gets the same bits either way. For linear_avx512.cpp only.
#pragma once
#include <immintrin.h>

#include <array>
#include <type_traits>

#include "linear_tile_avx512.h"

namespace tampu::detail {
namespace {

// Group j of a packed block: word(q, h) as WidenedWords has it.
template <QType Q>
struct PackedWords;

struct FromZero {
  static __m512i start(const uint8_t*) { return _mm512_setzero_si512(); }
};

template <int kOffset>
struct PackedNibbles : FromZero {
  const uint8_t* quants;
  __m512i word(int q, int h) const {
    const __m512i v = load_bytes(quants + (q % 4) * kWordBytes + 64 * h);
    const __m512i w = q < 4 ? low_nibbles(v) : high_nibbles(v);
    return kOffset == 0 ? w : _mm512_sub_epi8(w, _mm512_set1_epi8(kOffset));
  }
};

template <>
struct PackedWords<QType::Q4_0> : PackedNibbles<8> {
  PackedWords(const uint8_t* block, int) : PackedNibbles<8>{{}, block + 2 * kPanel} {}
};

template <>
struct PackedWords<QType::Q4_1> : PackedNibbles<0> {
  PackedWords(const uint8_t* block, int) : PackedNibbles<0>{{}, block + 4 * kPanel} {}
};

// Q4_0 for 8-bit levels: its offset of -8 is in what the sums begin with, where it costs a load instead of a subtraction
// per word.
struct UnsignedNibbles : PackedNibbles<0> {
  UnsignedNibbles(const uint8_t* block, int) : PackedNibbles<0>{{}, block + 2 * kPanel} {}
  static __m512i start(const uint8_t* record) {
    return _mm512_set1_epi32(reinterpret_cast<const Int8Record*>(record)->minus_eights);
  }
};

template <QType Q, Precision P>
using TileWords = std::conditional_t<Q == QType::Q4_0 && P == Precision::Normal, UnsignedNibbles, PackedWords<Q>>;

template <>
struct PackedWords<QType::Q8_0> : FromZero {
  const uint8_t* quants;
  PackedWords(const uint8_t* block, int) : quants(block + 2 * kPanel) {}
  __m512i word(int q, int h) const { return load_bytes(quants + q * kWordBytes + 64 * h); }
};

inline __m512i shift_right(__m512i v, int bits) { return _mm512_srl_epi16(v, _mm_cvtsi32_si128(bits)); }

template <>
struct PackedWords<QType::Q4_K> : FromZero {
  const uint8_t* quants;
  int shift;
  PackedWords(const uint8_t* block, int j)
      : quants(block + 4 * kPanel + (3 + j / 2 * 8) * kWordBytes), shift(j % 2 * 4) {}
  __m512i word(int q, int h) const {
    return low_nibbles(shift_right(load_bytes(quants + q * kWordBytes + 64 * h), shift));
  }
};

template <>
struct PackedWords<QType::Q5_K> : FromZero {
  const uint8_t *high, *quants;
  int shift, high_shift;
  PackedWords(const uint8_t* block, int j)
      : high(block + 4 * kPanel + 3 * kWordBytes),
        quants(high + (8 + j / 2 * 8) * kWordBytes),
        shift(j % 2 * 4),
        high_shift(j) {}
  __m512i word(int q, int h) const {
    const __m512i four = low_nibbles(shift_right(load_bytes(quants + q * kWordBytes + 64 * h), shift));
    const __m512i fifth = shift_right(load_bytes(high + q * kWordBytes + 64 * h), high_shift);
    return _mm512_or_si512(four, _mm512_slli_epi16(_mm512_and_si512(fifth, _mm512_set1_epi8(1)), 4));
  }
};

template <>
struct PackedWords<QType::Q6_K> : FromZero {
  const uint8_t *low, *high;
  int shift, high_shift;
  PackedWords(const uint8_t* block, int j)
      : low(block + 2 * kPanel + (j / 4 * 16 + j % 2 * 8) * kWordBytes),
        high(block + 2 * kPanel + (32 + j / 4 * 8) * kWordBytes),
        shift(j % 4 / 2 * 4),
        high_shift(j % 4 * 2) {}
  __m512i word(int q, int h) const {
    const __m512i four = low_nibbles(shift_right(load_bytes(low + q * kWordBytes + 64 * h), shift));
    const __m512i two = shift_right(load_bytes(high + q * kWordBytes + 64 * h), high_shift);
    const __m512i upper = _mm512_slli_epi16(_mm512_and_si512(two, _mm512_set1_epi8(3)), 4);
    return _mm512_sub_epi8(_mm512_or_si512(four, upper), _mm512_set1_epi8(32));
  }
};

constexpr int groups_per_block(QType q) {
  return q == QType::Q4_K || q == QType::Q5_K || q == QType::Q6_K ? 8 : 1;
}

// Up to how many rows unpacking each word again for every row tile beats widening a stretch of the panel first. Words of
// the K formats take too many steps for more than one tile of one row.
constexpr int kPackedRows = 16;
constexpr int packed_rows(QType q) { return groups_per_block(q) == 1 ? kPackedRows : 1; }

constexpr GroupKind kind_of(QType q) {
  return q == QType::Q6_K ? GroupKind::Halves
         : q == QType::Q4_0 || q == QType::Q8_0 ? GroupKind::Nibbles   // what the tiles tell apart
                                                : GroupKind::Minimum;
}

// The scaled sum of a group of bytes that hold two nibbles each, minus `offset` before scaling: sums of whole bytes and
// of low nibbles give both halves' sums without shifting every word.
inline void sum_nibbles(const uint8_t* quants, int offset, GroupScales& out) {
  const __m512i ones = _mm512_set1_epi8(1);
  TAMPU_UNROLL for (int h = 0; h < 2; ++h) {
    __m512i bytes = _mm512_setzero_si512(), low = bytes;
    TAMPU_UNROLL for (int q = 0; q < 4; ++q) {
      const __m512i v = load_bytes(quants + q * kWordBytes + 64 * h);
      bytes = _mm512_dpbusd_epi32(bytes, v, ones);
      low = _mm512_dpbusd_epi32(low, low_nibbles(v), ones);
    }
    const __m512i high = _mm512_srai_epi32(_mm512_sub_epi32(bytes, low), 4);
    const __m512i sum = _mm512_sub_epi32(_mm512_add_epi32(low, high), _mm512_set1_epi32(offset));
    const __m512 scale = _mm512_load_ps(out.scale + 16 * h);
    _mm512_store_ps(out.scaled_sum + 16 * h, _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sum)));
  }
}

template <class Words>
inline void sum_words(const Words& words, GroupKind kind, GroupScales& out) {
  ColumnSums sums[2];
  TAMPU_UNROLL for (int q = 0; q < 8; ++q) {
    TAMPU_UNROLL for (int h = 0; h < 2; ++h) sums[kind == GroupKind::Halves ? q / 4 : 0].add(h, words.word(q, h));
  }
  if (kind == GroupKind::Halves)
    store_sum_of_halves(out, sums[0], sums[1]);
  else
    store_scaled_sum(out, {_mm512_load_ps(out.scale), _mm512_load_ps(out.scale + 16)}, sums[0]);
}

// The scales of one packed block.
template <QType Q>
inline void block_scales(const uint8_t* block, GroupScales* out) {
  if constexpr (Q == QType::Q6_K) {
    expand_k6_scales(block + 2 * kPanel + 48 * kWordBytes, load_halves(block), out);
  } else if constexpr (groups_per_block(Q) == 8) {
    const Columns d = load_halves(block), dmin = load_halves(block + 2 * kPanel);
    expand_six_bit_scales<false>(block + 4 * kPanel, d, dmin, out);
    expand_six_bit_scales<true>(block + 4 * kPanel, d, dmin, out + 4);
  } else {
    store_columns(out->scale, load_halves(block));
    if constexpr (Q == QType::Q4_1) store_columns(out->extra, load_halves(block + 2 * kPanel));
  }
  if constexpr (Q == QType::Q4_0 || Q == QType::Q4_1) {
    sum_nibbles(PackedWords<Q>(block, 0).quants, Q == QType::Q4_0 ? 8 * kGroup : 0, *out);
  } else {
    for (int j = 0; j < groups_per_block(Q); ++j) sum_words(PackedWords<Q>(block, j), kind_of(Q), out[j]);
  }
}

template <QType Q>
void panel_scales(const uint8_t* panel, size_t block_bytes, int num_groups, GroupScales* out, Ahead& ahead) {
  for (int g = 0; g < num_groups; g += groups_per_block(Q), panel += block_bytes) {
    for (int j = 0; j < groups_per_block(Q); ++j) ahead.fetch();
    block_scales<Q>(panel, out + g);
  }
}

template <QType Q, int R, Precision P>
void packed_tile_of(const uint8_t* packed, size_t block_bytes, const GroupScales* scales, int num_groups,
                    const uint8_t* activations, size_t stride, const TileOutput& output, Ahead& ahead) {
  constexpr size_t kRecord = P == Precision::High ? sizeof(Int16Record) : sizeof(Int8Record);
  constexpr int kGroupsInside = groups_per_block(Q);
  const uint8_t* rows[R];
  TAMPU_UNROLL for (int r = 0; r < R; ++r) rows[r] = activations + size_t(r) * stride;
  __m512 sums[R][2];
  load_sums<R>(output, sums);
  for (int g = 0; g < num_groups; g += kGroupsInside, packed += block_bytes) {
    for (int j = 0; j < kGroupsInside; ++j, ++scales) {
      ahead.fetch();
      tile_group<R, kind_of(Q), P>(TileWords<Q, P>(packed, j), *scales, rows, sums);
      TAMPU_UNROLL for (int r = 0; r < R; ++r) rows[r] += kRecord;
    }
  }
  store_sums<R>(output, sums);
}

using PackedTile = void (*)(const uint8_t* packed, size_t block_bytes, const GroupScales* scales, int num_groups,
                            const uint8_t* activations, size_t stride, const TileOutput& output, Ahead& ahead);

struct PackedKernels {
  void (*scales)(const uint8_t* panel, size_t block_bytes, int num_groups, GroupScales* out, Ahead& ahead);
  std::array<PackedTile, 6> normal, high;   // by rows
};

template <QType Q, int R, Precision P>
constexpr PackedTile tile_if_used() {
  if constexpr (R <= packed_rows(Q)) return packed_tile_of<Q, R, P>;
  return nullptr;
}

template <QType Q, Precision P>
constexpr std::array<PackedTile, 6> tiles_of() {
  return {tile_if_used<Q, 1, P>(), tile_if_used<Q, 2, P>(), tile_if_used<Q, 3, P>(),
          tile_if_used<Q, 4, P>(), tile_if_used<Q, 5, P>(), tile_if_used<Q, 6, P>()};
}

template <QType Q>
const PackedKernels& packed_kernels_of() {
  static constexpr PackedKernels kernels{panel_scales<Q>, tiles_of<Q, Precision::Normal>(),
                                         tiles_of<Q, Precision::High>()};
  return kernels;
}

inline const PackedKernels& packed_kernels(QType qtype) {
  switch (qtype) {
    case QType::Q4_0: return packed_kernels_of<QType::Q4_0>();
    case QType::Q4_1: return packed_kernels_of<QType::Q4_1>();
    case QType::Q4_K: return packed_kernels_of<QType::Q4_K>();
    case QType::Q5_K: return packed_kernels_of<QType::Q5_K>();
    case QType::Q6_K: return packed_kernels_of<QType::Q6_K>();
    default: return packed_kernels_of<QType::Q8_0>();
  }
}

}  // namespace
}  // namespace tampu::detail
