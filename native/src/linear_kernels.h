// What one instruction set offers to linear.cpp: plain functions over plain pointers.
#pragma once
#include <cstddef>
#include <cstdint>

#include "linear_layout.h"

namespace tampu::detail {

// Panels [panel_begin, panel_end) of one matrix times num_rows rows of activations.
// `activations`: records of Int8Record or Int16Record, or float rows; `activation_stride` in bytes.
// `y` points at column 0 of the matrix; `n` is its number of columns (the last panel may be partial).
struct MatmulJob {
  QType qtype;
  Precision precision;
  const uint8_t* panels;
  size_t panel_bytes;
  int n, k;
  int panel_begin, panel_end;
  const uint8_t* activations;
  size_t activation_stride;
  int num_rows;
  float* y;
  int64_t ldy;
  bool add;
};

struct KernelTable {
  void (*matmul_int8)(const MatmulJob&);
  void (*matmul_f32)(const MatmulJob&);
  void (*quantize_normal)(const float* x, int k, Int8Record* out);
  void (*quantize_high)(const float* x, int k, Int16Record* out);
  void (*silu_mul_row)(const float* gate, const float* up, int n, float* out);
};

const KernelTable& portable_kernels();
#if defined(TAMPU_X86)
const KernelTable& avx2_kernels();
const KernelTable& avx512_kernels();
#endif

}  // namespace tampu::detail
