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

// K and V of one layer and one KV head, paged. A block holds K transposed, [head_dim][block_size], then V,
// [block_size][padded_head_dim] (padding is zero), all halves.
struct KvHead {
  const uint16_t* base;    // block 0
  size_t block_stride;     // halves from one block to the next
  int block_size;          // 16, 32 or 64
  int head_dim;
  int padded_head_dim;     // multiple of 16
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

  // One key into its column of a block (element d goes to column[d * block_size]) and one value into its row.
  void (*store_key)(const float* key, int head_dim, uint16_t* column, int block_size);
  void (*store_value)(const float* value, int head_dim, uint16_t* row);

  // Attends keys [key_begin, key_end) of one partition. Row r sees keys below limits[r]; q rows are scaled by
  // log2(e)/sqrt(head_dim), [num_rows][padded_head_dim]. A row that sees none gets maximum = -inf.
  void (*attend_partition)(const float* q, int num_rows, const int32_t* limits, const KvHead& kv,
                           const int32_t* block_table, int key_begin, int key_end, const AttentionScratch& scratch,
                           const AttentionState& out);
  // state = state merged with the later partition `part`. Every row of `state` has seen keys; a row of `part` that saw
  // none leaves it as it is.
  void (*merge_partition)(const AttentionState& state, const AttentionState& part, int num_rows, int padded_head_dim);
  // out[0..head_dim) = values / sum for one row.
  void (*finish_row)(const float* values, float sum, int head_dim, float* out);

  RowSummary (*summarize)(const float* x, int n);
  int (*first_equal)(const float* x, int n, float value);   // -1 when none
  void (*divide)(float* x, int n, float divisor);
  void (*apply_mask)(float* x, int n, const uint8_t* mask, size_t mask_bytes);  // bit clear or missing: -inf
  // Ids whose value is > threshold (or >= when inclusive), ascending, until `capacity`; returns how many, and
  // *next is where to go on (n at the end). `out` has room for capacity + 16.
  int (*collect_above)(const float* x, int begin, int n, float threshold, bool inclusive, int32_t* out, int capacity,
                       int* next);
  // out[i] = exp(x[i] - maximum) in double, differences in double; -inf gives 0. block_sums[b] is the sum of
  // out[64 b .. 64 b + 64).
  void (*exponentials)(const float* x, int n, float maximum, double* out, double* block_sums);
};

const Kernels& portable_kernels();
#if defined(TAMPU_X86)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#endif
const Kernels& kernels_for(Isa isa);

}  // namespace tampu
