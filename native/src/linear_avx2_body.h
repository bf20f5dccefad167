// The kernels of AVX2 and FMA, with and without AVX-VNNI, which the including file's flags decide. Without it, bytes are
// multiplied in pairs into 16 bits (vpmaddubsw), as many sums kept there as a format's values allow, and weights of 8
// bits in 16 bits (vpmaddwd). Tiles are up to 3 rows x 16 columns. Every tile height performs the same operations per
// row in the same order. Included once by linear_avx2.cpp and once by linear_avxvnni.cpp; internal linkage.
#pragma once
#include <immintrin.h>

#include "linear_driver.h"
#include "linear_quantize.h"

namespace tampu::detail {
namespace {

#define TAMPU_UNROLL _Pragma("GCC unroll 16")

constexpr int kColumns = 16;   // of one pass over a tile: two registers

template <int R>
inline void load_sums(const TileOutput& output, int column, __m256 (*sums)[2]) {
  TAMPU_UNROLL for (int r = 0; r < R; ++r) {
    TAMPU_UNROLL for (int h = 0; h < 2; ++h)
      sums[r][h] = output.is_first ? _mm256_setzero_ps() : _mm256_load_ps(output.partial[r] + column + 8 * h);
  }
}

// e^x for 8 values: 2^n * polynomial on [-ln2/2, ln2/2], relative error below 2e-7. NaN stays NaN.
inline __m256 exp_ps(__m256 x) {
  x = _mm256_min_ps(_mm256_set1_ps(88.0f), _mm256_max_ps(_mm256_set1_ps(-87.0f), x));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.3981999507e-3f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
  p = _mm256_fmadd_ps(_mm256_mul_ps(p, r), r, _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
  const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(p, _mm256_castsi256_ps(exponent));
}

inline __m256 silu(__m256 x) {
  const __m256 e = exp_ps(_mm256_sub_ps(_mm256_setzero_ps(), x));
  return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

template <int R>
inline void store_sums(const TileOutput& output, int column, const __m256 (*sums)[2]) {
  for (int r = 0; r < R; ++r) {
    if (!output.is_last) {
      _mm256_store_ps(output.partial[r] + column, sums[r][0]);
      _mm256_store_ps(output.partial[r] + column + 8, sums[r][1]);
      continue;
    }
    alignas(32) float v[kColumns];
    TAMPU_UNROLL for (int h = 0; h < 2; ++h) {
      __m256 sum = sums[r][h];
      if (output.gate != nullptr) sum = _mm256_mul_ps(silu(_mm256_load_ps(output.gate[r] + column + 8 * h)), sum);
      _mm256_store_ps(v + 8 * h, sum);
    }
    float* y = output.y + r * output.ldy + column;
    const int left = output.num_columns - column;
    for (int c = 0; c < (left < kColumns ? left : kColumns); ++c) y[c] = output.add ? y[c] + v[c] : v[c];
  }
}

template <Precision P>
inline const GroupLevels& levels_of_row(const uint8_t* record) {
  return *reinterpret_cast<const GroupLevels*>(record + (P == Precision::High ? 2 : 1) * kGroup);
}

inline __m256i load_words(const int8_t (*p)[4]) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }

#if defined(__AVXVNNI__)
constexpr bool kHasVnni = true;
inline __m256i dot_bytes(__m256i acc, __m256i levels, __m256i w) { return _mm256_dpbusd_avx_epi32(acc, levels, w); }
#elif defined(__AVX512VNNI__) && defined(__AVX512VL__)   // the same operation in the other encoding, for tests
constexpr bool kHasVnni = true;
inline __m256i dot_bytes(__m256i acc, __m256i levels, __m256i w) { return _mm256_dpbusd_epi32(acc, levels, w); }
#else
constexpr bool kHasVnni = false;
inline __m256i dot_bytes(__m256i acc, __m256i, __m256i) { return acc; }
#endif

// The weights of a format: what 16 bits can add up decides how they are multiplied.
template <GroupKind K>
struct Weights {
  static constexpr bool kIsSigned = !has_minimum(K);
  static constexpr int kLargest = K == GroupKind::Nibbles ? 8 : K == GroupKind::Minimum ? 15
                                : K == GroupKind::FiveBits ? 31 : K == GroupKind::Halves ? 32 : 128;
  // Words (pairs of products of bytes) whose sums fit 16 bits: signed, or unsigned where no weight is negative.
  static constexpr int kWords = (kIsSigned ? 32767 : 65535) / (2 * 255 * kLargest);
  static constexpr bool kIsWide = !kHasVnni && kWords == 0;   // multiplied in 16 bits
};

// Compilers add sums of sums as trees, for which there are not enough registers; here a sum grows in its own.
inline __m256i in_register(__m256i v) {
  asm("" : "+x"(v));
  return v;
}

inline __m256i broadcast_word(const void* p) { return _mm256_set1_epi32(*static_cast<const int*>(p)); }

// acc (32-bit) = words [begin, end) times 4 levels per row.
template <int R, GroupKind K>
inline void dot_words(const WeightGroup& group, int column, int begin, int end, const uint8_t* const* rows, int offset,
                      __m256i (*acc)[2]) {
  TAMPU_UNROLL for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
  if constexpr (kHasVnni) {
    TAMPU_UNROLL for (int q = begin; q < end; ++q) {
      const __m256i w0 = load_words(group.w[q] + column), w1 = load_words(group.w[q] + column + 8);
      TAMPU_UNROLL for (int r = 0; r < R; ++r) {
        const __m256i a = broadcast_word(rows[r] + offset + 4 * q);
        acc[r][0] = dot_bytes(acc[r][0], a, w0);
        acc[r][1] = dot_bytes(acc[r][1], a, w1);
      }
    }
  } else {
    constexpr int kFits = Weights<K>::kWords, kSteps = kFits >= 8 ? 8 : kFits >= 4 ? 4 : 2;
    static_assert(kFits >= 2);
    const __m256i ones = _mm256_set1_epi16(1), sign = _mm256_set1_epi16(-32768);
    for (int first = begin; first < end; first += kSteps) {
      __m256i narrow[R][2];
      // Unsigned sums start at -2^15, so that they wrap into signed ones.
      TAMPU_UNROLL for (int r = 0; r < R; ++r)
        narrow[r][0] = narrow[r][1] = Weights<K>::kIsSigned ? _mm256_setzero_si256() : sign;
      TAMPU_UNROLL for (int s = 0; s < kSteps; ++s) {
        const int q = first + s;
        const __m256i w0 = load_words(group.w[q] + column), w1 = load_words(group.w[q] + column + 8);
        TAMPU_UNROLL for (int r = 0; r < R; ++r) {
          const __m256i a = broadcast_word(rows[r] + offset + 4 * q);
          narrow[r][0] = in_register(_mm256_add_epi16(narrow[r][0], _mm256_maddubs_epi16(a, w0)));
          narrow[r][1] = in_register(_mm256_add_epi16(narrow[r][1], _mm256_maddubs_epi16(a, w1)));
        }
      }
      TAMPU_UNROLL for (int r = 0; r < R; ++r) {
        TAMPU_UNROLL for (int h = 0; h < 2; ++h)
          acc[r][h] = _mm256_add_epi32(acc[r][h], _mm256_madd_epi16(narrow[r][h], ones));
      }
    }
    if constexpr (!Weights<K>::kIsSigned) {
      const __m256i back = _mm256_set1_epi32(65536 * ((end - begin) / kSteps));
      TAMPU_UNROLL for (int r = 0; r < R; ++r) {
        TAMPU_UNROLL for (int h = 0; h < 2; ++h) acc[r][h] = _mm256_add_epi32(acc[r][h], back);
      }
    }
  }
}

// The levels of a group in 16 bits, those of even and of odd K apart: word q of each belongs to weights' word q.
// High levels are kept as level - 2^15, which 16 signed bits hold; kHighShift puts it back.
struct alignas(32) WideLevels {
  int32_t even[8], odd[8];
};
constexpr float kHighShift = 32768.0f;

template <Precision P>
inline void widen_levels(const uint8_t* record, WideLevels& out) {
  const __m256i bytes = _mm256_set1_epi16(0xff);
  const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(record));
  __m256i even = _mm256_and_si256(first, bytes), odd = _mm256_srli_epi16(first, 8);
  if constexpr (P == Precision::High) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(record + kGroup));
    const __m256i sign = _mm256_set1_epi16(-32768);
    even = _mm256_xor_si256(_mm256_or_si256(_mm256_slli_epi16(even, 8), _mm256_and_si256(low, bytes)), sign);
    odd = _mm256_xor_si256(_mm256_or_si256(_mm256_slli_epi16(odd, 8), _mm256_srli_epi16(low, 8)), sign);
  }
  _mm256_store_si256(reinterpret_cast<__m256i*>(out.even), even);
  _mm256_store_si256(reinterpret_cast<__m256i*>(out.odd), odd);
  asm("" : "+m"(out));   // broadcasts from memory are free, from registers they are not
}

// acc (32-bit) = all words times the levels: weights of 8 bits, or both bytes of High levels at once.
template <int R>
inline void dot_wide(const WeightGroup& group, int column, const WideLevels* levels, __m256i (*acc)[2]) {
  TAMPU_UNROLL for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
  TAMPU_UNROLL for (int q = 0; q < 8; ++q) {
    const __m256i w0 = load_words(group.w[q] + column), w1 = load_words(group.w[q] + column + 8);
    const __m256i even0 = _mm256_srai_epi16(_mm256_slli_epi16(w0, 8), 8);
    const __m256i even1 = _mm256_srai_epi16(_mm256_slli_epi16(w1, 8), 8);
    TAMPU_UNROLL for (int r = 0; r < R; ++r) {
      const __m256i a = broadcast_word(levels[r].even + q);
      acc[r][0] = in_register(_mm256_add_epi32(acc[r][0], _mm256_madd_epi16(even0, a)));
      acc[r][1] = in_register(_mm256_add_epi32(acc[r][1], _mm256_madd_epi16(even1, a)));
    }
    const __m256i odd0 = _mm256_srai_epi16(w0, 8), odd1 = _mm256_srai_epi16(w1, 8);
    TAMPU_UNROLL for (int r = 0; r < R; ++r) {
      const __m256i a = broadcast_word(levels[r].odd + q);
      acc[r][0] = in_register(_mm256_add_epi32(acc[r][0], _mm256_madd_epi16(odd0, a)));
      acc[r][1] = in_register(_mm256_add_epi32(acc[r][1], _mm256_madd_epi16(odd1, a)));
    }
  }
}

// sums += integers of `acc`, scaled.
template <int R, Precision P>
inline void add_scaled(const __m256i (*acc)[2], const float* weight_scale, const uint8_t* const* rows,
                       __m256 (*sums)[2]) {
  const __m256 s0 = _mm256_load_ps(weight_scale), s1 = _mm256_load_ps(weight_scale + 8);
  TAMPU_UNROLL for (int r = 0; r < R; ++r) {
    const __m256 a = _mm256_set1_ps(levels_of_row<P>(rows[r]).scale);
    sums[r][0] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[r][0]), _mm256_mul_ps(s0, a), sums[r][0]);
    sums[r][1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[r][1]), _mm256_mul_ps(s1, a), sums[r][1]);
  }
}

// sums += integer sums of words [begin, end), scaled.
template <int R, GroupKind K, Precision P>
inline void accumulate(const WeightGroup& group, int column, int begin, int end, const float* weight_scale,
                       const uint8_t* const* rows, __m256 (*sums)[2]) {
  __m256i acc[R][2];
  dot_words<R, K>(group, column, begin, end, rows, 0, acc);
  if constexpr (P == Precision::High) {
    TAMPU_UNROLL for (int r = 0; r < R; ++r) {
      TAMPU_UNROLL for (int h = 0; h < 2; ++h) acc[r][h] = _mm256_slli_epi32(acc[r][h], 8);
    }
    if (reinterpret_cast<const Int16Record*>(rows[0])->is_fine != 0) {
      __m256i low[R][2];
      dot_words<R, K>(group, column, begin, end, rows, kGroup, low);
      TAMPU_UNROLL for (int r = 0; r < R; ++r) {
        TAMPU_UNROLL for (int h = 0; h < 2; ++h) acc[r][h] = _mm256_add_epi32(acc[r][h], low[r][h]);
      }
    }
  }
  add_scaled<R, P>(acc, weight_scale + column, rows, sums);
}

template <int R>
inline void add_outer(const float* columns, int column, const float* row_values, __m256 (*sums)[2]) {
  const __m256 v0 = _mm256_load_ps(columns + column), v1 = _mm256_load_ps(columns + column + 8);
  TAMPU_UNROLL for (int r = 0; r < R; ++r) {
    const __m256 a = _mm256_set1_ps(row_values[r]);
    sums[r][0] = _mm256_fmadd_ps(v0, a, sums[r][0]);
    sums[r][1] = _mm256_fmadd_ps(v1, a, sums[r][1]);
  }
}

template <int R, GroupKind K, Precision P>
inline void tile_group(const WeightGroup& group, int column, const uint8_t* const* rows, __m256 (*sums)[2]) {
  constexpr bool kIsShifted = Weights<K>::kIsWide && P == Precision::High;
  if constexpr (Weights<K>::kIsWide) {
    WideLevels levels[R];
    __m256i acc[R][2];
    TAMPU_UNROLL for (int r = 0; r < R; ++r) widen_levels<P>(rows[r], levels[r]);
    dot_wide<R>(group, column, levels, acc);
    add_scaled<R, P>(acc, group.scale + column, rows, sums);
  } else if constexpr (K == GroupKind::Halves) {
    accumulate<R, K, P>(group, column, 0, 4, group.scale, rows, sums);
    accumulate<R, K, P>(group, column, 4, 8, group.extra, rows, sums);
  } else {
    accumulate<R, K, P>(group, column, 0, 8, group.scale, rows, sums);
  }
  float offset[R], sum[R];
  TAMPU_UNROLL for (int r = 0; r < R; ++r) {
    const GroupLevels& levels = levels_of_row<P>(rows[r]);
    offset[r] = kIsShifted ? levels.offset + kHighShift * levels.scale : levels.offset;
    sum[r] = levels.sum;
  }
  add_outer<R>(group.scaled_sum, column, offset, sums);
  if constexpr (has_minimum(K)) add_outer<R>(group.extra, column, sum, sums);
}

template <int R, GroupKind K, Precision P>
void int8_tile_of(const WeightGroup* groups, int num_groups, const uint8_t* activations, size_t stride,
                  const TileOutput& output, Ahead& ahead) {
  constexpr size_t kRecord = P == Precision::High ? sizeof(Int16Record) : sizeof(Int8Record);
  for (int column = 0; column < kPanel; column += kColumns) {
    const uint8_t* rows[R];
    TAMPU_UNROLL for (int r = 0; r < R; ++r) rows[r] = activations + r * stride;
    __m256 sums[R][2];
    load_sums<R>(output, column, sums);
    for (int g = 0; g < num_groups; ++g) {
      ahead.fetch();
      tile_group<R, K, P>(groups[g], column, rows, sums);
      TAMPU_UNROLL for (int r = 0; r < R; ++r) rows[r] += kRecord;
    }
    store_sums<R>(output, column, sums);
  }
}

template <int R>
void float_tile_of(const float (*weights)[kPanel], int num_k, const uint8_t* activations, size_t stride,
                   const TileOutput& output) {
  for (int column = 0; column < kPanel; column += kColumns) {
    const float* rows[R];
    TAMPU_UNROLL for (int r = 0; r < R; ++r) rows[r] = reinterpret_cast<const float*>(activations + r * stride);
    __m256 sums[R][2];
    load_sums<R>(output, column, sums);
    for (int k = 0; k < num_k; ++k) {
      const __m256 w0 = _mm256_load_ps(weights[k] + column), w1 = _mm256_load_ps(weights[k] + column + 8);
      TAMPU_UNROLL for (int r = 0; r < R; ++r) {
        const __m256 a = _mm256_set1_ps(rows[r][k]);
        sums[r][0] = _mm256_fmadd_ps(w0, a, sums[r][0]);
        sums[r][1] = _mm256_fmadd_ps(w1, a, sums[r][1]);
      }
    }
    store_sums<R>(output, column, sums);
  }
}

using Int8Tile = void (*)(const WeightGroup*, int, const uint8_t*, size_t, const TileOutput&, Ahead&);
using FloatTile = void (*)(const float (*)[kPanel], int, const uint8_t*, size_t, const TileOutput&);

template <GroupKind K>
Int8Tile int8_tile_of_kind(Precision precision, int rows) {
  static constexpr Int8Tile normal[] = {int8_tile_of<1, K, Precision::Normal>, int8_tile_of<2, K, Precision::Normal>,
                                        int8_tile_of<3, K, Precision::Normal>};
  static constexpr Int8Tile high[] = {int8_tile_of<1, K, Precision::High>, int8_tile_of<2, K, Precision::High>,
                                      int8_tile_of<3, K, Precision::High>};
  return (precision == Precision::High ? high : normal)[rows - 1];
}

struct Avx2 {
  static constexpr int kInt8Rows = 3, kFloatRows = 6, kPackedRows = 0;

  static void halves(const uint16_t* source, float* out) {
    TAMPU_UNROLL for (int i = 0; i < kPanel; i += 8)
      _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i))));
  }

  static void column_sums(const int8_t* w, int num_words, int32_t* sums) {
    const __m256i bytes = _mm256_set1_epi8(1), pairs = _mm256_set1_epi16(1);
    for (int i = 0; i < 4; ++i) {
      __m256i s = _mm256_setzero_si256();
      for (int q = 0; q < num_words; ++q) {
        const __m256i v = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + 128 * q + 32 * i));
        s = _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, v), pairs));
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + 8 * i), s);
    }
  }

  static void expand(QType qtype, const uint8_t* panel, int group_begin, int num_groups, WeightGroup* out) {
    expand_groups<Avx2>(qtype, panel, group_begin, num_groups, out);
  }

  static void int8_tile(GroupKind kind, Precision precision, int rows, const WeightGroup* groups, int num_groups,
                        const uint8_t* activations, size_t stride, const TileOutput& output, Ahead& ahead) {
    const auto tile = kind == GroupKind::Nibbles   ? int8_tile_of_kind<GroupKind::Nibbles>(precision, rows)
                      : kind == GroupKind::Bytes   ? int8_tile_of_kind<GroupKind::Bytes>(precision, rows)
                      : kind == GroupKind::Minimum ? int8_tile_of_kind<GroupKind::Minimum>(precision, rows)
                      : kind == GroupKind::FiveBits ? int8_tile_of_kind<GroupKind::FiveBits>(precision, rows)
                                                    : int8_tile_of_kind<GroupKind::Halves>(precision, rows);
    tile(groups, num_groups, activations, stride, output, ahead);
  }

  static void float_tile(int rows, const float (*weights)[kPanel], int num_k, const uint8_t* activations,
                         size_t stride, const TileOutput& output) {
    static constexpr FloatTile tiles[] = {float_tile_of<1>, float_tile_of<2>, float_tile_of<3>,
                                          float_tile_of<4>, float_tile_of<5>, float_tile_of<6>};
    tiles[rows - 1](weights, num_k, activations, stride, output);
  }
};

inline int32_t add_lanes(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

inline uint32_t largest_lane(__m256i v) {
  __m128i s = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_max_epu32(s, _mm_shuffle_epi32(s, 0x4e));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(s, _mm_shuffle_epi32(s, 0xb1))));
}

inline float largest_lane(__m256 v) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

inline GroupRange range_of(const __m256* x, float levels) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256i magnitude = _mm256_setzero_si256();
  TAMPU_UNROLL for (int i = 0; i < 4; ++i)
    magnitude = _mm256_max_epu32(magnitude, _mm256_castps_si256(_mm256_andnot_ps(sign, x[i])));
  const __m256 largest = _mm256_max_ps(_mm256_max_ps(x[0], x[1]), _mm256_max_ps(x[2], x[3]));
  const __m256 smallest = _mm256_min_ps(_mm256_min_ps(x[0], x[1]), _mm256_min_ps(x[2], x[3]));
  return group_range(largest_lane(magnitude), -largest_lane(_mm256_xor_ps(smallest, sign)), largest_lane(largest),
                     levels);
}

// The low bytes of 32 integers, in order.
inline void store_bytes(const __m256i* q, uint8_t* out) {
  const __m256i mask = _mm256_set1_epi32(0xff);
  const __m256i a = _mm256_packus_epi32(_mm256_and_si256(q[0], mask), _mm256_and_si256(q[1], mask));
  const __m256i b = _mm256_packus_epi32(_mm256_and_si256(q[2], mask), _mm256_and_si256(q[3], mask));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b), order));
}

// Rounds to nearest even.
template <class Record, class Form, class Store>
inline void quantize_groups(const float* x, int k, const Form& form_of, Record* out, const Store& store) {
  for (int g = 0; g < k / kGroup; ++g, x += kGroup) {
    const LevelForm form = form_of(g);
    __m256 v[4];
    TAMPU_UNROLL for (int i = 0; i < 4; ++i) v[i] = _mm256_loadu_ps(x + 8 * i);
    const GroupRange range = range_of(v, form.largest);
    __m256i q[4];
    TAMPU_UNROLL for (int i = 0; i < 4; ++i) {
      const __m256 level =
          _mm256_mul_ps(_mm256_sub_ps(v[i], _mm256_set1_ps(range.offset)), _mm256_set1_ps(range.inverse));
      q[i] = _mm256_cvtps_epi32(_mm256_min_ps(level, _mm256_set1_ps(form.largest)));
      if (range.inverse == 0.0f) q[i] = _mm256_setzero_si256();
    }
    store(out[g], q, form.shift);
    const __m256i sums = _mm256_add_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3]));
    finish_record(out[g], range, add_lanes(sums), form);
  }
}

void quantize_normal(const float* x, int k, Int8Record* out) {
  quantize_groups(
      x, k, [](int) { return kNormalForm; }, out,
      [](Int8Record& record, const __m256i* q, int) { store_bytes(q, record.level); });
}

void quantize_high(const float* x, int k, const uint8_t* is_fine, Int16Record* out) {
  quantize_groups(
      x, k, [is_fine](int g) { return high_form(is_fine, g); }, out,
      [](Int16Record& record, const __m256i* q, int shift) {
        __m256i low[4], high[4];
        for (int i = 0; i < 4; ++i) {
          low[i] = _mm256_slli_epi32(q[i], shift);
          high[i] = _mm256_srli_epi32(low[i], 8);
        }
        store_bytes(high, record.high);
        store_bytes(low, record.low);
      });
}

inline __m256 silu_mul8(__m256 gate, __m256 up) { return _mm256_mul_ps(silu(gate), up); }

void silu_mul_row(const float* gate, const float* up, int n, float* out) {
  int i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, silu_mul8(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i)));
  if (i == n) return;
  alignas(32) float g[8] = {}, u[8] = {}, y[8];
  for (int j = i; j < n; ++j) g[j - i] = gate[j], u[j - i] = up[j];
  _mm256_store_ps(y, silu_mul8(_mm256_load_ps(g), _mm256_load_ps(u)));
  for (int j = i; j < n; ++j) out[j] = y[j - i];
}

constexpr KernelTable kTable{matmul_int8<Avx2>, matmul_f32<Avx2>, quantize_normal, quantize_high, silu_mul_row};

}  // namespace
}  // namespace tampu::detail
