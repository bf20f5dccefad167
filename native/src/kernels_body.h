// The kernels of kernels.h, written once on sixteen lanes and compiled once per instruction set by the three files
// that include this.
#include "tampu/kernels.h"
#include "tampu/simd.h"

#include "attention_body.h"

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

int collect_above(const float* x, int begin, int n, float threshold, bool inclusive, int32_t* out, int capacity,
                  int* next) {
  const F32x16 limit = set1(threshold);
  int count = 0, i = begin;
  for (; i + 16 <= n && count < capacity; i += 16) {
    const F32x16 v = load(x + i);
    unsigned bits = greater_bits(v, limit);
    if (inclusive) bits |= equal_bits(v, limit);
    for (; bits != 0; bits &= bits - 1) out[count++] = i + __builtin_ctz(bits);
  }
  if (i + 16 > n && count < capacity)
    for (; i < n; ++i)
      if (x[i] > threshold || (inclusive && x[i] == threshold)) out[count++] = i;
  *next = i;
  return count;
}

inline double fused(double a, double b, double c) {
#if defined(__FMA__)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// exp(d) for d <= 0 in double, relative error below 1e-15; below -708 it is 0. Written without branches so that the
// compiler can vectorise the loop.
inline double exp_nonpositive(double d) {
  const double x = d < -708.0 ? -708.0 : d;
  const double shifted = fused(x, 1.4426950408889634, 6755399441055744.0);
  const double n = shifted - 6755399441055744.0;
  const double r = fused(n, -1.90821492927058770002e-10, fused(n, -6.93147180369123816490e-01, x));
  double p = 1.0 / 6227020800.0;
  p = fused(p, r, 1.0 / 479001600.0);
  p = fused(p, r, 1.0 / 39916800.0);
  p = fused(p, r, 1.0 / 3628800.0);
  p = fused(p, r, 1.0 / 362880.0);
  p = fused(p, r, 1.0 / 40320.0);
  p = fused(p, r, 1.0 / 5040.0);
  p = fused(p, r, 1.0 / 720.0);
  p = fused(p, r, 1.0 / 120.0);
  p = fused(p, r, 1.0 / 24.0);
  p = fused(p, r, 1.0 / 6.0);
  p = fused(p, r, 0.5);
  p = fused(p, r, 1.0);
  p = fused(p, r, 1.0);
  uint64_t bits;
  memcpy(&bits, &shifted, 8);  // the low bits of `shifted` are n in two's complement
  bits = (bits + 1023) << 52;
  double power;
  memcpy(&power, &bits, 8);
  return d < -708.0 ? 0.0 : p * power;
}

void exponentials(const float* x, int n, float maximum, double* out, double* block_sums) {
  const double top = static_cast<double>(maximum);
  for (int i = 0; i < n; ++i) out[i] = exp_nonpositive(static_cast<double>(x[i]) - top);
  for (int begin = 0; begin < n; begin += 64) {
    double lanes[8] = {};
    const int full = n - begin < 64 ? (n - begin) / 8 * 8 : 64;
    for (int i = 0; i < full; i += 8)
      for (int j = 0; j < 8; ++j) lanes[j] += out[begin + i + j];
    for (int i = full; i < 64 && begin + i < n; ++i) lanes[i - full] += out[begin + i];
    block_sums[begin / 64] =
        ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
  }
}

constexpr Kernels kKernels = {
    rms_norm,   rope,        store_kv, quantize_query, attend_partition, merge_partition, finish_row,
    summarize,  first_equal, divide,   apply_mask,     collect_above,    exponentials,
};

}  // namespace
}  // namespace tampu
