// The kernels of kernels.h, written once on sixteen lanes and compiled once per instruction set by the three files
// that include this.
#include "tampu/kernels.h"
#include "tampu/simd.h"

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

void store_key(const float* key, int head_dim, uint16_t* column, int block_size) {
  for (int d = 0; d < head_dim; d += 16) {
    const int n = head_dim - d < 16 ? head_dim - d : 16;
    uint16_t halves[16];
    store_f16(halves, load_first(key + d, n));
    for (int i = 0; i < n; ++i) column[static_cast<size_t>(d + i) * static_cast<size_t>(block_size)] = halves[i];
  }
}

void store_value(const float* value, int head_dim, uint16_t* row) {
  for (int d = 0; d < head_dim; d += 16)
    store_f16(row + d, head_dim - d < 16 ? load_first(value + d, head_dim - d) : load(value + d));
}

inline F32x16 load_lanes(const float* p) { return load(p); }
inline F32x16 load_lanes(const uint16_t* p) { return load_f16(p); }

// c[r][16 v + lane] (+)= sum over k of a[r][k] * b[v][k * ldb + lane], k ascending in one chain per element, so the
// tile an element falls in does not show in its bits.
template <int kRows, int kVectors, class T>
void multiply_tile(const float* a, int lda, const T* const* b, int ldb, float* c, int ldc, int depth, bool is_first) {
  // Without the pragmas GCC keeps `sums` in memory around the loop.
  F32x16 sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[r][v] = is_first ? zero() : load(c + r * ldc + 16 * v);
  for (int k = 0; k < depth; ++k) {
    F32x16 lanes[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) lanes[v] = load_lanes(b[v] + static_cast<ptrdiff_t>(k) * ldb);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F32x16 scalar = set1(a[r * lda + k]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[r][v] = fma(scalar, lanes[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(c + r * ldc + 16 * v, sums[r][v]);
}

template <int kVectors, class T>
void multiply_columns(const float* a, int lda, const T* const* b, int ldb, float* c, int ldc, int depth, int num_rows,
                      bool is_first) {
  int r = 0;
  for (; r + kTileRows <= num_rows; r += kTileRows)
    multiply_tile<kTileRows, kVectors>(a + r * lda, lda, b, ldb, c + r * ldc, ldc, depth, is_first);
  a += r * lda;
  c += r * ldc;
  switch (num_rows - r) {
    case 1: multiply_tile<1, kVectors>(a, lda, b, ldb, c, ldc, depth, is_first); break;
    case 2: multiply_tile<2, kVectors>(a, lda, b, ldb, c, ldc, depth, is_first); break;
    case 3: multiply_tile<3, kVectors>(a, lda, b, ldb, c, ldc, depth, is_first); break;
    case 4: multiply_tile<4, kVectors>(a, lda, b, ldb, c, ldc, depth, is_first); break;
    case 5: multiply_tile<5, kVectors>(a, lda, b, ldb, c, ldc, depth, is_first); break;
    default: break;
  }
}

template <class T>
void multiply(const float* a, int lda, const T* const* b, int ldb, float* c, int ldc, int depth, int num_rows,
              int num_vectors, bool is_first) {
  int v = 0;
  for (; v + kTileVectors <= num_vectors; v += kTileVectors)
    multiply_columns<kTileVectors>(a, lda, b + v, ldb, c + 16 * v, ldc, depth, num_rows, is_first);
  for (; v + 2 <= num_vectors; v += 2)
    multiply_columns<2>(a, lda, b + v, ldb, c + 16 * v, ldc, depth, num_rows, is_first);
  if (v < num_vectors) multiply_columns<1>(a, lda, b + v, ldb, c + 16 * v, ldc, depth, num_rows, is_first);
}

// With this many rows it pays to convert the halves to floats once instead of once per tile of rows.
constexpr int kConvertRows = 2 * kTileRows;
constexpr int kConvertKeys = 64;
constexpr int kMaxVectors = 32;  // of a padded head: 512 elements

void score_keys(const float* q, int num_rows, const KvHead& kv, const int32_t* block_table, int key_begin,
                int num_keys, const AttentionScratch& scratch) {
  const int num_vectors = (num_keys + 15) / 16, bs = kv.block_size;
  const uint16_t* lanes[kPartitionKeys / 16];
  for (int v = 0; v < num_vectors; ++v) {
    const int key = key_begin + 16 * v;
    lanes[v] = kv.base + static_cast<size_t>(block_table[key / bs]) * kv.block_stride + key % bs;
  }
  if (num_rows < kConvertRows) {
    multiply(q, kv.padded_head_dim, lanes, bs, scratch.scores, kScoreStride, kv.head_dim, num_rows, num_vectors,
             true);
    return;
  }
  for (int v = 0; v < num_vectors; v += kConvertKeys / 16) {
    const int count = num_vectors - v < kConvertKeys / 16 ? num_vectors - v : kConvertKeys / 16;
    const float* converted[kConvertKeys / 16];
    for (int u = 0; u < count; ++u) converted[u] = scratch.keys + 16 * u;
    float* to = scratch.keys;
    if (count == kConvertKeys / 16) {
      const uint16_t *k0 = lanes[v], *k1 = lanes[v + 1], *k2 = lanes[v + 2], *k3 = lanes[v + 3];
      for (int d = 0; d < kv.head_dim; ++d, to += kConvertKeys, k0 += bs, k1 += bs, k2 += bs, k3 += bs) {
        store(to, load_f16(k0));
        store(to + 16, load_f16(k1));
        store(to + 32, load_f16(k2));
        store(to + 48, load_f16(k3));
      }
    } else {
      for (int d = 0; d < kv.head_dim; ++d, to += kConvertKeys)
        for (int u = 0; u < count; ++u) store(to + 16 * u, load_f16(lanes[v + u] + d * bs));
    }
    multiply(q, kv.padded_head_dim, converted, kConvertKeys, scratch.scores + 16 * v, kScoreStride, kv.head_dim,
             num_rows, count, true);
  }
}

// Scores of one row to softmax weights relative to the row's maximum; keys at and beyond `num_visible` get weight 0
// whatever lies in their slots.
void weigh_row(float* scores, int num_visible, int num_vectors, float* maximum, float* sum) {
  const float lowest = -__builtin_inff();
  const int full = num_visible / 16, rest = num_visible % 16;
  // Vector v belongs to chain v % 4: short dependency chains, and an order that depends on num_visible alone.
  F32x16 tops[4] = {set1(lowest), set1(lowest), set1(lowest), set1(lowest)};
  int v = 0;
  for (; v + 4 <= full; v += 4)
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) tops[u] = max(tops[u], load(scores + 16 * (v + u)));
  for (int u = 0; v < full; ++v, ++u) tops[u] = max(tops[u], load(scores + 16 * v));
  if (rest > 0) tops[3] = max(tops[3], keep_first(load(scores + 16 * full), rest, lowest));
  *maximum = reduce_max(max(max(tops[0], tops[1]), max(tops[2], tops[3])));
  const F32x16 m = set1(*maximum);
  F32x16 totals[4] = {zero(), zero(), zero(), zero()};
  for (v = 0; v + 4 <= full; v += 4)
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      const F32x16 weight = exp2_nonpositive(sub(load(scores + 16 * (v + u)), m));
      totals[u] = add(totals[u], weight);
      store(scores + 16 * (v + u), weight);
    }
  for (int u = 0; v < full; ++v, ++u) {
    const F32x16 weight = exp2_nonpositive(sub(load(scores + 16 * v), m));
    totals[u] = add(totals[u], weight);
    store(scores + 16 * v, weight);
  }
  if (rest > 0) {
    const F32x16 weight = keep_first(exp2_nonpositive(sub(load(scores + 16 * v), m)), rest, 0.0f);
    totals[3] = add(totals[3], weight);
    store(scores + 16 * v, weight);
    ++v;
  }
  for (; v < num_vectors; ++v) store(scores + 16 * v, zero());
  *sum = reduce_add(add(add(totals[0], totals[1]), add(totals[2], totals[3])));
}

void add_values(int num_rows, const KvHead& kv, const int32_t* block_table, int key_begin, int num_keys,
                const AttentionScratch& scratch, float* out) {
  const int padded = kv.padded_head_dim, num_vectors = padded / 16, bs = kv.block_size;
  const bool converts = num_rows >= kConvertRows;
  const int step = converts ? kConvertKeys : bs;
  for (int j = 0; j < num_keys; j += step) {
    const int count = num_keys - j < step ? num_keys - j : step;
    const float* weights = scratch.scores + j;
    if (!converts) {
      const uint16_t* block = kv.base + static_cast<size_t>(block_table[(key_begin + j) / bs]) * kv.block_stride +
                              static_cast<size_t>(kv.head_dim) * static_cast<size_t>(bs);
      const uint16_t* lanes[kMaxVectors];
      for (int v = 0; v < num_vectors; ++v) lanes[v] = block + 16 * v;
      multiply(weights, kScoreStride, lanes, padded, out, padded, count, num_rows, num_vectors, j == 0);
      continue;
    }
    for (int i = 0; i < count; ++i) {
      const int key = key_begin + j + i;
      const uint16_t* from = kv.base + static_cast<size_t>(block_table[key / bs]) * kv.block_stride +
                             static_cast<size_t>(kv.head_dim) * static_cast<size_t>(bs) +
                             static_cast<size_t>(key % bs) * static_cast<size_t>(padded);
      for (int v = 0; v < num_vectors; ++v) store(scratch.values + i * padded + 16 * v, load_f16(from + 16 * v));
    }
    const float* lanes[kMaxVectors];
    for (int v = 0; v < num_vectors; ++v) lanes[v] = scratch.values + 16 * v;
    multiply(weights, kScoreStride, lanes, padded, out, padded, count, num_rows, num_vectors, j == 0);
  }
}

void attend_partition(const float* q, int num_rows, const int32_t* limits, const KvHead& kv,
                      const int32_t* block_table, int key_begin, int key_end, const AttentionScratch& scratch,
                      const AttentionState& out) {
  const int num_keys = key_end - key_begin, num_vectors = (num_keys + 15) / 16;
  score_keys(q, num_rows, kv, block_table, key_begin, num_keys, scratch);
  for (int r = 0; r < num_rows; ++r) {
    float* scores = scratch.scores + r * kScoreStride;
    int num_visible = limits[r] - key_begin;
    if (num_visible > num_keys) num_visible = num_keys;
    if (num_visible > 0) {
      weigh_row(scores, num_visible, num_vectors, out.maximum + r, out.sum + r);
    } else {
      for (int v = 0; v < num_vectors; ++v) store(scores + 16 * v, zero());
      out.maximum[r] = -__builtin_inff();
      out.sum[r] = 0.0f;
    }
  }
  add_values(num_rows, kv, block_table, key_begin, num_keys, scratch, out.values);
}

void merge_partition(const AttentionState& state, const AttentionState& part, int num_rows, int padded_head_dim) {
  const float lowest = -__builtin_inff();
  for (int first = 0; first < num_rows; first += 16) {
    const int count = num_rows - first < 16 ? num_rows - first : 16;
    const F32x16 m_old = load_first(state.maximum + first, count), m_new = load_first(part.maximum + first, count);
    const F32x16 m = max(m_old, m_new);
    float old_factors[16], new_factors[16];
    store(old_factors, exp2_nonpositive(sub(m_old, m)));
    store(new_factors, exp2_nonpositive(sub(m_new, m)));
    for (int i = 0; i < count; ++i) {
      const int r = first + i;
      if (part.maximum[r] == lowest && part.sum[r] == 0.0f) continue;  // this row saw none of these keys
      const F32x16 old_factor = set1(old_factors[i]), new_factor = set1(new_factors[i]);
      float* values = state.values + r * padded_head_dim;
      const float* more = part.values + r * padded_head_dim;
      for (int d = 0; d < padded_head_dim; d += 16)
        store(values + d, fma(load(more + d), new_factor, mul(load(values + d), old_factor)));
      state.sum[r] = state.sum[r] * old_factors[i] + part.sum[r] * new_factors[i];
      state.maximum[r] = part.maximum[r] > state.maximum[r] ? part.maximum[r] : state.maximum[r];
    }
  }
}

void finish_row(const float* values, float sum, int head_dim, float* out) {
  const F32x16 inverse = set1(1.0f / sum);
  int d = 0;
  for (; d + 16 <= head_dim; d += 16) store(out + d, mul(load(values + d), inverse));
  if (d < head_dim) store_first(out + d, mul(load(values + d), inverse), head_dim - d);
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
    rms_norm,        rope,       store_key, store_value, attend_partition, merge_partition, finish_row,
    summarize,       first_equal, divide,   apply_mask,  collect_above,    exponentials,
};

}  // namespace
}  // namespace tampu
