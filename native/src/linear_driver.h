// The loops around the tiles: blocks of rows, panels, blocks of K. Included once per instruction set (internal
// linkage). The instruction set is a class with
//   static void halves(const uint16_t*, float*)                                    32 half-precision values
//   static void expand(qtype, panel, group_begin, num_groups, groups)              expand_groups of linear_expand.h
//   static constexpr int kInt8Rows, kFloatRows                                     tallest tiles
//   static constexpr int kPackedRows                                               the next three serve up to so many; or 0
//   static int packed_rows(qtype)                                                  rows of that format, at most kPackedRows
//   static void packed_scales(qtype, packed, num_groups, scales, ahead)            of packed groups, unless tiles make them
//   static void packed_tile(qtype, precision, rows, packed, scales, num_groups, activations, stride, output, ahead)
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
  const float (*gate)[kPanel];   // y = silu(gate) * sum; null: y = sum
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

// How one kind of arithmetic walks along K. `unit`: a group of 32 (integers) or one value (floats).
struct BlockSizes {
  int num_units;
  int per_block;    // widened at a time
  int per_stored;   // in a stored block of the activations
  int tallest;      // row tile
};

// The rows and the place that one panel's result is for.
struct PanelTask {
  int row_begin, num_rows;
  float (*partial)[kPanel];
  float* y;
  int64_t ldy;
  bool add;
  const float (*gate)[kPanel];
};

// expand(panel, begin, count) widens units [begin, begin + count) of K; multiply(begin, count, ...) adds a row tile's
// products to the sums, `begin` counted within the activations' stored block, and touches the cache lines of `ahead` on
// its way: the packed weights that will be widened next.
template <class Expand, class Multiply>
inline void multiply_panel(const MatmulJob& job, int p, const BlockSizes& sizes, const PanelTask& task,
                           const Expand& expand, const Multiply& multiply) {
  const uint8_t* const end_of_part = job.panels + size_t(job.panel_end) * job.panel_bytes;
  const uint8_t* panel = job.panels + size_t(p) * job.panel_bytes;
  const int columns = job.n - p * kPanel < kPanel ? job.n - p * kPanel : kPanel;
  for (int begin = 0; begin < sizes.num_units; begin += sizes.per_block) {
    const int left = sizes.num_units - begin;
    const int count = left < sizes.per_block ? left : sizes.per_block;
    expand(panel, begin, count);
    const uint8_t* next = panel + job.panel_bytes * size_t(begin + count) / size_t(sizes.num_units);
    const uint8_t* fetch_end = next + job.panel_bytes * size_t(count) / size_t(sizes.num_units);
    Ahead ahead{next, fetch_end < end_of_part ? fetch_end : end_of_part};
    const uint8_t* stored = job.activations.data + size_t(begin / sizes.per_stored) * job.activations.block_stride +
                            size_t(task.row_begin) * job.activations.row_stride;
    for_row_tiles(task.num_rows, sizes.tallest, [&](int row, int height) {
      const TileOutput output{task.partial + row, begin == 0, count == left,
                              task.y + row * task.ldy, task.ldy, columns,
                              task.add, task.gate == nullptr ? nullptr : task.gate + row};
      multiply(begin % sizes.per_stored, count, stored + size_t(row) * job.activations.row_stride, height, output,
               ahead);
    });
  }
}

template <class Expand, class Multiply>
inline void for_panels(const MatmulJob& job, const BlockSizes& sizes, const Expand& expand, const Multiply& multiply) {
  alignas(64) float partial[kMaxRowsPerBlock][kPanel];
  alignas(64) float gate[kMaxRowsPerBlock][kPanel];
  const int stored_blocks = (sizes.num_units + sizes.per_stored - 1) / sizes.per_stored;
  const int block_rows = rows_per_block(job.activations.row_stride * size_t(stored_blocks));
  for (int row_begin = 0; row_begin < job.num_rows; row_begin += block_rows) {
    const int rows = job.num_rows - row_begin < block_rows ? job.num_rows - row_begin : block_rows;
    for (int p = job.panel_begin; p < job.panel_end; ++p) {
      if (job.gate != nullptr) {
        const PanelTask task{row_begin, rows, partial, &gate[0][0], kPanel, false, nullptr};
        multiply_panel(*job.gate, p, sizes, task, expand(*job.gate), multiply(*job.gate));
      }
      const PanelTask task{row_begin, rows, partial, job.y + row_begin * job.ldy + p * kPanel, job.ldy, job.add,
                           job.gate == nullptr ? nullptr : gate};
      multiply_panel(job, p, sizes, task, expand(job), multiply(job));
    }
  }
}

inline int cache_lines_per_group(QType qtype) {
  const BlockLayout& layout = block_layout(qtype);
  return static_cast<int>(layout.packed_bytes() * kGroup / size_t(layout.k) / 64) + 1;
}

// Up to Set::kPackedRows rows: for each block of K, one pass over a panel's packed bytes for the scales and one for each
// row tile. Spread over all passes goes the fetching of the panel that comes next.
template <class Set>
void matmul_packed(const MatmulJob& job) {
  GroupScales scales[kGroupsPerBlock];
  alignas(64) float partial[Set::kPackedRows][kPanel];
  alignas(64) float gate[Set::kPackedRows][kPanel];
  const int num_tiles = (job.num_rows + Set::kInt8Rows - 1) / Set::kInt8Rows, num_groups = job.k / kGroup;
  const auto multiply = [&](const MatmulJob& matrix, int p, const TileOutput& whole, const uint8_t* next,
                            size_t bytes) {
    const uint8_t* packed = matrix.panels + size_t(p) * matrix.panel_bytes;
    const uint8_t* stored = matrix.activations.data;
    const size_t passes = size_t(num_groups) * size_t(num_tiles + 1);
    Ahead ahead{next, next + bytes, static_cast<int>((bytes / 64 + passes - 1) / passes)};
    for (int begin = 0; begin < num_groups; begin += kGroupsPerBlock, stored += matrix.activations.block_stride) {
      const int left = num_groups - begin, count = left < kGroupsPerBlock ? left : kGroupsPerBlock;
      Set::packed_scales(matrix.qtype, packed, count, scales, ahead);
      for_row_tiles(matrix.num_rows, Set::kInt8Rows, [&](int row, int height) {
        TileOutput output = whole;
        output.partial = partial + row;
        output.is_first = begin == 0;
        output.is_last = count == left;
        output.y += row * whole.ldy;
        if (whole.gate != nullptr) output.gate += row;
        Set::packed_tile(matrix.qtype, matrix.precision, height, packed, scales, count,
                         stored + size_t(row) * matrix.activations.row_stride, matrix.activations.row_stride, output,
                         ahead);
      });
      packed += matrix.panel_bytes * size_t(count) / size_t(num_groups);
    }
  };
  const MatmulJob& first = job.gate == nullptr ? job : *job.gate;   // of the two that take turns
  for (int p = job.panel_begin; p < job.panel_end; ++p) {
    const int columns = job.n - p * kPanel < kPanel ? job.n - p * kPanel : kPanel;
    if (job.gate != nullptr) {
      multiply(first, p, {nullptr, true, true, &gate[0][0], kPanel, columns, false, nullptr},
               job.panels + size_t(p) * job.panel_bytes, job.panel_bytes);
    }
    const bool is_last = p + 1 == job.panel_end;
    const uint8_t* next = first.panels + size_t(p + 1) * first.panel_bytes;
    multiply(job, p, {nullptr, true, true, job.y + p * kPanel, job.ldy, columns, job.add,
                      job.gate == nullptr ? nullptr : gate},
             next, is_last ? 0 : first.panel_bytes);
  }
}

template <class Set>
void matmul_int8(const MatmulJob& whole) {
  if constexpr (Set::kPackedRows > 0) {
    const int rows = Set::packed_rows(whole.qtype);
    if (whole.num_rows <= rows && (whole.gate == nullptr || whole.num_rows <= Set::packed_rows(whole.gate->qtype))) {
      matmul_packed<Set>(whole);
      return;
    }
  }
  WeightGroup groups[kGroupsPerBlock];
  const BlockSizes sizes{whole.k / kGroup, whole.num_rows <= kFewRows ? kGroupsPerSmallBlock : kGroupsPerBlock,
                         kGroupsPerBlock, Set::kInt8Rows};
  const size_t record = whole.precision == Precision::High ? sizeof(Int16Record) : sizeof(Int8Record);
  for_panels(
      whole, sizes,
      [&](const MatmulJob& job) {
        return [&](const uint8_t* panel, int begin, int count) {
          Set::expand(job.qtype, panel, begin, count, groups);
        };
      },
      [&](const MatmulJob& job) {
        // The fetching is spread over the row tiles: all of it in the first one would queue up behind itself.
        const int num_tiles = (job.num_rows + Set::kInt8Rows - 1) / Set::kInt8Rows;
        return [&, kind = group_kind(job.qtype), lines = cache_lines_per_group(job.qtype) / num_tiles + 1](
                   int begin, int count, const uint8_t* a, int height, const TileOutput& output, Ahead& ahead) {
          ahead.lines_per_group = lines;
          Set::int8_tile(kind, job.precision, height, groups, count, a + size_t(begin) * record,
                         job.activations.row_stride, output, ahead);
        };
      });
}

template <class Set>
void matmul_f32(const MatmulJob& whole) {
  alignas(64) float weights[kValuesPerBlock][kPanel];
  WeightGroup groups[kValuesPerBlock / kGroup];
  for_panels(
      whole, BlockSizes{whole.k, kValuesPerBlock, kValuesPerBlock, Set::kFloatRows},
      [&](const MatmulJob& job) {
        return [&](const uint8_t* panel, int begin, int count) {
          if (!is_quantized(job.qtype)) {
            expand_floats<Set>(job.qtype, panel, begin, count, weights);
            return;
          }
          Set::expand(job.qtype, panel, begin / kGroup, count / kGroup, groups);
          for (int g = 0; g < count / kGroup; ++g)
            group_to_float(group_kind(job.qtype), groups[g], weights + g * kGroup);
        };
      },
      [&](const MatmulJob& job) {
        return [&](int, int count, const uint8_t* a, int height, const TileOutput& output, Ahead&) {
          Set::float_tile(height, weights, count, a, job.activations.row_stride, output);
        };
      });
}

}  // namespace
}  // namespace tampu::detail
