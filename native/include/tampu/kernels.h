// The row-wise arithmetic of the forward pass and of sampling, one table of functions per instruction set. Knows no
// model, no requests, no threads: every function works on the rows or tiles it is given.
//
// Reproducibility: each output is a function of its own row only, reduced in one order.
#pragma once
#include <cstddef>
#include <cstdint>

#include "tampu/linear.h"

namespace tampu {

// Keys are attended in partitions of this many, aligned at absolute positions; each partition has its own softmax
// state and they are merged in ascending order. That makes a row's bits the same whether one thread walks all
// partitions or many share them.
constexpr int kPartitionKeys = 256;
// Floats from one row of scores to the next: not a power of two, or the rows of a tile would share cache sets.
constexpr int kScoreStride = kPartitionKeys + 16;

// Exponentials are summed by blocks of this many tokens.
constexpr int kSumBlock = 256;

enum class KvType { F16, Q8 };

// K and V of one layer and one KV head, paged. A block holds K, then V, then (Q8) scales:
//   F16  K transposed, [head_dim][block_size], and V, [block_size][padded_head_dim], halves.
//   Q8   K rotated (see attention_q8_body.h) in quads, [padded_head_dim / 4][block_size][4], bytes of value + 128;
//        V in pairs of keys, [block_size / 2][padded_head_dim][2], signed bytes; one float scale per token for K,
//        [block_size], and for V.
// Padding is zero.
struct KvHead {
  uint8_t* base;           // block 0
  size_t block_stride;     // bytes from one block to the next
  size_t values_offset;    // bytes from a block's begin to V
  size_t scales_offset;    // and to the scales
  int block_size;          // 16, 32 or 64
  int head_dim;
  int padded_head_dim;     // multiple of 16
  KvType type;
};

// Query rows of one KV head, scaled by log2(e)/sqrt(head_dim). Each member is one value or one padded head a row.
struct QueryRows {
  float* values;     // [max_rows][padded_head_dim]
  int8_t* bytes;     // the same rotated and quantised, for the 8-bit cache only
  float* scales;
  int32_t* offsets;  // -128 times the sum of a row's bytes
};

// Softmax state of query rows: weighted values so far, the maximum score (base 2) and the sum of weights.
struct AttentionState {
  float* values;   // [num_rows][padded_head_dim]
  float* maximum;  // [num_rows]
  float* sum;      // [num_rows]
};

// What one thread needs to attend up to max_rows query rows.
struct AttentionScratch {
  float* scores;  // [max_rows][kScoreStride]
  float* keys;    // [head_dim][64], converted
  float* values;  // [64][padded_head_dim], converted
};

// What the sampler needs to know of a row before it draws.
struct RowSummary {
  float maximum;    // of the numbers that are not NaN; -inf when there is none
  bool has_nan;
};

struct Kernels {
  // out = x * weight / sqrt(mean(x^2) + eps).
  void (*rms_norm)(const float* x, const float* weight, float eps, int n, float* out);

  // Rotates the halves of one head in place (x[i], x[i + head_dim/2]) and multiplies by `scale`.
  void (*rope)(float* head, const float* cosines, const float* sines, int head_dim, float scale);

  // One key and one value into row `row` of a block.
  void (*store_kv)(const float* key, const float* value, const KvHead& kv, int32_t block, int row);
  // One head of a query for the 8-bit cache: bytes [padded], its scale and offset as in QueryRows.
  void (*quantize_query)(const float* q, int head_dim, int padded, int8_t* bytes, float* scale, int32_t* offset);

  // Attends keys [key_begin, key_end) of one partition. Row r sees keys below limits[r]; a row that sees none gets
  // maximum = -inf. Keys from key_end to next_end will be attended next: their memory may be asked for ahead.
  void (*attend_partition)(const QueryRows& q, int num_rows, const int32_t* limits, const KvHead& kv,
                           const int32_t* block_table, int key_begin, int key_end, int next_end,
                           const AttentionScratch& scratch, const AttentionState& out);
  // state = state merged with the later partition `part`. Every row of `state` has seen keys; a row of `part` that saw
  // none leaves it as it is.
  void (*merge_partition)(const AttentionState& state, const AttentionState& part, int num_rows, int padded_head_dim);
  // out[0..head_dim) = values / sum for one row.
  void (*finish_row)(const float* values, float sum, int head_dim, float* out);

  RowSummary (*summarize)(const float* x, int n);
  int (*first_equal)(const float* x, int n, float value);   // -1 when none
  void (*divide)(float* x, int n, float divisor);
  void (*apply_mask)(float* x, int n, const uint8_t* mask, size_t mask_bytes);  // bit clear or missing: -inf
  // Ids with low < value <= high, ascending, until `capacity`; returns how many, and *next is where to go on (n at the
  // end). `out` has room for capacity + 64.
  int (*collect_between)(const float* x, int begin, int n, float low, float high, int32_t* out, int capacity,
                         int* next);
  // out[i] = exp(x[i] - maximum) in double, differences in double; -inf gives 0. x[i] <= maximum.
  void (*exponentials)(const float* x, int n, float maximum, double* out);
  // block_sums[b] = the sum of those of x[kSumBlock b .. kSumBlock (b + 1)).
  void (*sum_exponentials)(const float* x, int n, float maximum, double* block_sums);
  // And sums_above[b] = the sum of those of them whose x[i] > bound.
  void (*sum_exponentials_above)(const float* x, int n, float maximum, float bound, double* block_sums,
                                 double* sums_above);
};

const Kernels& portable_kernels();
#if defined(TAMPU_X86)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#endif
const Kernels& kernels_for(Isa isa);

}  // namespace tampu
