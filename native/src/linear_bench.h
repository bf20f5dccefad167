// Timing of the kernels and of the machine's own limits, for benchmarks/kernels.py.
#pragma once
#include <cstddef>
#include <vector>

#include "tampu/linear.h"

namespace tampu {

struct BenchTimes {
  double multiply_s;   // best time of one pass through one layer
  double quantize_s;   // best time of set_rows for the same rows
};

// Each thread computes its part of every layer in turn; one round goes once through all layers, so that weights come
// from where they would in a model. Rounds repeat for about `seconds`; the best counts.
BenchTimes bench_layers(const std::vector<const Linear*>& layers, Isa isa, int rows, int num_threads, double seconds);

double stream_read_bytes_per_s(size_t bytes_per_thread, int num_threads, double seconds);

// Multiply and add counted as two operations, as in every figure of the benchmark; 0 where the machine lacks it.
double int8_dot_ops_per_s(int num_threads, double seconds);

#if defined(TAMPU_X86)
namespace detail {
unsigned read_block_avx2(const void* data, size_t bytes);   // bytes: a multiple of 256
void dot_chain_avx512(long iterations);                     // iterations > 0; 16 instructions of 128 operations each
}
#endif

}  // namespace tampu
