// Few rows with AVX-512: the tiles read a panel as it is packed, instead of from a widened copy. Same operations per
// row in the same order, so a row gets the same bits either way. For linear_avx512.cpp only.
#pragma once
#include <immintrin.h>

#include <type_traits>

#include "linear_one_row_avx512.h"

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
  explicit PackedWords(const uint8_t* block) : PackedNibbles<8>{{}, block + 2 * kPanel} {}
};

template <>
struct PackedWords<QType::Q4_1> : PackedNibbles<0> {
  explicit PackedWords(const uint8_t* block) : PackedNibbles<0>{{}, block + 4 * kPanel} {}
};

// Q4_0 for 8-bit levels: its offset of -8 is in what the sums begin with, where it costs a load instead of a subtraction
// per word.
struct UnsignedNibbles : PackedNibbles<0> {
  explicit UnsignedNibbles(const uint8_t* block) : PackedNibbles<0>{{}, block + 2 * kPanel} {}
  static __m512i start(const uint8_t* record) {
    return _mm512_set1_epi32(reinterpret_cast<const Int8Record*>(record)->minus_eights);
  }
};

template <QType Q, Precision P>
using TileWords = std::conditional_t<Q == QType::Q4_0 && P == Precision::Normal, UnsignedNibbles, PackedWords<Q>>;

template <>
struct PackedWords<QType::Q8_0> : FromZero {
  const uint8_t* quants;
  explicit PackedWords(const uint8_t* block) : quants(block + 2 * kPanel) {}
  __m512i word(int q, int h) const { return load_bytes(quants + q * kWordBytes + 64 * h); }
};

// Up to how many rows unpacking each word again for every row tile beats widening a stretch of the panel first. Words of
// the K formats take too many steps for more than one tile of one row.
constexpr int kPackedRows = 16;
constexpr int packed_rows(QType q) { return is_k_format(q) ? 1 : kPackedRows; }

constexpr GroupKind kind_of(QType q) { return q == QType::Q4_1 ? GroupKind::Minimum : GroupKind::Nibbles; }

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

// The scales of one packed group.
template <QType Q>
inline void group_scales(const uint8_t* block, GroupScales& out) {
  store_columns(out.scale, load_halves(block));
  if constexpr (Q == QType::Q4_1) store_columns(out.extra, load_halves(block + 2 * kPanel));
  const PackedWords<Q> words(block);
  if constexpr (Q == QType::Q8_0) {
    ColumnSums sums;
    TAMPU_UNROLL for (int q = 0; q < 8; ++q) {
      TAMPU_UNROLL for (int h = 0; h < 2; ++h) sums.add(h, words.word(q, h));
    }
    store_scaled_sum(out, {_mm512_load_ps(out.scale), _mm512_load_ps(out.scale + 16)}, sums);
  } else {
    sum_nibbles(words.quants, Q == QType::Q4_0 ? 8 * kGroup : 0, out);
  }
}

template <QType Q>
void panel_scales(const uint8_t* panel, size_t block_bytes, int num_groups, GroupScales* out, Ahead& ahead) {
  for (const GroupScales* end = out + num_groups; out != end; ++out, panel += block_bytes) {
    ahead.fetch();
    group_scales<Q>(panel, *out);
  }
}

template <QType Q, int R, Precision P>
void packed_tile_of(const uint8_t* packed, size_t block_bytes, const GroupScales* scales, int num_groups,
                    const uint8_t* activations, size_t stride, const TileOutput& output, Ahead& ahead) {
  constexpr size_t kRecord = P == Precision::High ? sizeof(Int16Record) : sizeof(Int8Record);
  const uint8_t* rows[R];
  TAMPU_UNROLL for (int r = 0; r < R; ++r) rows[r] = activations + size_t(r) * stride;
  __m512 sums[R][2];
  load_sums<R>(output, sums);
  for (const GroupScales* end = scales + num_groups; scales != end; ++scales, packed += block_bytes) {
    ahead.fetch();
    tile_group<R, kind_of(Q), P>(TileWords<Q, P>(packed), *scales, rows, sums);
    TAMPU_UNROLL for (int r = 0; r < R; ++r) rows[r] += kRecord;
  }
  store_sums<R>(output, sums);
}

using PackedTile = void (*)(const uint8_t* packed, size_t block_bytes, const GroupScales* scales, int num_groups,
                            const uint8_t* activations, size_t stride, const TileOutput& output, Ahead& ahead);

struct PackedKernels {
  // Null: the tiles make them.
  void (*scales)(const uint8_t* panel, size_t block_bytes, int num_groups, GroupScales* out, Ahead& ahead);
  PackedTile normal[6], high[6];   // by rows
};

template <QType Q>
const PackedKernels& packed_kernels_of() {
  constexpr auto kNormal = Precision::Normal, kHigh = Precision::High;
  if constexpr (is_k_format(Q)) {
    static constexpr PackedKernels kernels{nullptr, {one_row_tile<Q, kNormal>}, {one_row_tile<Q, kHigh>}};
    return kernels;
  } else {
    static constexpr PackedKernels kernels{
        panel_scales<Q>,
        {packed_tile_of<Q, 1, kNormal>, packed_tile_of<Q, 2, kNormal>, packed_tile_of<Q, 3, kNormal>,
         packed_tile_of<Q, 4, kNormal>, packed_tile_of<Q, 5, kNormal>, packed_tile_of<Q, 6, kNormal>},
        {packed_tile_of<Q, 1, kHigh>, packed_tile_of<Q, 2, kHigh>, packed_tile_of<Q, 3, kHigh>,
         packed_tile_of<Q, 4, kHigh>, packed_tile_of<Q, 5, kHigh>, packed_tile_of<Q, 6, kHigh>}};
    return kernels;
  }
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
