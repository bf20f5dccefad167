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
  uint32_t word_xor;    // flips Q8_0 to unsigned (q + 128)
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

// One group of 32 values along K of a panel, widened for the integer kernels.
// words[q][c] = weights k = 4q..4q+3 of column c as unsigned bytes.
// A weight is scale * (w - offset), or scale * w + extra (kind Minimum); kind Halves: `scale` is for k < 16, `extra`
// is the scale for k >= 16.
struct alignas(64) Int8Group {
  uint32_t words[8][kPanel];
  float scale[kPanel];
  float extra[kPanel];
};

enum class GroupKind { Offset8, Offset128, Minimum, Halves };
GroupKind group_kind(QType qtype);

// One group of 32 activations: x = scale * q. The sums carry the weights' offsets through the integer accumulators.
struct GroupSums {
  float scale;
  float scaled_sum;       // scale * sum(q)
  int32_t minus8;         // -8 * sum(q)
  int32_t minus32_low;    // -32 * sum(q[0..15])
};
struct Int8Record {       // Precision::Normal
  int8_t q[kGroup];
  GroupSums sums;
};
struct Int16Record {      // Precision::High: q = 256 * high + low
  int8_t high[kGroup];
  int8_t low[kGroup];
  GroupSums sums;
};
static_assert(sizeof(Int8Record) == 48 && sizeof(Int16Record) == 80);

}  // namespace tampu::detail
