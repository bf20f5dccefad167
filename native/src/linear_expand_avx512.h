// Widening of packed panels with AVX-512: the same results as linear_expand.h, with every byte touched once and the
// column sums taken while the weights are in registers. For linear_avx512.cpp only.
#pragma once
#include <immintrin.h>

#include "linear_expand.h"

namespace tampu::detail {
namespace {

#define TAMPU_UNROLL _Pragma("GCC unroll 16")

// Both halves of a panel: columns 0-15 and 16-31.
struct Columns {
  __m512 half[2];
};

inline __m512i load_bytes(const uint8_t* p) { return _mm512_load_si512(p); }
inline void store_bytes(int8_t (*w)[4], __m512i v) { _mm512_store_si512(w, v); }

inline Columns load_halves(const uint8_t* p) {
  Columns out;
  TAMPU_UNROLL for (int h = 0; h < 2; ++h)
    out.half[h] = _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(p + 32 * h)));
  return out;
}

inline void store_columns(float* to, const Columns& v) {
  TAMPU_UNROLL for (int h = 0; h < 2; ++h) _mm512_store_ps(to + 16 * h, v.half[h]);
}

// Sums over K of signed weights, per column.
struct ColumnSums {
  __m512i half[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  void add(int h, __m512i w) { half[h] = _mm512_dpbusd_epi32(half[h], _mm512_set1_epi8(1), w); }
  __m512 value(int h) const { return _mm512_cvtepi32_ps(half[h]); }
};

inline void store_scaled_sum(GroupScales& g, const Columns& scale, const ColumnSums& sums) {
  TAMPU_UNROLL for (int h = 0; h < 2; ++h)
    _mm512_store_ps(g.scaled_sum + 16 * h, _mm512_mul_ps(scale.half[h], sums.value(h)));
}

inline __m512i low_nibbles(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
inline __m512i high_nibbles(__m512i v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }

// Q4_0 and Q4_1: low nibbles are the first 16 values of K, high nibbles the others.
template <int kOffset>
inline void expand_nibbles(const uint8_t* quants, const Columns& scale, WeightGroup& g) {
  const __m512i offset = _mm512_set1_epi8(kOffset);
  ColumnSums sums;
  TAMPU_UNROLL for (int q = 0; q < 4; ++q) {
    TAMPU_UNROLL for (int h = 0; h < 2; ++h) {
      const __m512i v = load_bytes(quants + q * kWordBytes + 64 * h);
      const __m512i low = kOffset == 0 ? low_nibbles(v) : _mm512_sub_epi8(low_nibbles(v), offset);
      const __m512i high = kOffset == 0 ? high_nibbles(v) : _mm512_sub_epi8(high_nibbles(v), offset);
      store_bytes(g.w[q] + 16 * h, low);
      store_bytes(g.w[q + 4] + 16 * h, high);
      sums.add(h, low);
      sums.add(h, high);
    }
  }
  store_columns(g.scale, scale);
  store_scaled_sum(g, scale, sums);
}

inline void expand_bytes(const uint8_t* quants, const Columns& scale, WeightGroup& g) {
  ColumnSums sums;
  TAMPU_UNROLL for (int q = 0; q < 8; ++q) {
    TAMPU_UNROLL for (int h = 0; h < 2; ++h) {
      const __m512i v = load_bytes(quants + q * kWordBytes + 64 * h);
      store_bytes(g.w[q] + 16 * h, v);
      sums.add(h, v);
    }
  }
  store_columns(g.scale, scale);
  store_scaled_sum(g, scale, sums);
}

inline void store_sum_of_halves(GroupScales& g, const ColumnSums& first, const ColumnSums& second) {
  TAMPU_UNROLL for (int h = 0; h < 2; ++h) {
    const __m512 a = _mm512_mul_ps(_mm512_load_ps(g.scale + 16 * h), first.value(h));
    const __m512 b = _mm512_mul_ps(_mm512_load_ps(g.extra + 16 * h), second.value(h));
    _mm512_store_ps(g.scaled_sum + 16 * h, _mm512_add_ps(a, b));
  }
}

// Six-bit scales (first) and minima (second) of four sub-blocks, one byte each, for 16 columns.
struct SixBits {
  __m512i scale, minimum;
};

template <bool kLater>   // sub-blocks 4-7
inline SixBits six_bits(const uint8_t* words, int h) {
  const __m512i u0 = load_bytes(words + 64 * h), u1 = load_bytes(words + kWordBytes + 64 * h);
  if constexpr (!kLater) {
    const __m512i low6 = _mm512_set1_epi8(63);
    return {_mm512_and_si512(u0, low6), _mm512_and_si512(u1, low6)};
  }
  const __m512i u2 = load_bytes(words + 2 * kWordBytes + 64 * h), upper = _mm512_set1_epi8(0x30);
  return {_mm512_or_si512(low_nibbles(u2), _mm512_and_si512(_mm512_srli_epi16(u0, 2), upper)),
          _mm512_or_si512(high_nibbles(u2), _mm512_and_si512(_mm512_srli_epi16(u1, 2), upper))};
}

template <bool kLater, class Group>
inline void expand_six_bit_scales(const uint8_t* words, const Columns& d, const Columns& dmin, Group* out) {
  const __m512i byte = _mm512_set1_epi32(255);
  const __m512 sign = _mm512_set1_ps(-0.0f);
  TAMPU_UNROLL for (int h = 0; h < 2; ++h) {
    const SixBits bits = six_bits<kLater>(words, h);
    TAMPU_UNROLL for (int j = 0; j < 4; ++j) {
      const __m512i s = _mm512_and_si512(_mm512_srli_epi32(bits.scale, 8 * j), byte);
      const __m512i m = _mm512_and_si512(_mm512_srli_epi32(bits.minimum, 8 * j), byte);
      _mm512_store_ps(out[j].scale + 16 * h, _mm512_mul_ps(d.half[h], _mm512_cvtepi32_ps(s)));
      const __m512 minimum = _mm512_mul_ps(dmin.half[h], _mm512_cvtepi32_ps(m));
      _mm512_store_ps(out[j].extra + 16 * h, _mm512_xor_ps(minimum, sign));
    }
  }
}

inline Columns stored_scale(const WeightGroup& g) { return {_mm512_load_ps(g.scale), _mm512_load_ps(g.scale + 16)}; }

// Sub-blocks j and j + 1 of Q4_K and Q5_K.
template <int j, bool kHighBits>
inline void expand_k45_pair(const uint8_t* quants, const uint8_t* high, WeightGroup* out) {
  ColumnSums first, second;
  const __m512i bit = _mm512_set1_epi8(16);
  TAMPU_UNROLL for (int q = 0; q < 8; ++q) {
    TAMPU_UNROLL for (int h = 0; h < 2; ++h) {
      const __m512i v = load_bytes(quants + (j * 4 + q) * kWordBytes + 64 * h);
      __m512i low = low_nibbles(v), upper = high_nibbles(v);
      if constexpr (kHighBits) {
        const __m512i fifth = load_bytes(high + q * kWordBytes + 64 * h);
        const __m512i a = j < 4 ? _mm512_slli_epi16(fifth, 4 - j) : _mm512_srli_epi16(fifth, j - 4);
        const __m512i b = j + 1 < 4 ? _mm512_slli_epi16(fifth, 3 - j) : _mm512_srli_epi16(fifth, j - 3);
        low = _mm512_or_si512(low, _mm512_and_si512(a, bit));
        upper = _mm512_or_si512(upper, _mm512_and_si512(b, bit));
      }
      store_bytes(out[j].w[q] + 16 * h, low);
      store_bytes(out[j + 1].w[q] + 16 * h, upper);
      first.add(h, low);
      second.add(h, upper);
    }
  }
  store_scaled_sum(out[j], stored_scale(out[j]), first);
  store_scaled_sum(out[j + 1], stored_scale(out[j + 1]), second);
}

template <bool kHighBits>
inline void expand_k45_block(const uint8_t* block, WeightGroup* out) {
  const Columns d = load_halves(block), dmin = load_halves(block + 2 * kPanel);
  const uint8_t* scales = block + 4 * kPanel;
  const uint8_t* high = scales + 3 * kWordBytes;
  const uint8_t* quants = kHighBits ? high + 8 * kWordBytes : high;
  expand_six_bit_scales<false>(scales, d, dmin, out);
  expand_six_bit_scales<true>(scales, d, dmin, out + 4);
  expand_k45_pair<0, kHighBits>(quants, high, out);
  expand_k45_pair<2, kHighBits>(quants, high, out);
  expand_k45_pair<4, kHighBits>(quants, high, out);
  expand_k45_pair<6, kHighBits>(quants, high, out);
}

// Sub-blocks j and j + 2 of one half of a Q6_K block (j = 0, 1): they share their low-bit words.
template <int j>
inline void expand_k6_pair(const uint8_t* low, const uint8_t* high, WeightGroup* out) {
  const __m512i two_bits = _mm512_set1_epi8(0x30), offset = _mm512_set1_epi8(32);
  ColumnSums first[2], second[2];   // of the two 16-value halves
  TAMPU_UNROLL for (int q = 0; q < 8; ++q) {
    TAMPU_UNROLL for (int h = 0; h < 2; ++h) {
      const __m512i v = load_bytes(low + (8 * j + q) * kWordBytes + 64 * h);
      const __m512i more = load_bytes(high + q * kWordBytes + 64 * h);
      const __m512i a = j == 0 ? _mm512_slli_epi16(more, 4) : _mm512_slli_epi16(more, 2);
      const __m512i b = j == 0 ? more : _mm512_srli_epi16(more, 2);
      const __m512i w0 = _mm512_sub_epi8(_mm512_or_si512(low_nibbles(v), _mm512_and_si512(a, two_bits)), offset);
      const __m512i w1 = _mm512_sub_epi8(_mm512_or_si512(high_nibbles(v), _mm512_and_si512(b, two_bits)), offset);
      store_bytes(out[j].w[q] + 16 * h, w0);
      store_bytes(out[j + 2].w[q] + 16 * h, w1);
      first[q / 4].add(h, w0);
      second[q / 4].add(h, w1);
    }
  }
  store_sum_of_halves(out[j], first[0], first[1]);
  store_sum_of_halves(out[j + 2], second[0], second[1]);
}

template <class Group>
inline void expand_k6_scales(const uint8_t* scales, const Columns& d, Group* out) {
  TAMPU_UNROLL for (int j = 0; j < 8; ++j) {
    TAMPU_UNROLL for (int h = 0; h < 2; ++h) {
      const __m512i s = load_bytes(scales + (j / 2) * kWordBytes + 64 * h);
      const __m512i a = _mm512_srai_epi32(_mm512_slli_epi32(s, 24 - 16 * (j % 2)), 24);
      const __m512i b = _mm512_srai_epi32(_mm512_slli_epi32(s, 16 - 16 * (j % 2)), 24);
      _mm512_store_ps(out[j].scale + 16 * h, _mm512_mul_ps(d.half[h], _mm512_cvtepi32_ps(a)));
      _mm512_store_ps(out[j].extra + 16 * h, _mm512_mul_ps(d.half[h], _mm512_cvtepi32_ps(b)));
    }
  }
}

inline void expand_k6_block(const uint8_t* block, WeightGroup* out) {
  const uint8_t* low = block + 2 * kPanel;
  const uint8_t* high = low + 32 * kWordBytes;
  expand_k6_scales(high + 16 * kWordBytes, load_halves(block), out);
  for (int half = 0; half < 2; ++half) {
    const uint8_t* l = low + half * 16 * kWordBytes;
    const uint8_t* u = high + half * 8 * kWordBytes;
    expand_k6_pair<0>(l, u, out + 4 * half);
    expand_k6_pair<1>(l, u, out + 4 * half);
  }
}

inline void expand_groups_avx512(QType qtype, const uint8_t* panel, int group_begin, int num_groups, WeightGroup* out) {
  const BlockLayout& layout = block_layout(qtype);
  const int groups_per_block = layout.k / kGroup;
  const size_t step = layout.packed_bytes();
  const uint8_t* block = panel + size_t(group_begin / groups_per_block) * step;
  for (WeightGroup* const end = out + num_groups; out < end; out += groups_per_block, block += step) {
    switch (qtype) {
      case QType::Q4_0: expand_nibbles<8>(block + 2 * kPanel, load_halves(block), *out); break;
      case QType::Q4_1:
        store_columns(out->extra, load_halves(block + 2 * kPanel));
        expand_nibbles<0>(block + 4 * kPanel, load_halves(block), *out);
        break;
      case QType::Q8_0: expand_bytes(block + 2 * kPanel, load_halves(block), *out); break;
      case QType::Q4_K: expand_k45_block<false>(block, out); break;
      case QType::Q5_K: expand_k45_block<true>(block, out); break;
      case QType::Q6_K: expand_k6_block(block, out); break;
      default: break;
    }
  }
}

}  // namespace
}  // namespace tampu::detail
