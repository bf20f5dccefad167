// The kernels for AVX-512 with VNNI. One 64-byte register holds 16 columns x 4 values of K; vpdpbusd multiplies it
// with 4 activations broadcast from memory. Tiles are up to 6 rows x 32 columns: 12 integer and 12 float accumulators.
// Every tile height performs the same operations per row in the same order.
// GCC 12 takes the undefined pass-through operands of its own intrinsics for uninitialised reads.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "linear_packed_avx512.h"
#include "linear_quantize.h"
#include "linear_tile_avx512.h"

namespace tampu::detail {
namespace {

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
    tile_group<R, K, P>(WidenedWords{groups->w}, *groups, rows, sums);
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
  static constexpr int kInt8Rows = 6, kFloatRows = 6, kPackedRows = detail::kPackedRows;

  static void halves(const uint16_t* source, float* out) {
    _mm512_storeu_ps(out, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source))));
    _mm512_storeu_ps(out + 16, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + 16))));
  }

  static void expand(QType qtype, const uint8_t* panel, int group_begin, int num_groups, WeightGroup* out) {
    expand_groups_avx512(qtype, panel, group_begin, num_groups, out);
  }

  static void int8_tile(GroupKind kind, Precision precision, int rows, const WeightGroup* groups, int num_groups,
                        const uint8_t* activations, size_t stride, const TileOutput& output, Ahead& ahead) {
    const auto tile = has_minimum(kind)           ? int8_tile_by_precision<GroupKind::Minimum>(precision, rows)
                      : kind == GroupKind::Halves ? int8_tile_by_precision<GroupKind::Halves>(precision, rows)
                                                  : int8_tile_by_precision<GroupKind::Bytes>(precision, rows);
    tile(groups, num_groups, activations, stride, output, ahead);
  }

  static int packed_rows(QType qtype) { return detail::packed_rows(qtype); }

  static void packed_scales(QType qtype, const uint8_t* packed, int num_groups, GroupScales* out, Ahead& ahead) {
    const auto scales = packed_kernels(qtype).scales;
    if (scales != nullptr) scales(packed, block_layout(qtype).packed_bytes(), num_groups, out, ahead);
  }

  static void packed_tile(QType qtype, Precision precision, int rows, const uint8_t* packed, const GroupScales* scales,
                          int num_groups, const uint8_t* activations, size_t stride, const TileOutput& output,
                          Ahead& ahead) {
    const PackedKernels& kernels = packed_kernels(qtype);
    const PackedTile tile = (precision == Precision::High ? kernels.high : kernels.normal)[static_cast<size_t>(rows) - 1];
    tile(packed, block_layout(qtype).packed_bytes(), scales, num_groups, activations, stride, output, ahead);
  }

  static void float_tile(int rows, const float (*weights)[kPanel], int num_k, const uint8_t* activations,
                         size_t stride, const TileOutput& output) {
    static constexpr FloatTile tiles[] = {float_tile_of<1>, float_tile_of<2>, float_tile_of<3>,
                                          float_tile_of<4>, float_tile_of<5>, float_tile_of<6>};
    tiles[rows - 1](weights, num_k, activations, stride, output);
  }
};

// One value per register from eight registers of eight: out[i] = op over the lanes of v[i].
template <class Op>
inline __m256 reduce_each(const __m256* v, const Op& op) {
  const auto pairs = [&](__m256 a, __m256 b) { return op(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)); };
  const auto quads = [&](__m256 a, __m256 b) {
    const __m256d x = _mm256_castps_pd(a), y = _mm256_castps_pd(b);
    return op(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)), _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
  };
  const __m256 low = quads(pairs(v[0], v[1]), pairs(v[2], v[3])), high = quads(pairs(v[4], v[5]), pairs(v[6], v[7]));
  return op(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

inline __m256 upper_half(__m512 v) { return _mm512_extractf32x8_ps(v, 1); }

// Scale, offset and inverse of up to eight groups: group_range of linear_quantize.h, eight at a time.
struct EightRanges {
  alignas(32) float scale[8], offset[8], inverse[8];
};

inline void find_ranges(const float* x, int count, const float* levels, EightRanges& out) {
  __m256 smallest[8], largest[8];
  unsigned not_finite = 0;
  TAMPU_UNROLL for (int g = 0; g < 8; ++g) {
    const float* p = x + (g < count ? g : count - 1) * kGroup;
    const __m512 a = _mm512_loadu_ps(p), b = _mm512_loadu_ps(p + 16);
    const __m512 low = _mm512_min_ps(a, b), high = _mm512_max_ps(a, b);
    smallest[g] = _mm256_min_ps(_mm512_castps512_ps256(low), upper_half(low));
    largest[g] = _mm256_max_ps(_mm512_castps512_ps256(high), upper_half(high));
    constexpr int kNanOrInfinity = 0x99;
    const unsigned bad = _mm512_fpclass_ps_mask(a, kNanOrInfinity) | _mm512_fpclass_ps_mask(b, kNanOrInfinity);
    not_finite |= (bad != 0 ? 1u : 0u) << g;
  }
  const __m256 low = reduce_each(smallest, [](__m256 a, __m256 b) { return _mm256_min_ps(a, b); });
  const __m256 high = reduce_each(largest, [](__m256 a, __m256 b) { return _mm256_max_ps(a, b); });
  const __m256 all = _mm256_load_ps(levels), sign = _mm256_set1_ps(-0.0f);
  const __m256 magnitude = _mm256_max_ps(_mm256_andnot_ps(sign, low), _mm256_andnot_ps(sign, high));
  const __mmask8 used = _mm256_cmp_ps_mask(magnitude, _mm256_set1_ps(__builtin_bit_cast(float, kTinyBits)), _CMP_GE_OQ);
  const __m256 scale = _mm256_sub_ps(_mm256_div_ps(high, all), _mm256_div_ps(low, all));
  const __mmask8 ranged = used & _mm256_cmp_ps_mask(scale, _mm256_set1_ps(kTinyScale), _CMP_GE_OQ);
  const __mmask8 finite = static_cast<__mmask8>(~not_finite);
  const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
  _mm256_store_ps(out.scale, _mm256_mask_mov_ps(nan, finite, _mm256_maskz_mov_ps(ranged, scale)));
  _mm256_store_ps(out.offset, _mm256_maskz_mov_ps(finite & used, low));
  _mm256_store_ps(out.inverse, _mm256_maskz_mov_ps(finite & ranged, _mm256_div_ps(_mm256_set1_ps(1.0f), scale)));
}

// Rounded to nearest even, as std::nearbyint does.
inline __m512i levels_of(const float* x, __m512 offset, __m512 inverse, __mmask16 used, float levels) {
  const __m512 level = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x), offset), inverse);
  return _mm512_maskz_cvt_roundps_epi32(used, _mm512_min_ps(level, _mm512_set1_ps(levels)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// store(record, a, b) writes the levels of values 0-15 and 16-31.
template <class Record, class Form, class Store>
inline void quantize_groups(const float* x, int k, const Form& form_of, Record* out, const Store& store) {
  for (int first = 0, left = k / kGroup; left > 0; first += 8, left -= 8, x += 8 * kGroup, out += 8) {
    const int count = left < 8 ? left : 8;
    alignas(32) float levels[8];
    TAMPU_UNROLL for (int g = 0; g < 8; ++g) levels[g] = form_of(first + (g < count ? g : 0)).largest;
    EightRanges ranges;
    find_ranges(x, count, levels, ranges);
    __m256 sums[8];
    TAMPU_UNROLL for (int g = 0; g < 8; ++g) {
      sums[g] = _mm256_setzero_ps();
      if (g >= count) continue;
      const __m512 offset = _mm512_set1_ps(ranges.offset[g]), inverse = _mm512_set1_ps(ranges.inverse[g]);
      const __mmask16 used = _mm512_cmp_ps_mask(inverse, _mm512_setzero_ps(), _CMP_NEQ_UQ);
      const __m512i a = levels_of(x + g * kGroup, offset, inverse, used, levels[g]);
      const __m512i b = levels_of(x + g * kGroup + 16, offset, inverse, used, levels[g]);
      store(out[g], a, b, form_of(first + g).shift);
      const __m512i both = _mm512_add_epi32(a, b);
      sums[g] = _mm256_castsi256_ps(_mm256_add_epi32(_mm512_castsi512_si256(both), _mm512_extracti32x8_epi32(both, 1)));
    }
    const __m256 total = reduce_each(sums, [](__m256 a, __m256 b) {
      return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
    });
    alignas(32) int32_t level_sum[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(level_sum), _mm256_castps_si256(total));
    for (int g = 0; g < count; ++g)
      finish_record(out[g], {ranges.scale[g], ranges.offset[g], ranges.inverse[g]}, level_sum[g], form_of(first + g));
  }
}

inline void store_bytes(uint8_t* out, __m512i a, __m512i b) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(a));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16), _mm512_cvtepi32_epi8(b));
}

void quantize_normal(const float* x, int k, Int8Record* out) {
  quantize_groups(
      x, k, [](int) { return kNormalForm; }, out,
      [](Int8Record& record, __m512i a, __m512i b, int) { store_bytes(record.level, a, b); });
}

void quantize_high(const float* x, int k, const uint8_t* is_fine, Int16Record* out) {
  quantize_groups(
      x, k, [is_fine](int g) { return high_form(is_fine, g); }, out,
      [](Int16Record& record, __m512i a, __m512i b, int shift) {
        const __m512i low_a = _mm512_slli_epi32(a, static_cast<unsigned>(shift));
        const __m512i low_b = _mm512_slli_epi32(b, static_cast<unsigned>(shift));
        store_bytes(record.high, _mm512_srli_epi32(low_a, 8), _mm512_srli_epi32(low_b, 8));
        store_bytes(record.low, low_a, low_b);   // the low byte of each
      });
}

void silu_mul_row(const float* gate, const float* up, int n, float* out) {
  for (int i = 0; i < n; i += 16) {
    const __mmask16 mask = n - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (n - i)) - 1);
    const __m512 g = _mm512_maskz_loadu_ps(mask, gate + i), u = _mm512_maskz_loadu_ps(mask, up + i);
    _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(silu(g), u));
  }
}

}  // namespace

const KernelTable& avx512_kernels() {
  static constexpr KernelTable table{matmul_int8<Avx512>, matmul_f32<Avx512>, quantize_normal, quantize_high,
                                     silu_mul_row};
  return table;
}

}  // namespace tampu::detail
