// The 8-bit KV cache, for attention_body.h: how a key, a value and a query become signed bytes, and scores of bytes.
//
// A head has one scale per token. Keys have a few channels far larger than the rest, which one scale would pay for
// with all the others; a Hadamard rotation spreads them over the head, and rotating the queries alike leaves every dot
// product as it was. Scores are sums of byte products, and weighted values are sums of products of a byte and a 16-bit
// weight: both exact.
#pragma once

namespace tampu {
namespace {

constexpr float kLargestStored = 65504.0f;  // as the f16 cache has it
constexpr int kMaxHeadDim = 512;

// Butterflies in each aligned run of n elements, n the largest power of two that divides head_dim, over sqrt(n): an
// orthogonal matrix. x: [padded], zero beyond head_dim.
void hadamard(float* x, int head_dim, int padded) {
  const int n = head_dim & -head_dim;
  const F32x16 norm = set1(1.0f / __builtin_sqrtf(static_cast<float>(n)));
  for (int d = 0; d < padded; d += 16) {
    F32x16 v = load(x + d);
    if (n > 1) v = butterfly<1>(v);
    if (n > 2) v = butterfly<2>(v);
    if (n > 4) v = butterfly<4>(v);
    if (n > 8) v = butterfly<8>(v);
    store(x + d, mul(v, norm));
  }
  for (int h = 16; h < n; h *= 2)
    for (int begin = 0; begin < head_dim; begin += 2 * h)
      for (int d = begin; d < begin + h; d += 16) {
        const F32x16 a = load(x + d), b = load(x + d + h);
        store(x + d, add(a, b));
        store(x + d + h, sub(a, b));
      }
}

// Nearest bytes in [-127, 127] of x / scale and the scale; NaN when an element is NaN. Infinities count as the largest
// value. out: [padded], zero where x is.
float quantize_bytes(const float* x, int padded, int8_t* out) {
  const F32x16 lowest = set1(-kLargestStored);
  F32x16 largest = zero();
  unsigned nans = 0;
  for (int d = 0; d < padded; d += 16) {
    const F32x16 v = load(x + d);
    nans |= nan_bits(v);
    largest = max(largest, max(v, sub(zero(), v)));
  }
  float top = reduce_max(largest);
  if (nans != 0) top = __builtin_nanf("");
  if (top > kLargestStored) top = kLargestStored;
  const bool is_zero = top < 1e-30f;
  const F32x16 factor = set1(is_zero ? 0.0f : 127.0f / top);
  for (int d = 0; d < padded; d += 16) {
    const F32x16 v = sub(zero(), max(lowest, sub(zero(), max(lowest, load(x + d)))));
    store_i8(out + d, nans != 0 ? zero() : mul(v, factor));
  }
  return is_zero ? 0.0f : top / 127.0f;
}

void load_head(const float* x, int head_dim, int padded, float* out) {
  for (int d = 0; d < padded; d += 16) store(out + d, load_first(x + d, head_dim - d < 16 ? head_dim - d : 16));
}

float* key_scales(const KvHead& kv, uint8_t* block) { return reinterpret_cast<float*>(block + kv.scales_offset); }
float* value_scales(const KvHead& kv, uint8_t* block) { return key_scales(kv, block) + kv.block_size; }

void store_q8_kv(const float* key, const float* value, const KvHead& kv, uint8_t* block, int row) {
  const int padded = kv.padded_head_dim;
  float head[kMaxHeadDim];
  int8_t bytes[kMaxHeadDim];
  load_head(key, kv.head_dim, padded, head);
  hadamard(head, kv.head_dim, padded);
  key_scales(kv, block)[row] = quantize_bytes(head, padded, bytes);
  for (int d = 0; d < padded; d += 4) {
    uint32_t quad;
    memcpy(&quad, bytes + d, 4);
    quad ^= 0x80808080u;
    memcpy(block + (d * kv.block_size + 4 * row), &quad, 4);
  }
  load_head(value, kv.head_dim, padded, head);
  value_scales(kv, block)[row] = quantize_bytes(head, padded, bytes);
  // Single bytes: the other key of the pair may be written by another thread at the same time.
  uint8_t* pairs = block + kv.values_offset + (row / 2) * padded * 2 + row % 2;
  for (int d = 0; d < padded; ++d) pairs[2 * d] = static_cast<uint8_t>(bytes[d]);
}

void quantize_query(const float* q, int head_dim, int padded, int8_t* bytes, float* scale, int32_t* offset) {
  float head[kMaxHeadDim];
  load_head(q, head_dim, padded, head);
  hadamard(head, head_dim, padded);
  *scale = quantize_bytes(head, padded, bytes);
  int32_t sum = 0;
  for (int d = 0; d < padded; ++d) sum += bytes[d];
  *offset = -128 * sum;
}

// keys[v]: the first quads of sixteen keys; ahead[v]: bytes from there to what is needed later.
template <int kRows, int kVectors>
void score_q8_tile(const int8_t* q, const int32_t* offsets, const float* scales, int padded, const uint8_t* const* keys,
                   const ptrdiff_t* ahead, const float* const* key_scales, int quad_stride, float* scores) {
  I32x16 sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[r][v] = set1_i32(offsets[r]);
  for (int d = 0; d < padded; d += 4) {
    KeyQuads quads[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const uint8_t* at = keys[v] + static_cast<ptrdiff_t>(d / 4) * quad_stride;
      quads[v] = load_quads(at);
      __builtin_prefetch(at + ahead[v]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const QueryQuad quad = load_query(q + r * padded + d);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[r][v] = add_products(sums[r][v], quads[v], quad);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v)
      store(scores + r * kScoreStride + 16 * v, mul(mul(to_float(sums[r][v]), load(key_scales[v])), set1(scales[r])));
}

template <int kVectors>
void score_q8_columns(const QueryRows& q, int num_rows, int padded, const uint8_t* const* keys, const ptrdiff_t* ahead,
                      const float* const* key_scales, int quad_stride, float* scores) {
  each_row_tile(num_rows, [&]<int kRows>(int r) {
    score_q8_tile<kRows, kVectors>(q.bytes + r * padded, q.offsets + r, q.scales + r, padded, keys, ahead, key_scales,
                                   quad_stride, scores + r * kScoreStride);
  });
}

void score_q8_keys(const QueryRows& q, int num_rows, const KvHead& kv, const int32_t* block_table, int key_begin,
                   int num_keys, float* scores) {
  const int num_vectors = (num_keys + 15) / 16, bs = kv.block_size, padded = kv.padded_head_dim;
  const uint8_t* keys[kPartitionKeys / 16];
  ptrdiff_t ahead[kPartitionKeys / 16];
  const float* scales[kPartitionKeys / 16];
  for (int v = 0; v < num_vectors; ++v) {
    const int key = key_begin + 16 * v;
    uint8_t* block = block_of(kv, block_table, key);
    keys[v] = block + 4 * (key % bs);
    scales[v] = key_scales(kv, block) + key % bs;
    __builtin_prefetch(scales[v]);
    __builtin_prefetch(scales[v] + bs);
  }
  for (int v = 0; v < num_vectors; ++v) ahead[v] = after_keys(kv, block_table, key_begin, num_keys, 16 * v) - keys[v];
  int v = 0;
  for (; v + kTileVectors <= num_vectors; v += kTileVectors)
    score_q8_columns<kTileVectors>(q, num_rows, padded, keys + v, ahead + v, scales + v, 4 * bs, scores + 16 * v);
  for (; v < num_vectors; ++v)
    score_q8_columns<1>(q, num_rows, padded, keys + v, ahead + v, scales + v, 4 * bs, scores + 16 * v);
}

// The weights of one row, in place, to 16-bit weights of the values' bytes, [16 * num_vectors], with zeros from
// num_keys on; returns what one unit of them is worth.
float quantize_weights(float* weights, const float* const* scales, int num_keys, int num_vectors) {
  F32x16 largest = zero();
  unsigned nans = 0;
  for (int v = 0; v < num_vectors; ++v) {
    F32x16 w = mul(load(weights + 16 * v), load(scales[v]));
    if (16 * v + 16 > num_keys) w = keep_first(w, num_keys - 16 * v, 0.0f);  // nobody wrote the scales behind them
    nans |= nan_bits(w);
    largest = max(largest, w);
    store(weights + 16 * v, w);
  }
  const float top = reduce_max(largest);
  if (nans != 0) return __builtin_nanf("");
  const F32x16 factor = set1(top < 1e-30f ? 0.0f : 32767.0f / top);
  int16_t* out = reinterpret_cast<int16_t*>(weights);
  for (int v = 0; v < num_vectors; ++v) store_i16(out + 16 * v, mul(load(weights + 16 * v), factor));
  return top < 1e-30f ? 0.0f : top / 32767.0f;
}

// pairs[b]: elements of the first pair of sixteen keys. No sum overflows: 256 products below 2^15 * 2^7.
static_assert(kPartitionKeys <= 256);
template <int kRows, int kVectors>
void add_q8_tile(const float* weights, const float* units, int padded, const int8_t* const* pairs,
                 const ptrdiff_t* ahead, int num_vectors, float* out) {
  I32x16 sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[r][v] = set1_i32(0);
  // One loop, not blocks and pairs: in two GCC keeps `sums` in memory.
  for (int k = 0; k < 16 * num_vectors; k += 2) {
    const int8_t* at = pairs[k / 16] + k % 16 * padded;
    const ptrdiff_t later = ahead[k / 16];
    ValuePairs values[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      values[v] = load_pairs(at + 32 * v);
      if (v % 2 == 0) __builtin_prefetch(at + 32 * v + later);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const WeightPair pair = load_weights(reinterpret_cast<const int16_t*>(weights + r * kScoreStride) + k);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[r][v] = add_products(sums[r][v], values[v], pair);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(out + r * padded + 16 * v, mul(to_float(sums[r][v]), set1(units[r])));
}

// Weights in scratch.scores become 16-bit ones; out[r] is their sum of values.
void add_q8_values(int num_rows, const KvHead& kv, const int32_t* block_table, int key_begin, int num_keys,
                   int next_end, const AttentionScratch& scratch, float* out) {
  const int num_vectors = (num_keys + 15) / 16, bs = kv.block_size, padded = kv.padded_head_dim;
  const int8_t* pairs[kPartitionKeys / 16];
  ptrdiff_t ahead[kPartitionKeys / 16];
  const float* scales[kPartitionKeys / 16];
  for (int v = 0; v < num_vectors; ++v) {
    const int key = key_begin + 16 * v;
    uint8_t* block = block_of(kv, block_table, key);
    pairs[v] = reinterpret_cast<const int8_t*>(block + kv.values_offset) + (key % bs) * padded;
    scales[v] = value_scales(kv, block) + key % bs;
    ahead[v] = after_values(kv, block_table, key_begin, num_keys, next_end, 16 * v) -
               reinterpret_cast<const uint8_t*>(pairs[v]);
  }
  each_row_tile(num_rows, [&]<int kRows>(int r) {
    float units[kRows];
    for (int i = 0; i < kRows; ++i)
      units[i] = quantize_weights(scratch.scores + (r + i) * kScoreStride, scales, num_keys, num_vectors);
    const int8_t* columns[kPartitionKeys / 16];
    for (int d = 0; d < padded; d += 16 * kTileVectors) {
      for (int v = 0; v < num_vectors; ++v) columns[v] = pairs[v] + 2 * d;
      const float* weights = scratch.scores + r * kScoreStride;
      float* to = out + r * padded + d;
      if (padded - d >= 16 * kTileVectors) {
        add_q8_tile<kRows, kTileVectors>(weights, units, padded, columns, ahead, num_vectors, to);
        continue;
      }
      for (int rest = d; rest < padded; rest += 16, to += 16) {
        for (int v = 0; v < num_vectors; ++v) columns[v] = pairs[v] + 2 * rest;
        add_q8_tile<kRows, 1>(weights, units, padded, columns, ahead, num_vectors, to);
      }
    }
  });
}

}  // namespace
}  // namespace tampu
