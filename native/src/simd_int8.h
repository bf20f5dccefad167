// Bytes on sixteen lanes: what the 8-bit KV cache needs beyond simd.h, under the same rules.
//
// "Quads" are four consecutive elements of a head: of sixteen keys side by side as unsigned bytes (the value + 128), or
// of one query as signed bytes. "Pairs" belong to two consecutive keys: sixteen elements of both values side by side as
// signed bytes, or both weights as 16-bit numbers. Products are summed exactly.
#pragma once
#include "tampu/simd.h"

namespace tampu {
namespace {

#if defined(__AVX512F__)

struct I32x16 { __m512i v; };
struct KeyQuads { __m512i v; };
struct QueryQuad { __m512i v; };
struct ValuePairs { __m512i v; };
struct WeightPair { __m512i v; };

// Both round to nearest, ties to even; |a| is in range.
inline void store_i8(int8_t* p, F32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
inline void store_i16(int16_t* p, F32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(a.v)));
}
template <int kDistance>
inline F32x16 swap_lanes(F32x16 a) {
  if constexpr (kDistance == 1) return {_mm512_permute_ps(a.v, 0xb1)};
  if constexpr (kDistance == 2) return {_mm512_permute_ps(a.v, 0x4e)};
  if constexpr (kDistance == 4) return {_mm512_shuffle_f32x4(a.v, a.v, 0xb1)};
  if constexpr (kDistance == 8) return {_mm512_shuffle_f32x4(a.v, a.v, 0x4e)};
}
inline I32x16 set1_i32(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline F32x16 to_float(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline KeyQuads load_quads(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline QueryQuad load_query(const int8_t* p) {
  int32_t quad;
  memcpy(&quad, p, 4);
  return {_mm512_set1_epi32(quad)};
}
// In assembly, because around the intrinsics GCC 12 copies and spills the sums of a tile.
inline I32x16 add_products(I32x16 sum, KeyQuads keys, QueryQuad query) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(keys.v), "v"(query.v));
  return sum;
}
inline ValuePairs load_pairs(const int8_t* p) {
  return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline WeightPair load_weights(const int16_t* p) {
  int32_t pair;
  memcpy(&pair, p, 4);
  return {_mm512_set1_epi32(pair)};
}
inline I32x16 add_products(I32x16 sum, ValuePairs values, WeightPair weights) {
  asm("vpdpwssd %2, %1, %0" : "+v"(sum.v) : "v"(values.v), "v"(weights.v));
  return sum;
}

#elif defined(__AVX2__)

// Elements 0 and 2 of each quad, and 1 and 3, as 16-bit pairs; each for eight keys.
struct I32x16 { __m256i lo, hi; };
struct KeyQuads { __m256i even_lo, odd_lo, even_hi, odd_hi; };
struct QueryQuad { __m256i even, odd; };
struct ValuePairs { __m256i lo, hi; };
struct WeightPair { __m256i v; };

// Rounded to nearest, ties to even; |a| is in range.
inline __m256i to_words(F32x16 a) {
  const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
  return _mm256_permute4x64_epi64(words, 0xd8);
}
inline void store_i16(int16_t* p, F32x16 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_words(a)); }
inline void store_i8(int8_t* p, F32x16 a) {
  const __m256i ordered = to_words(a);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1)));
}
template <int kDistance>
inline F32x16 swap_lanes(F32x16 a) {
  if constexpr (kDistance == 1) return {_mm256_permute_ps(a.lo, 0xb1), _mm256_permute_ps(a.hi, 0xb1)};
  if constexpr (kDistance == 2) return {_mm256_permute_ps(a.lo, 0x4e), _mm256_permute_ps(a.hi, 0x4e)};
  if constexpr (kDistance == 4)
    return {_mm256_permute2f128_ps(a.lo, a.lo, 1), _mm256_permute2f128_ps(a.hi, a.hi, 1)};
  if constexpr (kDistance == 8) return {a.hi, a.lo};
}
inline I32x16 set1_i32(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline F32x16 to_float(I32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline KeyQuads load_quads(const uint8_t* p) {
  const __m256i lo = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i hi = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32));
  const __m256i low_bytes = _mm256_set1_epi16(0xff);
  return {_mm256_and_si256(lo, low_bytes), _mm256_srli_epi16(lo, 8), _mm256_and_si256(hi, low_bytes),
          _mm256_srli_epi16(hi, 8)};
}
inline QueryQuad load_query(const int8_t* p) {
  int32_t quad;
  memcpy(&quad, p, 4);
  const __m256i bytes = _mm256_set1_epi32(quad);
  return {_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)};
}
inline I32x16 add_products(I32x16 sum, KeyQuads keys, QueryQuad query) {
  return {_mm256_add_epi32(sum.lo, _mm256_add_epi32(_mm256_madd_epi16(keys.even_lo, query.even),
                                                    _mm256_madd_epi16(keys.odd_lo, query.odd))),
          _mm256_add_epi32(sum.hi, _mm256_add_epi32(_mm256_madd_epi16(keys.even_hi, query.even),
                                                    _mm256_madd_epi16(keys.odd_hi, query.odd)))};
}
inline ValuePairs load_pairs(const int8_t* p) {
  return {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)))};
}
inline WeightPair load_weights(const int16_t* p) {
  int32_t pair;
  memcpy(&pair, p, 4);
  return {_mm256_set1_epi32(pair)};
}
inline I32x16 add_products(I32x16 sum, ValuePairs values, WeightPair weights) {
  return {_mm256_add_epi32(sum.lo, _mm256_madd_epi16(values.lo, weights.v)),
          _mm256_add_epi32(sum.hi, _mm256_madd_epi16(values.hi, weights.v))};
}

#else

struct I32x16 { int32_t v[16]; };
struct KeyQuads { uint8_t v[64]; };
struct QueryQuad { int32_t v[4]; };
struct ValuePairs { int8_t v[32]; };
struct WeightPair { int32_t v[2]; };

// Adding 1.5 * 2^23 rounds to nearest, ties to even, and leaves the number in the lowest bits.
inline void round_lanes(F32x16 a, int32_t* out) {
  float x[16];
  store(x, add(a, set1(12582912.0f)));
  memcpy(out, x, sizeof x);
  for (int i = 0; i < 16; ++i) out[i] -= 0x4b400000;
}
inline void store_i8(int8_t* p, F32x16 a) {
  int32_t whole[16];
  round_lanes(a, whole);
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(whole[i]);
}
inline void store_i16(int16_t* p, F32x16 a) {
  int32_t whole[16];
  round_lanes(a, whole);
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int16_t>(whole[i]);
}
template <int kDistance>
inline F32x16 swap_lanes(F32x16 a) {
  float x[16], y[16];
  store(x, a);
  for (int i = 0; i < 16; ++i) y[i] = x[i ^ kDistance];
  return load(y);
}
inline I32x16 set1_i32(int32_t x) {
  I32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = x;
  return r;
}
inline F32x16 to_float(I32x16 a) {
  float x[16];
  for (int i = 0; i < 16; ++i) x[i] = static_cast<float>(a.v[i]);
  return load(x);
}
inline KeyQuads load_quads(const uint8_t* p) {
  KeyQuads r;
  memcpy(r.v, p, 64);
  return r;
}
inline QueryQuad load_query(const int8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
inline I32x16 add_products(I32x16 sum, KeyQuads keys, QueryQuad query) {
  for (int i = 0; i < 16; ++i)
    sum.v[i] += keys.v[4 * i] * query.v[0] + keys.v[4 * i + 1] * query.v[1] + keys.v[4 * i + 2] * query.v[2] +
                keys.v[4 * i + 3] * query.v[3];
  return sum;
}
inline ValuePairs load_pairs(const int8_t* p) {
  ValuePairs r;
  memcpy(r.v, p, 32);
  return r;
}
inline WeightPair load_weights(const int16_t* p) { return {{p[0], p[1]}}; }
inline I32x16 add_products(I32x16 sum, ValuePairs values, WeightPair weights) {
  for (int i = 0; i < 16; ++i) sum.v[i] += values.v[2 * i] * weights.v[0] + values.v[2 * i + 1] * weights.v[1];
  return sum;
}

#endif

// Lane i becomes x[i] + x[i ^ h], or x[i ^ h] - x[i] where i has bit h.
template <int kDistance>
inline F32x16 butterfly(F32x16 x) {
  float signs[16];
  for (int i = 0; i < 16; ++i) signs[i] = (i & kDistance) != 0 ? -1.0f : 1.0f;
  return add(swap_lanes<kDistance>(x), mul(x, load(signs)));
}

}  // namespace
}  // namespace tampu
