// Reading memory as fast as one core can: the limit of decoding.
#include <immintrin.h>

#include "linear_bench.h"

namespace tampu::detail {

unsigned read_block_avx2(const void* data, size_t bytes) {
  const auto* p = static_cast<const __m256i*>(data);
  __m256i sums[8] = {};
  for (size_t i = 0; i < bytes / 32; i += 8) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) sums[j] = _mm256_xor_si256(sums[j], _mm256_load_si256(p + i + j));
  }
  for (int j = 1; j < 8; ++j) sums[0] = _mm256_xor_si256(sums[0], sums[j]);
  return static_cast<unsigned>(_mm256_extract_epi32(sums[0], 0));
}

}  // namespace tampu::detail
