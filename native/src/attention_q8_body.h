// The 8-bit KV cache, for attention_body.h: how a key, a value and a query become signed bytes, and scores of bytes.
//
// A head has one scale per token. Keys have a few channels far larger than the rest, which one scale would pay for
// with all the others; a Hadamard rotation spreads them over the head, and rotating the queries alike leaves every dot
// product as it was. Scores are then sums of byte products: exact, so the same on every instruction set.
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
  value_scales(kv, block)[row] =
      quantize_bytes(head, padded, reinterpret_cast<int8_t*>(block + kv.values_offset) + row * padded);
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

template <int kRows, int kVectors>
void score_q8_tile(const int8_t* q, const int32_t* offsets, const float* scales, int padded, const uint8_t* const* keys,
                   const float* const* key_scales, int quad_stride, float* scores) {
  I32x16 sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[r][v] = set1_i32(offsets[r]);
  for (int d = 0; d < padded; d += 4) {
    KeyQuads quads[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) quads[v] = load_quads(keys[v] + static_cast<ptrdiff_t>(d / 4) * quad_stride);
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
void score_q8_columns(const QueryRows& q, int num_rows, int padded, const uint8_t* const* keys,
                      const float* const* key_scales, int quad_stride, float* scores) {
  const auto tile = [&]<int kRows>(int r) {
    score_q8_tile<kRows, kVectors>(q.bytes + r * padded, q.offsets + r, q.scales + r, padded, keys, key_scales,
                                   quad_stride, scores + r * kScoreStride);
  };
  int r = 0;
  for (; r + kTileRows <= num_rows; r += kTileRows) tile.template operator()<kTileRows>(r);
  switch (num_rows - r) {
    case 1: tile.template operator()<1>(r); break;
    case 2: tile.template operator()<2>(r); break;
    case 3: tile.template operator()<3>(r); break;
    case 4: tile.template operator()<4>(r); break;
    case 5: tile.template operator()<5>(r); break;
    default: break;
  }
}

void score_q8_keys(const QueryRows& q, int num_rows, const KvHead& kv, const int32_t* block_table, int key_begin,
                   int num_keys, float* scores) {
  const int num_vectors = (num_keys + 15) / 16, bs = kv.block_size, padded = kv.padded_head_dim;
  const uint8_t* keys[kPartitionKeys / 16];
  const float* scales[kPartitionKeys / 16];
  for (int v = 0; v < num_vectors; ++v) {
    const int key = key_begin + 16 * v;
    uint8_t* block = block_of(kv, block_table, key);
    keys[v] = block + 4 * (key % bs);
    scales[v] = key_scales(kv, block) + key % bs;
  }
  int v = 0;
  for (; v + kTileVectors <= num_vectors; v += kTileVectors)
    score_q8_columns<kTileVectors>(q, num_rows, padded, keys + v, scales + v, 4 * bs, scores + 16 * v);
  for (; v < num_vectors; ++v)
    score_q8_columns<1>(q, num_rows, padded, keys + v, scales + v, 4 * bs, scores + 16 * v);
}

// Weights of values to weights of their bytes.
void scale_weights(int num_rows, const KvHead& kv, const int32_t* block_table, int key_begin, int num_vectors,
                   float* scores) {
  for (int v = 0; v < num_vectors; ++v) {
    const int key = key_begin + 16 * v;
    const F32x16 scales = load(value_scales(kv, block_of(kv, block_table, key)) + key % kv.block_size);
    for (int r = 0; r < num_rows; ++r) {
      float* at = scores + r * kScoreStride + 16 * v;
      store(at, mul(load(at), scales));
    }
  }
}

}  // namespace
}  // namespace tampu
