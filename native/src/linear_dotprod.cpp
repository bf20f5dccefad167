// The integer kernels for ARM64 processors with the dot-product extension (sdot: four signed byte pairs added to each
// 32-bit lane). Everything else of this instruction set is the portable code, which compilers turn into NEON.
// The instruction multiplies signed bytes only, so levels are shifted by 128 and the shift is put back through the
// group's scaled sum. Tiles are up to 3 rows x 16 columns; every height does the same operations in the same order.
#include <arm_neon.h>

#include <cmath>

#include "linear_driver.h"

namespace tampu::detail {
namespace {

#define TAMPU_UNROLL _Pragma("GCC unroll 16")

constexpr int kColumns = 16;   // of one pass over a tile: four registers

template <int R>
inline void load_sums(const TileOutput& output, int column, float32x4_t (*sums)[4]) {
  TAMPU_UNROLL for (int r = 0; r < R; ++r) {
    TAMPU_UNROLL for (int v = 0; v < 4; ++v)
      sums[r][v] = output.is_first ? vdupq_n_f32(0.0f) : vld1q_f32(output.partial[r] + column + 4 * v);
  }
}

template <int R>
inline void store_sums(const TileOutput& output, int column, const float32x4_t (*sums)[4]) {
  for (int r = 0; r < R; ++r) {
    float values[kColumns];
    float* to = output.is_last ? values : output.partial[r] + column;
    TAMPU_UNROLL for (int v = 0; v < 4; ++v) vst1q_f32(to + 4 * v, sums[r][v]);
    if (!output.is_last) continue;
    float* y = output.y + r * output.ldy + column;
    const int left = output.num_columns - column;
    for (int c = 0; c < (left < kColumns ? left : kColumns); ++c) {
      if (output.gate != nullptr) {
        const float gate = output.gate[r][column + c];   // as silu_mul_row of the portable kernels
        values[c] = gate / (1.0f + std::exp(-gate)) * values[c];
      }
      y[c] = output.add ? y[c] + values[c] : values[c];
    }
  }
}

// acc += words 4 * half .. 4 * half + 3 (16 values of K) times the 16 levels at `offset` of each row.
template <int R>
inline void dot_half(const WeightGroup& group, int column, int half, const uint8_t* const* rows, int offset,
                     int32x4_t (*acc)[4]) {
  int8x16_t levels[R];
  TAMPU_UNROLL for (int r = 0; r < R; ++r)
    levels[r] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(rows[r] + offset + 16 * half), vdupq_n_u8(128)));
#define TAMPU_DOT(lane)                                                                \
  TAMPU_UNROLL for (int v = 0; v < 4; ++v) {                                           \
    const int8x16_t w = vld1q_s8(&group.w[4 * half + lane][column + 4 * v][0]);        \
    TAMPU_UNROLL for (int r = 0; r < R; ++r) acc[r][v] = vdotq_laneq_s32(acc[r][v], w, levels[r], lane); \
  }
  TAMPU_DOT(0)
  TAMPU_DOT(1)
  TAMPU_DOT(2)
  TAMPU_DOT(3)
#undef TAMPU_DOT
}

// sums += integer sums of halves [begin, end) of the group, scaled.
template <int R, Precision P>
inline void accumulate(const WeightGroup& group, int column, int begin, int end, const float* weight_scale,
                       const uint8_t* const* rows, const GroupLevels* levels, float32x4_t (*sums)[4]) {
  int32x4_t acc[R][4];
  TAMPU_UNROLL for (int r = 0; r < R; ++r) {
    TAMPU_UNROLL for (int v = 0; v < 4; ++v) acc[r][v] = vdupq_n_s32(0);
  }
  for (int half = begin; half < end; ++half) dot_half<R>(group, column, half, rows, 0, acc);
  if constexpr (P == Precision::High) {
    TAMPU_UNROLL for (int r = 0; r < R; ++r) {
      TAMPU_UNROLL for (int v = 0; v < 4; ++v) acc[r][v] = vshlq_n_s32(acc[r][v], 8);
    }
    for (int half = begin; half < end; ++half) dot_half<R>(group, column, half, rows, kGroup, acc);
  }
  TAMPU_UNROLL for (int v = 0; v < 4; ++v) {
    const float32x4_t scale = vld1q_f32(weight_scale + column + 4 * v);
    TAMPU_UNROLL for (int r = 0; r < R; ++r)
      sums[r][v] = vfmaq_f32(sums[r][v], vcvtq_f32_s32(acc[r][v]), vmulq_n_f32(scale, levels[r].scale));
  }
}

template <int R>
inline void add_outer(const float* columns, int column, const float* row_values, float32x4_t (*sums)[4]) {
  TAMPU_UNROLL for (int v = 0; v < 4; ++v) {
    const float32x4_t c = vld1q_f32(columns + column + 4 * v);
    TAMPU_UNROLL for (int r = 0; r < R; ++r) sums[r][v] = vfmaq_n_f32(sums[r][v], c, row_values[r]);
  }
}

template <int R, GroupKind K, Precision P>
void int8_tile_of(const WeightGroup* groups, int num_groups, const uint8_t* activations, size_t stride,
                  const TileOutput& output, Ahead& ahead) {
  constexpr size_t kRecord = P == Precision::High ? sizeof(Int16Record) : sizeof(Int8Record);
  constexpr float kShift = P == Precision::High ? 128.0f * 257.0f : 128.0f;   // of a level, from the flipped top bits
  for (int column = 0; column < kPanel; column += kColumns) {
    const uint8_t* rows[R];
    TAMPU_UNROLL for (int r = 0; r < R; ++r) rows[r] = activations + r * stride;
    float32x4_t sums[R][4];
    load_sums<R>(output, column, sums);
    for (int g = 0; g < num_groups; ++g) {
      ahead.fetch();
      GroupLevels levels[R];
      float offset[R], sum[R];
      TAMPU_UNROLL for (int r = 0; r < R; ++r) {
        levels[r] = *reinterpret_cast<const GroupLevels*>(rows[r] + (P == Precision::High ? 2 : 1) * kGroup);
        offset[r] = levels[r].offset + kShift * levels[r].scale;
        sum[r] = levels[r].sum;
      }
      if constexpr (K == GroupKind::Halves) {
        accumulate<R, P>(groups[g], column, 0, 1, groups[g].scale, rows, levels, sums);
        accumulate<R, P>(groups[g], column, 1, 2, groups[g].extra, rows, levels, sums);
      } else {
        accumulate<R, P>(groups[g], column, 0, 2, groups[g].scale, rows, levels, sums);
      }
      add_outer<R>(groups[g].scaled_sum, column, offset, sums);
      if constexpr (K == GroupKind::Minimum) add_outer<R>(groups[g].extra, column, sum, sums);
      TAMPU_UNROLL for (int r = 0; r < R; ++r) rows[r] += kRecord;
    }
    store_sums<R>(output, column, sums);
  }
}

using Int8Tile = void (*)(const WeightGroup*, int, const uint8_t*, size_t, const TileOutput&, Ahead&);

template <GroupKind K>
Int8Tile int8_tile_of_kind(Precision precision, int rows) {
  static constexpr Int8Tile normal[] = {int8_tile_of<1, K, Precision::Normal>, int8_tile_of<2, K, Precision::Normal>,
                                        int8_tile_of<3, K, Precision::Normal>};
  static constexpr Int8Tile high[] = {int8_tile_of<1, K, Precision::High>, int8_tile_of<2, K, Precision::High>,
                                      int8_tile_of<3, K, Precision::High>};
  return (precision == Precision::High ? high : normal)[rows - 1];
}

struct DotProd {
  static constexpr int kInt8Rows = 3, kPackedRows = 0;

  static void halves(const uint16_t* source, float* out) {
    for (int c = 0; c < kPanel; c += 4)
      vst1q_f32(out + c, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(source + c))));
  }

  static void column_sums(const int8_t* w, int num_words, int32_t* sums) {
    for (int c = 0; c < kPanel; c += 4) {
      int32x4_t sum = vdupq_n_s32(0);
      for (int q = 0; q < num_words; ++q) sum = vdotq_s32(sum, vld1q_s8(w + 4 * (q * kPanel + c)), vdupq_n_s8(1));
      vst1q_s32(sums + c, sum);
    }
  }

  static void expand(QType qtype, const uint8_t* panel, int group_begin, int num_groups, WeightGroup* out) {
    expand_groups<DotProd>(qtype, panel, group_begin, num_groups, out);
  }

  static void int8_tile(GroupKind kind, Precision precision, int rows, const WeightGroup* groups, int num_groups,
                        const uint8_t* activations, size_t stride, const TileOutput& output, Ahead& ahead) {
    const auto tile = has_minimum(kind)           ? int8_tile_of_kind<GroupKind::Minimum>(precision, rows)
                      : kind == GroupKind::Halves ? int8_tile_of_kind<GroupKind::Halves>(precision, rows)
                                                  : int8_tile_of_kind<GroupKind::Bytes>(precision, rows);
    tile(groups, num_groups, activations, stride, output, ahead);
  }
};

}  // namespace

const KernelTable& dotprod_kernels() {
  static const KernelTable table = [] {
    KernelTable t = portable_kernels();
    t.matmul_int8 = matmul_int8<DotProd>;
    return t;
  }();
  return table;
}

}  // namespace tampu::detail
