// The loops around the tiles: blocks of rows, panels, blocks of K. Included once per instruction set (internal
// linkage). The instruction set is a class with
//   static void halves(const uint16_t*, float*)                                    32 half-precision values
//   static constexpr int kInt8Rows, kFloatRows                                     tallest tiles
//   static void int8_tile(kind, precision, rows, groups, num_groups, activations, stride, output)
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

// A row block's activations stay in the second-level cache while every panel passes over them.
inline int rows_per_block(size_t activation_stride, int max_rows) {
  constexpr size_t kActivationBytes = 640 * 1024;
  const size_t rows = kActivationBytes / activation_stride;
  return rows < 24 ? 24 : rows > size_t(max_rows) ? max_rows : static_cast<int>(rows);
}

constexpr int kMaxRowsPerBlock = 512;
constexpr int kGroupsPerBlock = 24;    // 30 KiB of widened weights: stays in the first-level cache
constexpr int kValuesPerBlock = 256;   // a K-quant's block; 32 KiB as floats

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

// expand(panel, begin, count) widens a block of K; multiply(row tile...) adds it to the sums.
template <class Expand, class Multiply>
inline void for_blocks(const MatmulJob& job, int num_units, int units_per_block, int tallest, const Expand& expand,
                       const Multiply& multiply) {
  alignas(64) float partial[kMaxRowsPerBlock][kPanel];
  const int block_rows = rows_per_block(job.activation_stride, kMaxRowsPerBlock);
  for (int row_begin = 0; row_begin < job.num_rows; row_begin += block_rows) {
    const int rows = job.num_rows - row_begin < block_rows ? job.num_rows - row_begin : block_rows;
    for (int p = job.panel_begin; p < job.panel_end; ++p) {
      const int columns = job.n - p * kPanel < kPanel ? job.n - p * kPanel : kPanel;
      for (int begin = 0; begin < num_units; begin += units_per_block) {
        const int count = num_units - begin < units_per_block ? num_units - begin : units_per_block;
        expand(job.panels + size_t(p) * job.panel_bytes, begin, count);
        for_row_tiles(rows, tallest, [&](int row, int height) {
          const TileOutput output{partial + row, begin == 0, begin + count == num_units,
                                  job.y + (row_begin + row) * job.ldy + p * kPanel, job.ldy, columns, job.add};
          multiply(begin, count, row_begin + row, height, output);
        });
      }
    }
  }
}

template <class Set>
void matmul_int8(const MatmulJob& job) {
  Int8Group groups[kGroupsPerBlock];
  const GroupKind kind = group_kind(job.qtype);
  const size_t record = job.precision == Precision::High ? sizeof(Int16Record) : sizeof(Int8Record);
  for_blocks(
      job, job.k / kGroup, kGroupsPerBlock, Set::kInt8Rows,
      [&](const uint8_t* panel, int begin, int count) { expand_groups<Set>(job.qtype, panel, begin, count, groups); },
      [&](int begin, int count, int row, int height, const TileOutput& output) {
        const uint8_t* a = job.activations + size_t(row) * job.activation_stride + size_t(begin) * record;
        Set::int8_tile(kind, job.precision, height, groups, count, a, job.activation_stride, output);
      });
}

template <class Set>
void matmul_f32(const MatmulJob& job) {
  alignas(64) float weights[kValuesPerBlock][kPanel];
  const auto expand_quantized = [&](const uint8_t* panel, int begin, int count) {
    Int8Group groups[kValuesPerBlock / kGroup];
    expand_groups<Set>(job.qtype, panel, begin / kGroup, count / kGroup, groups);
    for (int g = 0; g < count / kGroup; ++g) group_to_float(group_kind(job.qtype), groups[g], weights + g * kGroup);
  };
  const bool quantized = is_quantized(job.qtype);
  for_blocks(
      job, job.k, kValuesPerBlock, Set::kFloatRows,
      [&](const uint8_t* panel, int begin, int count) {
        if (quantized) expand_quantized(panel, begin, count);
        else expand_floats<Set>(job.qtype, panel, begin, count, weights);
      },
      [&](int begin, int count, int row, int height, const TileOutput& output) {
        const uint8_t* a = job.activations + size_t(row) * job.activation_stride + size_t(begin) * sizeof(float);
        Set::float_tile(height, weights, count, a, job.activation_stride, output);
      });
}

}  // namespace
}  // namespace tampu::detail
