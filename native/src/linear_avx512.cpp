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

inline __m512i broadcast4(const void* p) { return _mm512_set1_epi32(__builtin_bit_cast(int, *static_cast<const int*>(p))); }

// acc += words [begin, end) of the group times 4 activations per row.
template <int R>
inline void dot_words(const Int8Group& group, int begin, int end, const uint8_t* const* rows, int offset,
                      __m512i (*acc)[2]) {
  TAMPU_UNROLL for (int w = begin; w < end; ++w) {
    const __m512i w0 = _mm512_load_si512(group.words[w]), w1 = _mm512_load_si512(group.words[w] + 16);
    TAMPU_UNROLL for (int r = 0; r < R; ++r) {
      const __m512i a = broadcast4(rows[r] + offset + 4 * w);
      acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], w0, a);
      acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], w1, a);
    }
  }
}

// Integer sums of words [begin, end), offset included.
template <int R, Precision P>
inline void group_dot(const Int8Group& group, int begin, int end, const uint8_t* const* rows, const __m512i* start,
                      __m512i (*acc)[2]) {
  if constexpr (P == Precision::Normal) {
    TAMPU_UNROLL for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = start[r];
    dot_words<R>(group, begin, end, rows, 0, acc);
  } else {
    TAMPU_UNROLL for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm512_setzero_si512();
    dot_words<R>(group, begin, end, rows, 0, acc);
    TAMPU_UNROLL for (int r = 0; r < R; ++r) {
      TAMPU_UNROLL for (int h = 0; h < 2; ++h)
        acc[r][h] = _mm512_add_epi32(_mm512_slli_epi32(acc[r][h], 8), start[r]);
    }
    dot_words<R>(group, begin, end, rows, kGroup, acc);
  }
}

template <int R>
inline void accumulate(const float* weight_scale, const uint8_t* const* rows, int sums_offset, const __m512i (*acc)[2],
                       __m512 (*sums)[2]) {
  const __m512 s0 = _mm512_load_ps(weight_scale), s1 = _mm512_load_ps(weight_scale + 16);
  TAMPU_UNROLL for (int r = 0; r < R; ++r) {
    const __m512 a = _mm512_set1_ps(reinterpret_cast<const GroupSums*>(rows[r] + sums_offset)->scale);
    sums[r][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][0]), _mm512_mul_ps(s0, a), sums[r][0]);
    sums[r][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][1]), _mm512_mul_ps(s1, a), sums[r][1]);
  }
}

template <int R, GroupKind K, Precision P>
inline void tile_group(const Int8Group& group, const uint8_t* const* rows, __m512 (*sums)[2]) {
  constexpr int kSums = (P == Precision::High ? 2 : 1) * kGroup;
  __m512i start[R], acc[R][2];
  const auto minus8 = [&](int r) { return _mm512_set1_epi32(reinterpret_cast<const GroupSums*>(rows[r] + kSums)->minus8); };
  if constexpr (K == GroupKind::Halves) {
    __m512i low[R];
    TAMPU_UNROLL for (int r = 0; r < R; ++r)
      low[r] = _mm512_set1_epi32(reinterpret_cast<const GroupSums*>(rows[r] + kSums)->minus32_low);
    group_dot<R, P>(group, 0, 4, rows, low, acc);
    accumulate<R>(group.scale, rows, kSums, acc, sums);
    TAMPU_UNROLL for (int r = 0; r < R; ++r) {
      const __m512i low_again = _mm512_set1_epi32(reinterpret_cast<const GroupSums*>(rows[r] + kSums)->minus32_low);
      start[r] = _mm512_sub_epi32(_mm512_slli_epi32(minus8(r), 2), low_again);
    }
    group_dot<R, P>(group, 4, 8, rows, start, acc);
    accumulate<R>(group.extra, rows, kSums, acc, sums);
  } else {
    TAMPU_UNROLL for (int r = 0; r < R; ++r) {
      start[r] = K == GroupKind::Offset8     ? minus8(r)
                 : K == GroupKind::Offset128 ? _mm512_slli_epi32(minus8(r), 4)
                                             : _mm512_setzero_si512();
    }
    group_dot<R, P>(group, 0, 8, rows, start, acc);
    accumulate<R>(group.scale, rows, kSums, acc, sums);
    if constexpr (K == GroupKind::Minimum) {
      const __m512 m0 = _mm512_load_ps(group.extra), m1 = _mm512_load_ps(group.extra + 16);
      TAMPU_UNROLL for (int r = 0; r < R; ++r) {
        const __m512 a = _mm512_set1_ps(reinterpret_cast<const GroupSums*>(rows[r] + kSums)->scaled_sum);
        sums[r][0] = _mm512_fmadd_ps(m0, a, sums[r][0]);
        sums[r][1] = _mm512_fmadd_ps(m1, a, sums[r][1]);
      }
    }
  }
}

template <int R, GroupKind K, Precision P>
void int8_tile_of(const Int8Group* groups, int num_groups, const uint8_t* activations, size_t stride,
                  const TileOutput& output, Ahead& ahead) {
  constexpr size_t kRecord = P == Precision::High ? sizeof(Int16Record) : sizeof(Int8Record);
  const uint8_t* rows[R];
  TAMPU_UNROLL for (int r = 0; r < R; ++r) rows[r] = activations + r * stride;
  __m512 sums[R][2];
  load_sums<R>(output, sums);
  for (const Int8Group* end = groups + num_groups; groups != end; ++groups) {
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

using Int8Tile = void (*)(const Int8Group*, int, const uint8_t*, size_t, const TileOutput&, Ahead&);
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

  static void int8_tile(GroupKind kind, Precision precision, int rows, const Int8Group* groups, int num_groups,
                        const uint8_t* activations, size_t stride, const TileOutput& output, Ahead& ahead) {
    const auto tile = kind == GroupKind::Offset8     ? int8_tile_by_precision<GroupKind::Offset8>(precision, rows)
                      : kind == GroupKind::Offset128 ? int8_tile_by_precision<GroupKind::Offset128>(precision, rows)
                      : kind == GroupKind::Minimum   ? int8_tile_by_precision<GroupKind::Minimum>(precision, rows)
                                                     : int8_tile_by_precision<GroupKind::Halves>(precision, rows);
    tile(groups, num_groups, activations, stride, output, ahead);
  }

  static void float_tile(int rows, const float (*weights)[kPanel], int num_k, const uint8_t* activations,
                         size_t stride, const TileOutput& output) {
    static constexpr FloatTile tiles[] = {float_tile_of<1>, float_tile_of<2>, float_tile_of<3>,
                                          float_tile_of<4>, float_tile_of<5>, float_tile_of<6>};
    tiles[rows - 1](weights, num_k, activations, stride, output);
  }
};

inline uint32_t largest_magnitude(__m512 a, __m512 b) {
  const __m512i mask = _mm512_set1_epi32(0x7fffffff);
  return _mm512_reduce_max_epu32(_mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(a), mask),
                                                  _mm512_and_si512(_mm512_castps_si512(b), mask)));
}

// Rounded to nearest even, as std::nearbyint does; zero where the group has no usable scale.
inline __m512i levels_of(__m512 x, float inverse) {
  const __m512i q = _mm512_cvt_roundps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse)),
                                             _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return _mm512_maskz_mov_epi32(inverse == 0.0f ? 0 : 0xffff, q);
}

void quantize_normal(const float* x, int k, Int8Record* out) {
  for (int g = 0; g < k / kGroup; ++g, x += kGroup) {
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    const GroupScale scale = group_scale(largest_magnitude(a, b), kNormalLevels);
    const __m512i qa = levels_of(a, scale.inverse), qb = levels_of(b, scale.inverse);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out[g].q), _mm512_cvtepi32_epi8(qa));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out[g].q + 16), _mm512_cvtepi32_epi8(qb));
    const int32_t low = _mm512_reduce_add_epi32(qa), high = _mm512_reduce_add_epi32(qb);
    set_sums(out[g].sums, scale.scale, low + high, low);
  }
}

void quantize_high(const float* x, int k, Int16Record* out) {
  for (int g = 0; g < k / kGroup; ++g, x += kGroup) {
    const __m512 v[2] = {_mm512_loadu_ps(x), _mm512_loadu_ps(x + 16)};
    const GroupScale scale = group_scale(largest_magnitude(v[0], v[1]), kHighLevels);
    int32_t sum[2];
    for (int h = 0; h < 2; ++h) {
      const __m512i q = levels_of(v[h], scale.inverse);
      const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out[g].high + 16 * h), _mm512_cvtepi32_epi8(high));
      // The low byte of q is q - 256 * high.
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out[g].low + 16 * h), _mm512_cvtepi32_epi8(q));
      sum[h] = _mm512_reduce_add_epi32(q);
    }
    set_sums(out[g].sums, scale.scale, sum[0] + sum[1], sum[0]);
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
