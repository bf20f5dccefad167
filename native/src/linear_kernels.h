// What one instruction set offers to linear.cpp: plain functions over plain pointers.
#pragma once
#include <cstddef>
#include <cstdint>

#include "linear_layout.h"

namespace tampu::detail {

constexpr int kGroupsPerBlock = 24;    // of K in one widened tile: 30 KiB, stays in the first-level cache
constexpr int kValuesPerBlock = 256;   // the same for float arithmetic; the K-quants' block

// Activations lie block by block along K, and row by row within a block: what one tile of weights meets is contiguous.
struct BlockedRows {
  const uint8_t* data;
  size_t block_stride;   // bytes from one block of K to the next
  size_t row_stride;     // bytes from one row to the next within a block
};

// Panels [panel_begin, panel_end) of one matrix times num_rows rows of activations.
// `activations`: rows in blocks along K (see BlockedRows).
// `y` points at column 0 of the matrix; `n` is its number of columns (the last panel may be partial).
// With `gate`, another matrix of the same shape: y = silu(rows * gate) * (rows * this one).
struct MatmulJob {
  QType qtype;
  Precision precision;
  const uint8_t* panels;
  size_t panel_bytes;
  int n, k;
  int panel_begin, panel_end;
  BlockedRows activations;
  int num_rows;
  float* y;
  int64_t ldy;
  bool add;
  const MatmulJob* gate;
};

struct KernelTable {
  void (*matmul_int8)(const MatmulJob&);
  void (*matmul_f32)(const MatmulJob&);
  // k: a multiple of 32, at most one block.
  void (*quantize_normal)(const float* x, int k, Int8Record* out);
  // is_fine: a flag for each group of 32; 0: 8 bits, else 16.
  void (*quantize_high)(const float* x, int k, const uint8_t* is_fine, Int16Record* out);
  void (*silu_mul_row)(const float* gate, const float* up, int n, float* out);
};

const KernelTable& portable_kernels();
#if defined(TAMPU_X86)
const KernelTable& avx2_kernels();
const KernelTable& avxvnni_kernels();
const KernelTable& avx512_kernels();
#endif
#if defined(TAMPU_ARM64)
const KernelTable& dotprod_kernels();
#endif

}  // namespace tampu::detail
