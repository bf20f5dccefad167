// The kernels of kernels.h, written once on sixteen lanes and compiled once per instruction set by the three files
// that include this.
#include "tampu/kernels.h"
#include "tampu/simd.h"

#include "attention_body.h"
#include "simd_double.h"

namespace tampu {
namespace {

void rms_norm(const float* x, const float* weight, float eps, int n, float* out) {
  F32x16 sums[4] = {zero(), zero(), zero(), zero()};
  int i = 0;
  for (; i + 64 <= n; i += 64)
    for (int u = 0; u < 4; ++u) {
      const F32x16 v = load(x + i + 16 * u);
      sums[u] = fma(v, v, sums[u]);
    }
  for (int u = 0; i < n; i += 16, ++u) {
    const F32x16 v = i + 16 <= n ? load(x + i) : load_first(x + i, n - i);
    sums[u] = fma(v, v, sums[u]);
  }
  const float total = reduce_add(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
  const F32x16 scale = set1(1.0f / __builtin_sqrtf(total / static_cast<float>(n) + eps));
  for (i = 0; i + 16 <= n; i += 16) store(out + i, mul(mul(load(x + i), scale), load(weight + i)));
  if (i < n) {
    const int rest = n - i;
    store_first(out + i, mul(mul(load_first(x + i, rest), scale), load_first(weight + i, rest)), rest);
  }
}

void rope(float* head, const float* cosines, const float* sines, int head_dim, float scale) {
  const int half = head_dim / 2;
  const F32x16 factor = set1(scale);
  for (int i = 0; i < half; i += 16) {
    const int n = half - i < 16 ? half - i : 16;
    const F32x16 c = mul(load_first(cosines + i, n), factor), s = mul(load_first(sines + i, n), factor);
    const F32x16 a = load_first(head + i, n), b = load_first(head + half + i, n);
    store_first(head + i, sub(mul(a, c), mul(b, s)), n);
    store_first(head + half + i, fma(b, c, mul(a, s)), n);
  }
}

RowSummary summarize(const float* x, int n) {
  const float lowest = -__builtin_inff();
  F32x16 tops[4] = {set1(lowest), set1(lowest), set1(lowest), set1(lowest)};
  unsigned nans = 0;
  int i = 0;
  for (; i + 64 <= n; i += 64)
    for (int u = 0; u < 4; ++u) {
      const F32x16 v = load(x + i + 16 * u);
      nans |= nan_bits(v);
      tops[u] = max(v, tops[u]);
    }
  for (; i < n; i += 16) {
    const F32x16 v = i + 16 <= n ? load(x + i) : keep_first(load_first(x + i, n - i), n - i, lowest);
    nans |= nan_bits(v);
    tops[0] = max(v, tops[0]);
  }
  return {reduce_max(max(max(tops[0], tops[1]), max(tops[2], tops[3]))), nans != 0};
}

int first_equal(const float* x, int n, float value) {
  const F32x16 wanted = set1(value);
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    const unsigned bits = equal_bits(load(x + i), wanted);
    if (bits != 0) return i + __builtin_ctz(bits);
  }
  for (; i < n; ++i)
    if (x[i] == value) return i;
  return -1;
}

void divide(float* x, int n, float divisor) {
  const F32x16 d = set1(divisor);
  int i = 0;
  for (; i + 16 <= n; i += 16) store(x + i, div(load(x + i), d));
  for (; i < n; ++i) x[i] = x[i] / divisor;
}

void apply_mask(float* x, int n, const uint8_t* mask, size_t mask_bytes) {
  const F32x16 lowest = set1(-__builtin_inff());
  for (int i = 0; i < n; i += 16) {
    const size_t byte = static_cast<size_t>(i) / 8;
    unsigned bits = byte < mask_bytes ? mask[byte] : 0u;
    if (byte + 1 < mask_bytes) bits |= static_cast<unsigned>(mask[byte + 1]) << 8;
    if (i + 16 <= n)
      store(x + i, select_bits(bits, load(x + i), lowest));
    else
      store_first(x + i, select_bits(bits, load_first(x + i, n - i), lowest), n - i);
  }
}

int collect_between(const float* x, int begin, int n, float low, float high, int32_t* out, int capacity, int* next) {
  const F32x16 lower = set1(low), upper = set1(high);
  int count = 0, i = begin;
  for (; i + 64 <= n && count < capacity; i += 64) {
    unsigned bits[4];
    for (int u = 0; u < 4; ++u) {
      const F32x16 v = load(x + i + 16 * u);
      bits[u] = greater_bits(v, lower) & ~greater_bits(v, upper);
    }
    if ((bits[0] | bits[1] | bits[2] | bits[3]) == 0) continue;
    for (int u = 0; u < 4; ++u) count += store_bit_ids(out + count, i + 16 * u, bits[u]);
  }
  if (i + 64 > n && count < capacity)
    for (; i < n; ++i)
      if (x[i] > low && x[i] <= high) out[count++] = i;
  *next = i;
  return count;
}

// The first kSize of n values from x on, filled up with minus infinity.
template <int kSize>
inline const float* whole_block(const float* x, int n, float* room) {
  if (n >= kSize) return x;
  for (int i = 0; i < kSize; ++i) room[i] = i < n ? x[i] : -__builtin_inff();
  return room;
}

void exponentials(const float* x, int n, float maximum, double* out) {
  const F64x8 top = wide(static_cast<double>(maximum));
  int i = 0;
  for (; i + 8 <= n; i += 8) store(out + i, exp_nonpositive(sub(load_wide(x + i), top)));
  if (i == n) return;
  float room[8];
  double weights[8];
  store(weights, exp_nonpositive(sub(load_wide(whole_block<8>(x + i, n - i, room)), top)));
  for (int j = i; j < n; ++j) out[j] = weights[j - i];
}

template <bool kHasBound>
inline void sum_blocks(const float* x, int n, float maximum, float bound, double* block_sums, double* sums_above) {
  const F64x8 top = wide(static_cast<double>(maximum)), limit = wide(static_cast<double>(bound));
  float room[kSumBlock];
  for (int begin = 0; begin < n; begin += kSumBlock) {
    const float* block = whole_block<kSumBlock>(x + begin, n - begin, room);
    F64x8 sum = wide(0.0), sum_above = wide(0.0);
#pragma GCC unroll 8
    for (int i = 0; i < kSumBlock; i += 8) {
      const F64x8 v = load_wide(block + i), e = exp_nonpositive(sub(v, top));
      sum = add(sum, e);
      if constexpr (kHasBound) sum_above = add_where_greater(sum_above, e, v, limit);
    }
    block_sums[begin / kSumBlock] = reduce_add(sum);
    if constexpr (kHasBound) sums_above[begin / kSumBlock] = reduce_add(sum_above);
  }
}

void sum_exponentials(const float* x, int n, float maximum, double* block_sums) {
  sum_blocks<false>(x, n, maximum, 0.0f, block_sums, nullptr);
}

void sum_exponentials_above(const float* x, int n, float maximum, float bound, double* block_sums, double* sums_above) {
  sum_blocks<true>(x, n, maximum, bound, block_sums, sums_above);
}

constexpr Kernels kKernels = {
    rms_norm,    rope,      store_kv, quantize_query, attend_partition, merge_partition, finish_row, summarize,
    first_equal, divide,    apply_mask, collect_between, exponentials, sum_exponentials, sum_exponentials_above,
};

}  // namespace
}  // namespace tampu
