// What the AVX-512 tiles share: sums of a tile of R rows x 32 columns, where they come from and where they go. For
// linear_avx512.cpp and linear_packed_avx512.h only.
#pragma once
#include <immintrin.h>

#include "linear_driver.h"
#include "linear_expand_avx512.h"

namespace tampu::detail {
namespace {

inline __mmask16 column_mask(int num_columns, int half) {
  const int left = num_columns - 16 * half;
  return left >= 16 ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
}

template <int R>
[[gnu::always_inline]] inline void load_sums(const TileOutput& output, __m512 (*sums)[2]) {
  TAMPU_UNROLL for (int r = 0; r < R; ++r) {
    TAMPU_UNROLL for (int h = 0; h < 2; ++h)
      sums[r][h] = output.is_first ? _mm512_setzero_ps() : _mm512_load_ps(output.partial[r] + 16 * h);
  }
}

// e^x for 16 values: 2^n * polynomial on [-ln2/2, ln2/2], relative error below 2e-7.
inline __m512 exp_ps(__m512 x) {
  x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-87.5f)), _mm512_set1_ps(88.5f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.3981999507e-3f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}

inline __m512 silu(__m512 x) {
  const __m512 e = exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), x));
  return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

template <int R>
[[gnu::always_inline]] inline void store_sums(const TileOutput& output, const __m512 (*sums)[2]) {
  if (!output.is_last) {
    TAMPU_UNROLL for (int r = 0; r < R; ++r) {
      TAMPU_UNROLL for (int h = 0; h < 2; ++h) _mm512_store_ps(output.partial[r] + 16 * h, sums[r][h]);
    }
    return;
  }
  const __mmask16 mask[2] = {column_mask(output.num_columns, 0), column_mask(output.num_columns, 1)};
  TAMPU_UNROLL for (int r = 0; r < R; ++r) {
    TAMPU_UNROLL for (int h = 0; h < 2; ++h) {
      float* y = output.y + r * output.ldy + 16 * h;
      __m512 v = sums[r][h];
      if (output.gate != nullptr) v = _mm512_mul_ps(silu(_mm512_load_ps(output.gate[r] + 16 * h)), v);
      if (output.add) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask[h], y), v);
      _mm512_mask_storeu_ps(y, mask[h], v);
    }
  }
}

template <Precision P>
inline const GroupLevels& levels_of_row(const uint8_t* record) {
  return *reinterpret_cast<const GroupLevels*>(record + (P == Precision::High ? 2 : 1) * kGroup);
}

inline __m512i broadcast4(const void* p) { return _mm512_set1_epi32(*static_cast<const int*>(p)); }

// Words of a widened group: word(q, h) is values 4q..4q+3 of K of 16 columns, as signed bytes.
struct WidenedWords {
  static __m512i start(const uint8_t*) { return _mm512_setzero_si512(); }   // of a row's integer sums
  const int8_t (*w)[kPanel][4];
  __m512i word(int q, int h) const { return _mm512_load_si512(w[q] + 16 * h); }
};

// acc += words [begin, end) of the group times 4 levels per row.
template <int R, class Words>
inline void dot_words(const Words& words, int begin, int end, const uint8_t* const* rows, int offset,
                      __m512i (*acc)[2]) {
  TAMPU_UNROLL for (int q = begin; q < end; ++q) {
    __m512i w0 = words.word(q, 0), w1 = words.word(q, 1);
    if constexpr (R > 1) asm("" : "+v"(w0), "+v"(w1));   // made once, not once per row: loads are the next limit
    TAMPU_UNROLL for (int r = 0; r < R; ++r) {
      const __m512i a = broadcast4(rows[r] + offset + 4 * q);
      acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], a, w0);
      acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], a, w1);
    }
  }
}

// sums += integer sums of words [begin, end), scaled.
template <int R, Precision P, class Words>
inline void accumulate(const Words& words, int begin, int end, const float* weight_scale, const uint8_t* const* rows,
                       __m512 (*sums)[2]) {
  __m512i acc[R][2];
  TAMPU_UNROLL for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = Words::start(rows[r]);
  dot_words<R>(words, begin, end, rows, 0, acc);
  if constexpr (P == Precision::High) {
    TAMPU_UNROLL for (int r = 0; r < R; ++r) {
      TAMPU_UNROLL for (int h = 0; h < 2; ++h) acc[r][h] = _mm512_slli_epi32(acc[r][h], 8);
    }
    if (reinterpret_cast<const Int16Record*>(rows[0])->is_fine != 0) {
      asm volatile("" ::: "memory");   // or the compiler keeps all the words for this pass, in memory
      dot_words<R>(words, begin, end, rows, kGroup, acc);
    }
  }
  const __m512 s0 = _mm512_load_ps(weight_scale), s1 = _mm512_load_ps(weight_scale + 16);
  TAMPU_UNROLL for (int r = 0; r < R; ++r) {
    const __m512 a = _mm512_set1_ps(levels_of_row<P>(rows[r]).scale);
    sums[r][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][0]), _mm512_mul_ps(s0, a), sums[r][0]);
    sums[r][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][1]), _mm512_mul_ps(s1, a), sums[r][1]);
  }
}

template <int R, GroupKind K, Precision P, class Words>
inline void tile_group(const Words& words, const GroupScales& group, const uint8_t* const* rows, __m512 (*sums)[2]) {
  if constexpr (K == GroupKind::Halves) {
    accumulate<R, P>(words, 0, 4, group.scale, rows, sums);
    accumulate<R, P>(words, 4, 8, group.extra, rows, sums);
  } else {
    accumulate<R, P>(words, 0, 8, group.scale, rows, sums);
  }
  const __m512 v0 = _mm512_load_ps(group.scaled_sum), v1 = _mm512_load_ps(group.scaled_sum + 16);
  TAMPU_UNROLL for (int r = 0; r < R; ++r) {
    const __m512 a = _mm512_set1_ps(levels_of_row<P>(rows[r]).offset);
    sums[r][0] = _mm512_fmadd_ps(v0, a, sums[r][0]);
    sums[r][1] = _mm512_fmadd_ps(v1, a, sums[r][1]);
  }
  if constexpr (K == GroupKind::Minimum) {
    const __m512 m0 = _mm512_load_ps(group.extra), m1 = _mm512_load_ps(group.extra + 16);
    TAMPU_UNROLL for (int r = 0; r < R; ++r) {
      const __m512 a = _mm512_set1_ps(levels_of_row<P>(rows[r]).sum);
      sums[r][0] = _mm512_fmadd_ps(m0, a, sums[r][0]);
      sums[r][1] = _mm512_fmadd_ps(m1, a, sums[r][1]);
    }
  }
}

}  // namespace
}  // namespace tampu::detail
