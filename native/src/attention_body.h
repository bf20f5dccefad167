// Attention over the paged KV cache, for kernels_body.h: storing keys and values, and the soft-max state of query rows
// over one partition of keys. What is special to the 8-bit cache is in attention_q8_body.h.
#pragma once
#include "tampu/kernels.h"
#include "tampu/simd.h"

#include "simd_int8.h"

namespace tampu {
namespace {

inline uint8_t* block_of(const KvHead& kv, const int32_t* block_table, int key) {
  return kv.base + static_cast<size_t>(block_table[key / kv.block_size]) * kv.block_stride;
}

// The value row of a key, halves.
inline const uint16_t* f16_values_of(const KvHead& kv, const int32_t* block_table, int key) {
  return reinterpret_cast<const uint16_t*>(block_of(kv, block_table, key) + kv.values_offset) +
         static_cast<size_t>(key % kv.block_size) * static_cast<size_t>(kv.padded_head_dim);
}

// Where the memory system is sent while keys, or values, of a partition are read: kAheadKeys further on, keys before
// values before the keys of the next partition. What is read in between keeps it busy for longer than a miss takes.
// The place is that of `key`'s sixteen, in keys or values alike: these have the same number of bytes, or nearly so.
constexpr int kAheadKeys = 64;

inline const uint8_t* keys_at(const KvHead& kv, const int32_t* block_table, int key) {
  const int row = key % kv.block_size;
  return block_of(kv, block_table, key) + (kv.type == KvType::Q8 ? 4 * row : 2 * row);
}

inline const uint8_t* values_at(const KvHead& kv, const int32_t* block_table, int key) {
  const int row_bytes = kv.padded_head_dim * (kv.type == KvType::Q8 ? 1 : 2);
  return block_of(kv, block_table, key) + kv.values_offset + (key % kv.block_size) * row_bytes;
}

inline const uint8_t* after_keys(const KvHead& kv, const int32_t* block_table, int key_begin, int num_keys, int i) {
  const int next = i + kAheadKeys;
  if (next < num_keys) return keys_at(kv, block_table, key_begin + next);
  return values_at(kv, block_table, key_begin + (i < kAheadKeys ? i : next - num_keys) / 16 * 16);
}

inline const uint8_t* after_values(const KvHead& kv, const int32_t* block_table, int key_begin, int num_keys,
                                   int next_end, int i) {
  const int next = i + kAheadKeys;
  if (next < num_keys) return values_at(kv, block_table, key_begin + next);
  const int key = key_begin + num_keys + (next - num_keys) / 16 * 16;
  if (key < next_end) return keys_at(kv, block_table, key);
  return values_at(kv, block_table, key_begin + i);
}

// tile.template operator()<n>(first row) for all rows, in tiles of n rows.
template <class Tile>
void each_row_tile(int num_rows, const Tile& tile) {
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

}  // namespace
}  // namespace tampu

#include "attention_q8_body.h"

namespace tampu {
namespace {

void store_f16_kv(const float* key, const float* value, const KvHead& kv, uint8_t* block, int row) {
  const int head_dim = kv.head_dim, bs = kv.block_size;
  uint16_t* column = reinterpret_cast<uint16_t*>(block) + row;
  uint16_t* values = reinterpret_cast<uint16_t*>(block + kv.values_offset) + row * kv.padded_head_dim;
  for (int d = 0; d < head_dim; d += 16) {
    const int n = head_dim - d < 16 ? head_dim - d : 16;
    uint16_t halves[16];
    store_f16(halves, load_first(key + d, n));
    for (int i = 0; i < n; ++i) column[(d + i) * bs] = halves[i];
    store_f16(values + d, load_first(value + d, n));
  }
}

// A row that may not see a key gives it the weight zero, and zero times NaN is NaN. So NaN is never stored in a value but
// in the key instead: whoever sees that key is NaN all the same, by its score.
void store_kv(const float* key, const float* value, const KvHead& kv, int32_t block, int row) {
  uint8_t* to = kv.base + static_cast<size_t>(block) * kv.block_stride;
  unsigned nans = 0;
  for (int d = 0; d < kv.head_dim; d += 16)
    nans |= nan_bits(load_first(value + d, kv.head_dim - d < 16 ? kv.head_dim - d : 16));
  float no_key[kMaxHeadDim], no_value[kMaxHeadDim];
  if (nans != 0) {
    for (int d = 0; d < kv.head_dim; ++d) {
      no_key[d] = __builtin_nanf("");
      no_value[d] = 0.0f;
    }
    key = no_key;
    value = no_value;
  }
  if (kv.type == KvType::Q8)
    store_q8_kv(key, value, kv, to, row);
  else
    store_f16_kv(key, value, kv, to, row);
}

inline F32x16 load_lanes(const float* p) { return load(p); }
inline F32x16 load_lanes(const uint16_t* p) { return load_f16(p); }

// c[r][16 v + lane] (+)= sum over k of a[r][k] * b[v][k * ldb + lane], k ascending in one chain per element, so the
// tile an element falls in does not show in its bits.
// ahead[v]: bytes from b[v] to what is needed later; null: nothing is.
template <int kRows, int kVectors, bool kHasAhead, class T>
void multiply_tile(const float* a, int lda, const T* const* b, const ptrdiff_t* ahead, int ldb, float* c, int ldc,
                   int depth, bool is_first) {
  // Without the pragmas GCC keeps `sums` in memory around the loop.
  F32x16 sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[r][v] = is_first ? zero() : load(c + r * ldc + 16 * v);
  for (int k = 0; k < depth; ++k) {
    F32x16 lanes[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const T* at = b[v] + static_cast<ptrdiff_t>(k) * ldb;
      lanes[v] = load_lanes(at);
      if constexpr (kHasAhead) __builtin_prefetch(reinterpret_cast<const uint8_t*>(at) + ahead[v]);
    }
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
void multiply_columns(const float* a, int lda, const T* const* b, const ptrdiff_t* ahead, int ldb, float* c, int ldc,
                      int depth, int num_rows, bool is_first) {
  each_row_tile(num_rows, [&]<int kRows>(int r) {
    if (ahead != nullptr)
      multiply_tile<kRows, kVectors, true>(a + r * lda, lda, b, ahead, ldb, c + r * ldc, ldc, depth, is_first);
    else
      multiply_tile<kRows, kVectors, false>(a + r * lda, lda, b, ahead, ldb, c + r * ldc, ldc, depth, is_first);
  });
}

template <class T>
void multiply(const float* a, int lda, const T* const* b, const ptrdiff_t* ahead, int ldb, float* c, int ldc, int depth,
              int num_rows, int num_vectors, bool is_first) {
  const auto ahead_of = [&](int v) { return ahead != nullptr ? ahead + v : nullptr; };
  int v = 0;
  for (; v + kTileVectors <= num_vectors; v += kTileVectors)
    multiply_columns<kTileVectors>(a, lda, b + v, ahead_of(v), ldb, c + 16 * v, ldc, depth, num_rows, is_first);
  for (; v + 2 <= num_vectors; v += 2)
    multiply_columns<2>(a, lda, b + v, ahead_of(v), ldb, c + 16 * v, ldc, depth, num_rows, is_first);
  if (v < num_vectors)
    multiply_columns<1>(a, lda, b + v, ahead_of(v), ldb, c + 16 * v, ldc, depth, num_rows, is_first);
}

// With this many rows it pays to convert the halves to floats once instead of once per tile of rows.
constexpr int kConvertRows = 2 * kTileRows;
constexpr int kConvertKeys = 64;
constexpr int kMaxVectors = 32;  // of a padded head: 512 elements

void score_f16_keys(const float* q, int num_rows, const KvHead& kv, const int32_t* block_table, int key_begin,
                    int num_keys, const AttentionScratch& scratch) {
  const int num_vectors = (num_keys + 15) / 16, bs = kv.block_size;
  const uint16_t* lanes[kPartitionKeys / 16];
  for (int v = 0; v < num_vectors; ++v) {
    const int key = key_begin + 16 * v;
    lanes[v] = reinterpret_cast<const uint16_t*>(block_of(kv, block_table, key)) + key % bs;
  }
  if (num_rows < kConvertRows) {
    ptrdiff_t ahead[kPartitionKeys / 16];
    for (int v = 0; v < num_vectors; ++v)
      ahead[v] = after_keys(kv, block_table, key_begin, num_keys, 16 * v) - reinterpret_cast<const uint8_t*>(lanes[v]);
    multiply(q, kv.padded_head_dim, lanes, ahead, bs, scratch.scores, kScoreStride, kv.head_dim, num_rows, num_vectors,
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
    multiply(q, kv.padded_head_dim, converted, nullptr, kConvertKeys, scratch.scores + 16 * v, kScoreStride,
             kv.head_dim, num_rows, count, true);
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

void add_f16_values(int num_rows, const KvHead& kv, const int32_t* block_table, int key_begin, int num_keys,
                    int next_end, const AttentionScratch& scratch, float* out) {
  const int padded = kv.padded_head_dim, num_vectors = padded / 16, bs = kv.block_size;
  const bool converts = num_rows >= kConvertRows;
  const int step = converts ? kConvertKeys : bs;
  const uint16_t* lanes[kMaxVectors];
  ptrdiff_t ahead[kMaxVectors];
  const float* converted[kMaxVectors];
  for (int v = 0; v < num_vectors; ++v) converted[v] = scratch.values + 16 * v;
  for (int j = 0; j < num_keys; j += step) {
    const int count = num_keys - j < step ? num_keys - j : step;
    const float* weights = scratch.scores + j;
    if (!converts) {
      const uint16_t* rows = f16_values_of(kv, block_table, key_begin + j);
      const uint8_t* later = after_values(kv, block_table, key_begin, num_keys, next_end, j);
      for (int v = 0; v < num_vectors; ++v) {
        lanes[v] = rows + 16 * v;
        ahead[v] = later - reinterpret_cast<const uint8_t*>(rows);
      }
      multiply(weights, kScoreStride, lanes, ahead, padded, out, padded, count, num_rows, num_vectors, j == 0);
      continue;
    }
    for (int i = 0; i < count; ++i) {
      const uint16_t* from = f16_values_of(kv, block_table, key_begin + j + i);
      for (int v = 0; v < num_vectors; ++v) store(scratch.values + i * padded + 16 * v, load_f16(from + 16 * v));
    }
    multiply(weights, kScoreStride, converted, nullptr, padded, out, padded, count, num_rows, num_vectors, j == 0);
  }
}

void attend_partition(const QueryRows& q, int num_rows, const int32_t* limits, const KvHead& kv,
                      const int32_t* block_table, int key_begin, int key_end, int next_end,
                      const AttentionScratch& scratch, const AttentionState& out) {
  const int num_keys = key_end - key_begin, num_vectors = (num_keys + 15) / 16;
  const bool is_q8 = kv.type == KvType::Q8;
  if (is_q8)
    score_q8_keys(q, num_rows, kv, block_table, key_begin, num_keys, scratch.scores);
  else
    score_f16_keys(q.values, num_rows, kv, block_table, key_begin, num_keys, scratch);
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
  if (is_q8)
    add_q8_values(num_rows, kv, block_table, key_begin, num_keys, next_end, scratch, out.values);
  else
    add_f16_values(num_rows, kv, block_table, key_begin, num_keys, next_end, scratch, out.values);
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

}  // namespace
}  // namespace tampu
