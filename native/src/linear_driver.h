// The loops around the tiles: blocks of rows, panels, blocks of K. Included once per instruction set (internal
// linkage). The instruction set is a class with
//   static void halves(const uint16_t*, float*)                                    32 half-precision values
//   static void column_sums(const int8_t*, int num_words, int32_t*)                sums over 4 x num_words values
//   static constexpr int kInt8Rows, kFloatRows                                     tallest tiles
//   static void int8_tile(kind, precision, rows, groups, num_groups, activations, stride, output, ahead)
//   static void float_tile(rows, weights, num_k, activations, stride, output)
#pragma once
#include <cstddef>
#include <cstdint>

#include "linear_expand.h"
#include "linear_kernels.h"

namespace tampu::detail {
namespace {

// Where a tile's sums of one block of K go: kept in `partial` between blocks, to y after the last one.
struct TileOutput {
  float (*partial)[kPanel];
  bool is_first, is_last;
  float* y;
  int64_t ldy;
  int num_columns;
  bool add;
};

// Packed weights to fetch while others are widened and multiplied, a few cache lines per group of K.
struct Ahead {
  const uint8_t* next;
  const uint8_t* end;
  int lines_per_group = 0;
  void fetch() {
    for (int i = 0; i < lines_per_group && next < end; ++i, next += 64) __builtin_prefetch(next, 0, 2);
  }
};

constexpr int kMaxRowsPerBlock = 512;
// With few rows, short blocks of K let the next block's memory reads run under this block's arithmetic.
constexpr int kFewRows = 16, kGroupsPerSmallBlock = 8;
static_assert(kGroupsPerBlock % kGroupsPerSmallBlock == 0);

// A row block's activations stay in the second-level cache while every panel passes over them.
inline int rows_per_block(size_t bytes_per_row) {
  constexpr size_t kActivationBytes = 640 * 1024;
  const size_t rows = kActivationBytes / bytes_per_row;
  return rows < 24 ? 24 : rows > kMaxRowsPerBlock ? kMaxRowsPerBlock : static_cast<int>(rows);
}

// Calls tile(row, num_rows) over rows in tiles of nearly equal height.
template <class Tile>
inline void for_row_tiles(int num_rows, int tallest, const Tile& tile) {
  const int num_tiles = (num_rows + tallest - 1) / tallest;
  for (int t = 0, row = 0; t < num_tiles; ++t) {
    const int height = (num_rows - row + num_tiles - t - 1) / (num_tiles - t);
    tile(row, height);
    row += height;
  }
}

// expand(panel, begin, count) widens units [begin, begin + count) of K; multiply(begin, count, ...) adds a row tile's
// products to the sums, `begin` counted within the activations' stored block, and touches the cache lines of `ahead` on
// its way: the packed weights that will be widened next.
template <class Expand, class Multiply>
inline void for_blocks(const MatmulJob& job, int num_units, int units_per_block, int units_per_stored, int tallest,
                       const Expand& expand, const Multiply& multiply) {
  alignas(64) float partial[kMaxRowsPerBlock][kPanel];
  const int num_blocks = (num_units + units_per_block - 1) / units_per_block;
  const int stored_blocks = (num_units + units_per_stored - 1) / units_per_stored;
  const int block_rows = rows_per_block(job.activations.row_stride * size_t(stored_blocks));
  const uint8_t* const end_of_part = job.panels + size_t(job.panel_end) * job.panel_bytes;
  for (int row_begin = 0; row_begin < job.num_rows; row_begin += block_rows) {
    const int rows = job.num_rows - row_begin < block_rows ? job.num_rows - row_begin : block_rows;
    for (int p = job.panel_begin; p < job.panel_end; ++p) {
      const uint8_t* panel = job.panels + size_t(p) * job.panel_bytes;
      const int columns = job.n - p * kPanel < kPanel ? job.n - p * kPanel : kPanel;
      for (int b = 0; b < num_blocks; ++b) {
        const int begin = b * units_per_block;
        const int count = num_units - begin < units_per_block ? num_units - begin : units_per_block;
        expand(panel, begin, count);
        const size_t widened = job.panel_bytes * size_t(begin + count) / size_t(num_units);
        const uint8_t* fetch_end = panel + widened + job.panel_bytes * size_t(count) / size_t(num_units);
        Ahead ahead{panel + widened, fetch_end < end_of_part ? fetch_end : end_of_part};
        for_row_tiles(rows, tallest, [&](int row, int height) {
          const TileOutput output{partial + row, b == 0, b + 1 == num_blocks,
                                  job.y + (row_begin + row) * job.ldy + p * kPanel, job.ldy, columns, job.add};
          const uint8_t* a = job.activations.data + size_t(begin / units_per_stored) * job.activations.block_stride +
                             size_t(row_begin + row) * job.activations.row_stride;
          multiply(begin % units_per_stored, count, a, height, output, ahead);
        });
      }
    }
  }
}

template <class Set>
void matmul_int8(const MatmulJob& job) {
  WeightGroup groups[kGroupsPerBlock];
  const GroupKind kind = group_kind(job.qtype);
  const size_t lines = block_layout(job.qtype).packed_bytes() / size_t(block_layout(job.qtype).k / kGroup) / 64;
  for_blocks(
      job, job.k / kGroup, job.num_rows <= kFewRows ? kGroupsPerSmallBlock : kGroupsPerBlock, kGroupsPerBlock, Set::kInt8Rows,
      [&](const uint8_t* panel, int begin, int count) { expand_groups<Set>(job.qtype, panel, begin, count, groups); },
      [&](int begin, int count, const uint8_t* a, int height, const TileOutput& output, Ahead& ahead) {
        ahead.lines_per_group = static_cast<int>(lines) + 1;
        a += size_t(begin) * (job.precision == Precision::High ? sizeof(Int16Record) : sizeof(Int8Record));
        Set::int8_tile(kind, job.precision, height, groups, count, a, job.activations.row_stride, output, ahead);
      });
}

template <class Set>
void matmul_f32(const MatmulJob& job) {
  alignas(64) float weights[kValuesPerBlock][kPanel];
  WeightGroup groups[kValuesPerBlock / kGroup];
  const bool quantized = is_quantized(job.qtype);
  for_blocks(
      job, job.k, kValuesPerBlock, kValuesPerBlock, Set::kFloatRows,
      [&](const uint8_t* panel, int begin, int count) {
        if (!quantized) {
          expand_floats<Set>(job.qtype, panel, begin, count, weights);
          return;
        }
        expand_groups<Set>(job.qtype, panel, begin / kGroup, count / kGroup, groups);
        for (int g = 0; g < count / kGroup; ++g) group_to_float(group_kind(job.qtype), groups[g], weights + g * kGroup);
      },
      [&](int, int count, const uint8_t* a, int height, const TileOutput& output, Ahead&) {
        Set::float_tile(height, weights, count, a, job.activations.row_stride, output);
      });
}

}  // namespace
}  // namespace tampu::detail
