// The kernels for AVX-512 with VNNI. One 64-byte register holds 16 columns x 4 values of K; vpdpbusd multiplies it
// with 4 activations broadcast from memory. Tiles are up to 6 rows x 32 columns: 12 integer and 12 float accumulators.
// Every tile height performs the same operations per row in the same order.
// GCC 12 takes the undefined pass-through operands of its own intrinsics for uninitialised reads.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "linear_driver.h"
#include "linear_quantize.h"

namespace tampu::detail {
namespace {

#define TAMPU_UNROLL _Pragma("GCC unroll 16")

__mmask16 column_mask(int num_columns, int half) {
  const int left = num_columns - 16 * half;
  return left >= 16 ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
}

template <int R>
inline void load_sums(const TileOutput& output, __m512 (*sums)[2]) {
  TAMPU_UNROLL for (int r = 0; r < R; ++r) {
    TAMPU_UNROLL for (int h = 0; h < 2; ++h)
      sums[r][h] = output.is_first ? _mm512_setzero_ps() : _mm512_load_ps(output.partial[r] + 16 * h);
  }
}

template <int R>
inline void store_sums(const TileOutput& output, const __m512 (*sums)[2]) {
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
      if (output.add) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask[h], y), v);
      _mm512_mask_storeu_ps(y, mask[h], v);
    }
  }
}

template <Precision P>
inline const GroupLevels& levels_of_row(const uint8_t* record) {
  return *reinterpret_cast<const GroupLevels*>(record + (P == Precision::High ? 2 : 1) * kGroup);
}

inline __m512i broadcast4(const void* p) { return _mm512_set1_epi32(__builtin_bit_cast(int, *static_cast<const int*>(p))); }

// acc += words [begin, end) of the group times 4 levels per row.
template <int R>
inline void dot_words(const WeightGroup& group, int begin, int end, const uint8_t* const* rows, int offset,
                      __m512i (*acc)[2]) {
  TAMPU_UNROLL for (int q = begin; q < end; ++q) {
    const __m512i w0 = _mm512_load_si512(group.w[q]), w1 = _mm512_load_si512(group.w[q] + 16);
    TAMPU_UNROLL for (int r = 0; r < R; ++r) {
      const __m512i a = broadcast4(rows[r] + offset + 4 * q);
      acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], a, w0);
      acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], a, w1);
    }
  }
}

// sums += integer sums of words [begin, end), scaled.
template <int R, Precision P>
inline void accumulate(const WeightGroup& group, int begin, int end, const float* weight_scale,
                       const uint8_t* const* rows, __m512 (*sums)[2]) {
  __m512i acc[R][2];
  TAMPU_UNROLL for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm512_setzero_si512();
  dot_words<R>(group, begin, end, rows, 0, acc);
  if constexpr (P == Precision::High) {
    TAMPU_UNROLL for (int r = 0; r < R; ++r) {
      TAMPU_UNROLL for (int h = 0; h < 2; ++h) acc[r][h] = _mm512_slli_epi32(acc[r][h], 8);
    }
    dot_words<R>(group, begin, end, rows, kGroup, acc);
  }
  const __m512 s0 = _mm512_load_ps(weight_scale), s1 = _mm512_load_ps(weight_scale + 16);
  TAMPU_UNROLL for (int r = 0; r < R; ++r) {
    const __m512 a = _mm512_set1_ps(levels_of_row<P>(rows[r]).scale);
    sums[r][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][0]), _mm512_mul_ps(s0, a), sums[r][0]);
    sums[r][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][1]), _mm512_mul_ps(s1, a), sums[r][1]);
  }
}

template <int R, GroupKind K, Precision P>
inline void tile_group(const WeightGroup& group, const uint8_t* const* rows, __m512 (*sums)[2]) {
  if constexpr (K == GroupKind::Halves) {
    accumulate<R, P>(group, 0, 4, group.scale, rows, sums);
    accumulate<R, P>(group, 4, 8, group.extra, rows, sums);
  } else {
    accumulate<R, P>(group, 0, 8, group.scale, rows, sums);
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

template <int R, GroupKind K, Precision P>
void int8_tile_of(const WeightGroup* groups, int num_groups, const uint8_t* activations, size_t stride,
                  const TileOutput& output, Ahead& ahead) {
  constexpr size_t kRecord = P == Precision::High ? sizeof(Int16Record) : sizeof(Int8Record);
  const uint8_t* rows[R];
  TAMPU_UNROLL for (int r = 0; r < R; ++r) rows[r] = activations + r * stride;
  __m512 sums[R][2];
  load_sums<R>(output, sums);
  for (const WeightGroup* end = groups + num_groups; groups != end; ++groups) {
    ahead.fetch();
    tile_group<R, K, P>(*groups, rows, sums);
    TAMPU_UNROLL for (int r = 0; r < R; ++r) rows[r] += kRecord;
  }
  store_sums<R>(output, sums);
}

template <int R>
void float_tile_of(const float (*weights)[kPanel], int num_k, const uint8_t* activations, size_t stride,
                   const TileOutput& output) {
  const float* rows[R];
  TAMPU_UNROLL for (int r = 0; r < R; ++r) rows[r] = reinterpret_cast<const float*>(activations + r * stride);
  __m512 sums[R][2];
  load_sums<R>(output, sums);
  for (int k = 0; k < num_k; ++k) {
    const __m512 w0 = _mm512_load_ps(weights[k]), w1 = _mm512_load_ps(weights[k] + 16);
    TAMPU_UNROLL for (int r = 0; r < R; ++r) {
      const __m512 a = _mm512_set1_ps(rows[r][k]);
      sums[r][0] = _mm512_fmadd_ps(w0, a, sums[r][0]);
      sums[r][1] = _mm512_fmadd_ps(w1, a, sums[r][1]);
    }
  }
  store_sums<R>(output, sums);
}

using Int8Tile = void (*)(const WeightGroup*, int, const uint8_t*, size_t, const TileOutput&, Ahead&);
using FloatTile = void (*)(const float (*)[kPanel], int, const uint8_t*, size_t, const TileOutput&);

template <GroupKind K, Precision P>
Int8Tile int8_tile_by_height(int rows) {
  static constexpr Int8Tile tiles[] = {int8_tile_of<1, K, P>, int8_tile_of<2, K, P>, int8_tile_of<3, K, P>,
                                       int8_tile_of<4, K, P>, int8_tile_of<5, K, P>, int8_tile_of<6, K, P>};
  return tiles[rows - 1];
}

template <GroupKind K>
Int8Tile int8_tile_by_precision(Precision precision, int rows) {
  return precision == Precision::High ? int8_tile_by_height<K, Precision::High>(rows)
                                      : int8_tile_by_height<K, Precision::Normal>(rows);
}

struct Avx512 {
  static constexpr int kInt8Rows = 6, kFloatRows = 6;

  static void halves(const uint16_t* source, float* out) {
    _mm512_storeu_ps(out, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source))));
    _mm512_storeu_ps(out + 16, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + 16))));
  }

  static void column_sums(const int8_t* w, int num_words, int32_t* sums) {
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i s0 = _mm512_setzero_si512(), s1 = s0;
    TAMPU_UNROLL for (int q = 0; q < num_words; ++q) {
      s0 = _mm512_dpbusd_epi32(s0, ones, _mm512_load_si512(w + 128 * q));
      s1 = _mm512_dpbusd_epi32(s1, ones, _mm512_load_si512(w + 128 * q + 64));
    }
    _mm512_storeu_si512(sums, s0);
    _mm512_storeu_si512(sums + 16, s1);
  }

  static void int8_tile(GroupKind kind, Precision precision, int rows, const WeightGroup* groups, int num_groups,
                        const uint8_t* activations, size_t stride, const TileOutput& output, Ahead& ahead) {
    const auto tile = kind == GroupKind::Minimum  ? int8_tile_by_precision<GroupKind::Minimum>(precision, rows)
                      : kind == GroupKind::Halves ? int8_tile_by_precision<GroupKind::Halves>(precision, rows)
                                                  : int8_tile_by_precision<GroupKind::Bytes>(precision, rows);
    tile(groups, num_groups, activations, stride, output, ahead);
  }

  static void float_tile(int rows, const float (*weights)[kPanel], int num_k, const uint8_t* activations,
                         size_t stride, const TileOutput& output) {
    static constexpr FloatTile tiles[] = {float_tile_of<1>, float_tile_of<2>, float_tile_of<3>,
                                          float_tile_of<4>, float_tile_of<5>, float_tile_of<6>};
    tiles[rows - 1](weights, num_k, activations, stride, output);
  }
};

// Two registers of 16 values to their range and levels.
inline GroupRange range_of(__m512 a, __m512 b, float levels) {
  const __m512i mask = _mm512_set1_epi32(0x7fffffff);
  const uint32_t magnitude = _mm512_reduce_max_epu32(_mm512_max_epu32(
      _mm512_and_si512(_mm512_castps_si512(a), mask), _mm512_and_si512(_mm512_castps_si512(b), mask)));
  return group_range(magnitude, _mm512_reduce_min_ps(_mm512_min_ps(a, b)), _mm512_reduce_max_ps(_mm512_max_ps(a, b)),
                     levels);
}

// Rounded to nearest even, as std::nearbyint does.
inline __m512i levels_of(__m512 x, const GroupRange& range, float levels) {
  const __m512 level = _mm512_mul_ps(_mm512_sub_ps(x, _mm512_set1_ps(range.offset)), _mm512_set1_ps(range.inverse));
  const __m512i q = _mm512_cvt_roundps_epi32(_mm512_min_ps(level, _mm512_set1_ps(levels)),
                                             _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return _mm512_maskz_mov_epi32(range.inverse == 0.0f ? 0 : 0xffff, q);
}

inline void store_bytes(uint8_t* out, __m512i a, __m512i b) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(a));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16), _mm512_cvtepi32_epi8(b));
}

void quantize_normal(const float* x, int k, Int8Record* out) {
  for (int g = 0; g < k / kGroup; ++g, x += kGroup) {
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    const GroupRange range = range_of(a, b, kNormalLevels);
    const __m512i qa = levels_of(a, range, kNormalLevels), qb = levels_of(b, range, kNormalLevels);
    store_bytes(out[g].level, qa, qb);
    out[g].group = group_levels(range, _mm512_reduce_add_epi32(_mm512_add_epi32(qa, qb)));
  }
}

void quantize_high(const float* x, int k, Int16Record* out) {
  for (int g = 0; g < k / kGroup; ++g, x += kGroup) {
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    const GroupRange range = range_of(a, b, kHighLevels);
    const __m512i qa = levels_of(a, range, kHighLevels), qb = levels_of(b, range, kHighLevels);
    store_bytes(out[g].high, _mm512_srli_epi32(qa, 8), _mm512_srli_epi32(qb, 8));
    store_bytes(out[g].low, qa, qb);   // the low byte of each
    out[g].group = group_levels(range, _mm512_reduce_add_epi32(_mm512_add_epi32(qa, qb)));
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

void silu_mul_row(const float* gate, const float* up, int n, float* out) {
  const __m512 one = _mm512_set1_ps(1.0f);
  for (int i = 0; i < n; i += 16) {
    const __mmask16 mask = n - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (n - i)) - 1);
    const __m512 g = _mm512_maskz_loadu_ps(mask, gate + i), u = _mm512_maskz_loadu_ps(mask, up + i);
    const __m512 e = exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), g));
    _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(_mm512_div_ps(g, _mm512_add_ps(one, e)), u));
  }
}

}  // namespace

const KernelTable& avx512_kernels() {
  static constexpr KernelTable table{matmul_int8<Avx512>, matmul_f32<Avx512>, quantize_normal, quantize_high,
                                     silu_mul_row};
  return table;
}

}  // namespace tampu::detail
