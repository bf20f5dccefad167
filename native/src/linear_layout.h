// How weights lie in memory: the file's blocks, and our panels of 32 columns. Knows bytes; multiplies nothing.
//
// A panel holds 32 weight rows (columns of the product) block by block along K. Within a block every 16-bit scale and
// every 32-bit word of the file's block is stored 32 times side by side, once per column: the bytes are those of the
// file in another order, so size and values stay exactly what they were.
#pragma once
#include <cstddef>
#include <cstdint>

#include "tampu/linear.h"

namespace tampu::detail {

constexpr int kPanel = 32;   // columns
constexpr int kGroup = 32;   // values along K that share one activation scale

struct BlockLayout {
  const char* name;
  int k;                // values along K in one block
  int bytes;            // of the block in the file
  int num_halves;       // 16-bit fields
  int half_offset[2];
  int num_words;        // 32-bit words, contiguous in the file
  int word_offset;
  size_t packed_bytes() const { return size_t(kPanel) * (2 * num_halves + 4 * num_words); }
};

const BlockLayout& block_layout(QType qtype);
bool is_quantized(QType qtype);   // has an integer form

// Packs columns [0, 32) of one panel; columns from num_columns on are zero. `rows` points at the first weight row.
void pack_panel(QType qtype, const uint8_t* rows, size_t row_stride, int num_columns, int k, uint8_t* panel);
// Gives back the file's bytes of one column.
void unpack_column(QType qtype, const uint8_t* panel, int column, int k, uint8_t* row);
// The file's row as float32, as the format defines it.
void dequantize(QType qtype, const uint8_t* row, int k, float* out);

float half_to_float(uint16_t bits);

// Formats alike for the integer kernels, by how a weight follows from its signed byte w.
enum class GroupKind {
  Nibbles,   // scale * w, -8 <= w <= 7
  Bytes,     // scale * w, any w
  Minimum,   // scale * w + extra, 0 <= w <= 15
  FiveBits,  // the same, 0 <= w <= 31
  Halves,    // scale * w for the first 16 values of K, extra * w for the others, -32 <= w <= 31
};
GroupKind group_kind(QType qtype);
constexpr bool has_minimum(GroupKind kind) { return kind == GroupKind::Minimum || kind == GroupKind::FiveBits; }

// What turns the integer sums of a group of 32 values along K into floats, per column of a panel.
struct alignas(64) GroupScales {
  float scale[kPanel];
  float extra[kPanel];
  float scaled_sum[kPanel];    // the sum of scale * w over the group (of both halves' own scales)
};

// One group of a panel, widened for the kernels.
struct WeightGroup : GroupScales {
  int8_t w[8][kPanel][4];      // w[q][c] = values k = 4q..4q+3 of column c
};

// One group of 32 activations: x = scale * level + offset. Levels are unsigned, because the dot-product instruction
// wants unsigned times signed bytes, and because an offset of its own serves a group with one large outlier better:
// it halves the step.
struct GroupLevels {
  float scale;
  float offset;    // the smallest value
  float sum;       // of all 32 values as kept
};
struct Int8Record {       // Precision::Normal: 8-bit levels
  uint8_t level[kGroup];
  GroupLevels group;
  int32_t minus_eights;   // -8 times the sum of the levels: see UnsignedNibbles
};
struct Int16Record {      // Precision::High: level = 256 * high + low, with low = 0 in a group that is not fine
  uint8_t high[kGroup];
  uint8_t low[kGroup];
  GroupLevels group;
  int32_t is_fine;        // the same in all rows
};
static_assert(sizeof(Int8Record) == 48 && sizeof(Int16Record) == 80);

}  // namespace tampu::detail
