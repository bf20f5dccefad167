// The machine's peak of 8-bit dot products: a loop of nothing else.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "linear_bench.h"

namespace tampu::detail {

unsigned dot_chain_avx512(long iterations) {
  __m512i sums[16];
  const __m512i x = _mm512_set1_epi32(static_cast<int>(iterations));
  for (auto& s : sums) s = x;
  for (long i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) sums[j] = _mm512_dpbusd_epi32(sums[j], x, x);
  }
  for (int j = 1; j < 16; ++j) sums[0] = _mm512_add_epi32(sums[0], sums[j]);
  return static_cast<unsigned>(_mm512_reduce_add_epi32(sums[0]));
}

}  // namespace tampu::detail
