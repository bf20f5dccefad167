// Eight double lanes, in whatever registers the translation unit is compiled for: the sampler's exponentials. As with
// simd.h, only the per-instruction-set kernel files may include this, and everything has internal linkage.
#pragma once
#include <cstdint>
#include <cstring>

#include "tampu/simd.h"

namespace tampu {
namespace {

#if defined(__AVX512F__)

struct F64x8 { __m512d v; };

inline F64x8 wide(double x) { return {_mm512_set1_pd(x)}; }
inline F64x8 load_wide(const float* p) { return {_mm512_cvtps_pd(_mm256_loadu_ps(p))}; }
inline void store(double* p, F64x8 a) { _mm512_storeu_pd(p, a.v); }
inline F64x8 add(F64x8 a, F64x8 b) { return {_mm512_add_pd(a.v, b.v)}; }
inline F64x8 sub(F64x8 a, F64x8 b) { return {_mm512_sub_pd(a.v, b.v)}; }
inline F64x8 fma(F64x8 a, F64x8 b, F64x8 c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
// a + b where x > limit, else a.
inline F64x8 add_where_greater(F64x8 a, F64x8 b, F64x8 x, F64x8 limit) {
  return {_mm512_mask_add_pd(a.v, _mm512_cmp_pd_mask(x.v, limit.v, _CMP_GT_OQ), a.v, b.v)};
}
// p * 2^n where n + 1023 is in the low bits of `shifted`; 0 where x is below `limit`.
inline F64x8 scale_or_zero(F64x8 p, F64x8 shifted, F64x8 x, F64x8 limit) {
  const __m512d power = _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(shifted.v), 52));
  return {_mm512_maskz_mul_pd(_mm512_cmp_pd_mask(x.v, limit.v, _CMP_GE_OQ), p.v, power)};
}

#elif defined(__AVX2__)

struct F64x8 { __m256d lo, hi; };

inline F64x8 wide(double x) { return {_mm256_set1_pd(x), _mm256_set1_pd(x)}; }
inline F64x8 load_wide(const float* p) {
  return {_mm256_cvtps_pd(_mm_loadu_ps(p)), _mm256_cvtps_pd(_mm_loadu_ps(p + 4))};
}
inline void store(double* p, F64x8 a) {
  _mm256_storeu_pd(p, a.lo);
  _mm256_storeu_pd(p + 4, a.hi);
}
inline F64x8 add(F64x8 a, F64x8 b) { return {_mm256_add_pd(a.lo, b.lo), _mm256_add_pd(a.hi, b.hi)}; }
inline F64x8 sub(F64x8 a, F64x8 b) { return {_mm256_sub_pd(a.lo, b.lo), _mm256_sub_pd(a.hi, b.hi)}; }
inline F64x8 fma(F64x8 a, F64x8 b, F64x8 c) {
  return {_mm256_fmadd_pd(a.lo, b.lo, c.lo), _mm256_fmadd_pd(a.hi, b.hi, c.hi)};
}
inline F64x8 add_where_greater(F64x8 a, F64x8 b, F64x8 x, F64x8 limit) {
  return {_mm256_add_pd(a.lo, _mm256_and_pd(_mm256_cmp_pd(x.lo, limit.lo, _CMP_GT_OQ), b.lo)),
          _mm256_add_pd(a.hi, _mm256_and_pd(_mm256_cmp_pd(x.hi, limit.hi, _CMP_GT_OQ), b.hi))};
}
inline __m256d scale_or_zero(__m256d p, __m256d shifted, __m256d x, __m256d limit) {
  const __m256d power = _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(shifted), 52));
  return _mm256_and_pd(_mm256_cmp_pd(x, limit, _CMP_GE_OQ), _mm256_mul_pd(p, power));
}
inline F64x8 scale_or_zero(F64x8 p, F64x8 shifted, F64x8 x, F64x8 limit) {
  return {scale_or_zero(p.lo, shifted.lo, x.lo, limit.lo), scale_or_zero(p.hi, shifted.hi, x.hi, limit.hi)};
}

#else

typedef double Pair __attribute__((vector_size(16)));
typedef int64_t PairInt __attribute__((vector_size(16)));

struct F64x8 { Pair q[4]; };

#define TAMPU_LANEWISE_PAIRS(expression)           \
  F64x8 r;                                         \
  for (int i = 0; i < 4; ++i) r.q[i] = expression; \
  return r
inline F64x8 wide(double x) {
  const Pair q = {x, x};
  return {{q, q, q, q}};
}
inline F64x8 load_wide(const float* p) {
  TAMPU_LANEWISE_PAIRS((Pair{static_cast<double>(p[2 * i]), static_cast<double>(p[2 * i + 1])}));
}
inline void store(double* p, F64x8 a) { memcpy(p, &a, sizeof a); }
inline F64x8 add(F64x8 a, F64x8 b) { TAMPU_LANEWISE_PAIRS(a.q[i] + b.q[i]); }
inline F64x8 sub(F64x8 a, F64x8 b) { TAMPU_LANEWISE_PAIRS(a.q[i] - b.q[i]); }
inline F64x8 fma(F64x8 a, F64x8 b, F64x8 c) { TAMPU_LANEWISE_PAIRS(a.q[i] * b.q[i] + c.q[i]); }
inline Pair where(PairInt mask, Pair a, Pair b) {
  return reinterpret_cast<Pair>((mask & reinterpret_cast<PairInt>(a)) | (~mask & reinterpret_cast<PairInt>(b)));
}
inline F64x8 add_where_greater(F64x8 a, F64x8 b, F64x8 x, F64x8 limit) {
  TAMPU_LANEWISE_PAIRS(a.q[i] + where(x.q[i] > limit.q[i], b.q[i], Pair{}));
}
inline F64x8 scale_or_zero(F64x8 p, F64x8 shifted, F64x8 x, F64x8 limit) {
  TAMPU_LANEWISE_PAIRS(where(x.q[i] >= limit.q[i],
                             p.q[i] * reinterpret_cast<Pair>(reinterpret_cast<PairInt>(shifted.q[i]) << 52), Pair{}));
}

#endif

// e^x for x <= 0, relative error below 2e-12 and exactly 1 at 0; 0 below -708, minus infinity included, whatever the
// steps before the last make of such an x.
inline F64x8 exp_nonpositive(F64x8 x) {
  const F64x8 magic = wide(6755399441055744.0 + 1023.0);   // leaves n, biased as an exponent, in the lowest bits
  const F64x8 shifted = fma(x, wide(1.4426950408889634), magic);
  const F64x8 r = fma(sub(shifted, magic), wide(-0.6931471805599453), x);
  F64x8 p = wide(2.4708268565395273e-05);   // (e^r - 1 - r) / r^2, fitted for the smallest relative error of e^r
  p = fma(p, r, wide(0.00019908952567200113));
  p = fma(p, r, wide(0.0013889197256933185));
  p = fma(p, r, wide(0.008333281787309665));
  p = fma(p, r, wide(0.041666664403696735));
  p = fma(p, r, wide(0.1666666678451324));
  p = fma(p, r, wide(0.5000000000427156));
  p = fma(p, r, wide(1.0));
  p = fma(p, r, wide(1.0));
  return scale_or_zero(p, shifted, x, wide(-708.0));
}

// In one order: halves, quarters, pairs.
inline double reduce_add(F64x8 a) {
  double v[8];
  store(v, a);
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

}  // namespace
}  // namespace tampu
