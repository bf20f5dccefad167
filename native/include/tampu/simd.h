// Sixteen float lanes, in whatever registers the translation unit is compiled for. Only the per-instruction-set
// kernel files (kernels_portable.cpp, kernels_avx2.cpp, kernels_avx512.cpp) may include this.
//
// Everything is in an unnamed namespace: three copies compiled with different flags must never be merged by the
// linker. For the same reason the files that include this use no inline functions of the standard library.
// Lane operations never look across lanes, and reductions have one fixed order.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
// GCC 12 takes its own "undefined" placeholders inside the intrinsics for uninitialised variables.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace tampu {
namespace {

#if defined(__AVX512F__)

struct F32x16 { __m512 v; };

inline F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
inline F32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
inline F32x16 add(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32x16 sub(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32x16 mul(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32x16 div(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32x16 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// Saturates at the largest finite half, so that a masked key's value times zero stays zero. NaN stays NaN: the
// value is the second operand.
inline void store_f16(uint16_t* p, F32x16 a) {
  __m512 x = _mm512_max_ps(_mm512_set1_ps(-65504.0f), _mm512_min_ps(_mm512_set1_ps(65504.0f), a.v));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline F32x16 load_first(const float* p, int n) {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p)};
}
inline void store_first(float* p, F32x16 a, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), a.v);
}
// Lanes [0, n) of a, `fill` in the others; 0 <= n <= 16.
inline F32x16 keep_first(F32x16 a, int n, float fill) {
  return {_mm512_mask_mov_ps(_mm512_set1_ps(fill), static_cast<__mmask16>((1u << n) - 1u), a.v)};
}
inline unsigned greater_bits(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
inline unsigned equal_bits(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
inline unsigned nan_bits(F32x16 a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q); }
// a where x is not below `limit` (NaN counts as not below), else 0.
inline F32x16 zero_where_below(F32x16 a, F32x16 x, F32x16 limit) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, limit.v, _CMP_NLT_UQ), a.v)};
}
inline F32x16 select_bits(unsigned bits, F32x16 a, F32x16 b) {
  return {_mm512_mask_mov_ps(b.v, static_cast<__mmask16>(bits), a.v)};
}
// `first` plus the numbers of the set bits, one behind the other; returns how many. What lies in the sixteen places from
// p on and is not written is lost.
inline int store_bit_ids(int32_t* p, int first, unsigned bits) {
  const __m512i ids = _mm512_add_epi32(
      _mm512_set1_epi32(first), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  _mm512_storeu_si512(p, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), ids));
  return __builtin_popcount(bits);
}
inline float reduce_max(F32x16 a) { return _mm512_reduce_max_ps(a.v); }
inline float reduce_add(F32x16 a) {
  __m256 x = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
// The float whose exponent field is the lowest byte of x's bits.
inline F32x16 exponent_from_low_bits(F32x16 x) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x.v), 23))};
}
constexpr int kTileRows = 6, kTileVectors = 4;  // 24 accumulators of 32 registers

#elif defined(__AVX2__)

struct F32x16 { __m256 lo, hi; };

inline F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline F32x16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F32x16 add(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F32x16 sub(F32x16 a, F32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F32x16 mul(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F32x16 div(F32x16 a, F32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline F32x16 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline void store_f16(uint16_t* p, F32x16 a) {
  const __m256 top = _mm256_set1_ps(65504.0f), bottom = _mm256_set1_ps(-65504.0f);
  const __m256 lo = _mm256_max_ps(bottom, _mm256_min_ps(top, a.lo));
  const __m256 hi = _mm256_max_ps(bottom, _mm256_min_ps(top, a.hi));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(hi, _MM_FROUND_TO_NEAREST_INT));
}
inline __m256 lanes_below(int n) {
  return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)));
}
inline F32x16 load_first(const float* p, int n) {
  return {_mm256_maskload_ps(p, _mm256_castps_si256(lanes_below(n))),
          _mm256_maskload_ps(p + 8, _mm256_castps_si256(lanes_below(n - 8)))};
}
inline void store_first(float* p, F32x16 a, int n) {
  _mm256_maskstore_ps(p, _mm256_castps_si256(lanes_below(n)), a.lo);
  _mm256_maskstore_ps(p + 8, _mm256_castps_si256(lanes_below(n - 8)), a.hi);
}
inline F32x16 keep_first(F32x16 a, int n, float fill) {
  const __m256 f = _mm256_set1_ps(fill);
  return {_mm256_blendv_ps(f, a.lo, lanes_below(n)), _mm256_blendv_ps(f, a.hi, lanes_below(n - 8))};
}
inline unsigned bits_of(__m256 lo, __m256 hi) {
  return static_cast<unsigned>(_mm256_movemask_ps(lo)) | static_cast<unsigned>(_mm256_movemask_ps(hi)) << 8;
}
inline unsigned greater_bits(F32x16 a, F32x16 b) {
  return bits_of(_mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ));
}
inline unsigned equal_bits(F32x16 a, F32x16 b) {
  return bits_of(_mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ));
}
inline unsigned nan_bits(F32x16 a) {
  return bits_of(_mm256_cmp_ps(a.lo, a.lo, _CMP_UNORD_Q), _mm256_cmp_ps(a.hi, a.hi, _CMP_UNORD_Q));
}
inline F32x16 zero_where_below(F32x16 a, F32x16 x, F32x16 limit) {
  return {_mm256_and_ps(_mm256_cmp_ps(x.lo, limit.lo, _CMP_NLT_UQ), a.lo),
          _mm256_and_ps(_mm256_cmp_ps(x.hi, limit.hi, _CMP_NLT_UQ), a.hi)};
}
inline __m256 spread_bits(unsigned bits) {
  const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_castsi256_ps(
      _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), each), each));
}
inline F32x16 select_bits(unsigned bits, F32x16 a, F32x16 b) {
  return {_mm256_blendv_ps(b.lo, a.lo, spread_bits(bits)), _mm256_blendv_ps(b.hi, a.hi, spread_bits(bits >> 8))};
}
inline float reduce_max(F32x16 a) {
  const __m256 x = _mm256_max_ps(a.lo, a.hi);
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}
inline float reduce_add(F32x16 a) {
  const __m256 x = _mm256_add_ps(a.lo, a.hi);
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
inline F32x16 exponent_from_low_bits(F32x16 x) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x.lo), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x.hi), 23))};
}
constexpr int kTileRows = 3, kTileVectors = 2;  // 12 accumulators of 16 registers

#else

// Four vectors of four: what every 64-bit machine has (SSE2, NEON).
typedef float Quad __attribute__((vector_size(16)));
typedef int32_t QuadInt __attribute__((vector_size(16)));

struct F32x16 { Quad q[4]; };

inline F32x16 load(const float* p) {
  F32x16 r;
  memcpy(&r, p, sizeof r);
  return r;
}
inline void store(float* p, F32x16 a) { memcpy(p, &a, sizeof a); }
inline F32x16 set1(float x) {
  const Quad q = {x, x, x, x};
  return {{q, q, q, q}};
}
#define TAMPU_LANEWISE(expression)              \
  F32x16 r;                                     \
  for (int i = 0; i < 4; ++i) r.q[i] = expression; \
  return r
inline F32x16 add(F32x16 a, F32x16 b) { TAMPU_LANEWISE(a.q[i] + b.q[i]); }
inline F32x16 sub(F32x16 a, F32x16 b) { TAMPU_LANEWISE(a.q[i] - b.q[i]); }
inline F32x16 mul(F32x16 a, F32x16 b) { TAMPU_LANEWISE(a.q[i] * b.q[i]); }
inline F32x16 div(F32x16 a, F32x16 b) { TAMPU_LANEWISE(a.q[i] / b.q[i]); }
inline Quad pick(QuadInt mask, Quad a, Quad b) {
  return reinterpret_cast<Quad>((mask & reinterpret_cast<QuadInt>(a)) | (~mask & reinterpret_cast<QuadInt>(b)));
}
inline F32x16 max(F32x16 a, F32x16 b) { TAMPU_LANEWISE(pick(a.q[i] > b.q[i], a.q[i], b.q[i])); }
#if defined(__aarch64__)   // one instruction each where the plain form takes two and about ten
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  TAMPU_LANEWISE(reinterpret_cast<Quad>(vfmaq_f32(reinterpret_cast<float32x4_t>(c.q[i]),
                                                  reinterpret_cast<float32x4_t>(a.q[i]),
                                                  reinterpret_cast<float32x4_t>(b.q[i]))));
}
inline Quad widen(const uint16_t* p) {
  return reinterpret_cast<Quad>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))));
}
#else
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { TAMPU_LANEWISE(a.q[i] * b.q[i] + c.q[i]); }
inline Quad widen(const uint16_t* p) {
  const QuadInt h = {p[0], p[1], p[2], p[3]};
  const QuadInt magnitude = h & 0x7fff;
  // The half's exponent and fraction moved into a float, then put right by 2^112: exact, subnormals included.
  const QuadInt scaled = reinterpret_cast<QuadInt>(reinterpret_cast<Quad>(magnitude << 13) * 0x1p112f);
  const QuadInt special = (magnitude > 0x7bff) & 0x7f800000;
  return reinterpret_cast<Quad>(scaled | special | (h & 0x8000) << 16);
}
#endif
inline F32x16 load_f16(const uint16_t* p) { TAMPU_LANEWISE(widen(p + 4 * i)); }
inline uint16_t narrow(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477fe000u) return static_cast<uint16_t>(sign | 0x7bffu);  // saturates, see the AVX-512 twin
  if (magnitude < 0x38800000u) {
    // Subnormal half: adding 0.5 lets the float unit round the fraction to multiples of 2^-24.
    float f;
    memcpy(&f, &magnitude, 4);
    f += 0.5f;
    uint32_t sum;
    memcpy(&sum, &f, 4);
    return static_cast<uint16_t>(sign | (sum - 0x3f000000u));
  }
  const uint32_t odd = magnitude >> 13 & 1u;
  return static_cast<uint16_t>(sign | (magnitude - 0x38000000u + 0xfffu + odd) >> 13);
}
inline void store_f16(uint16_t* p, F32x16 a) {
  float x[16];
  store(x, a);
  for (int i = 0; i < 16; ++i) p[i] = narrow(x[i]);
}
inline F32x16 load_first(const float* p, int n) {
  float x[16] = {};
  for (int i = 0; i < n; ++i) x[i] = p[i];
  return load(x);
}
inline void store_first(float* p, F32x16 a, int n) {
  float x[16];
  store(x, a);
  for (int i = 0; i < n; ++i) p[i] = x[i];
}
inline F32x16 keep_first(F32x16 a, int n, float fill) {
  const Quad f = {fill, fill, fill, fill};
  const QuadInt lane = {0, 1, 2, 3};
  TAMPU_LANEWISE(pick(lane + 4 * i < n, a.q[i], f));
}
inline unsigned bits_of(const QuadInt* mask) {
  unsigned bits = 0;
  for (int i = 0; i < 16; ++i) bits |= (mask[i / 4][i % 4] & 1u) << i;
  return bits;
}
inline unsigned greater_bits(F32x16 a, F32x16 b) {
  QuadInt m[4];
  for (int i = 0; i < 4; ++i) m[i] = a.q[i] > b.q[i];
  const QuadInt any = m[0] | m[1] | m[2] | m[3];
  return (any[0] | any[1] | any[2] | any[3]) == 0 ? 0u : bits_of(m);
}
inline unsigned equal_bits(F32x16 a, F32x16 b) {
  QuadInt m[4];
  for (int i = 0; i < 4; ++i) m[i] = a.q[i] == b.q[i];
  const QuadInt any = m[0] | m[1] | m[2] | m[3];
  return (any[0] | any[1] | any[2] | any[3]) == 0 ? 0u : bits_of(m);
}
inline unsigned nan_bits(F32x16 a) { return ~equal_bits(a, a) & 0xffffu; }
inline F32x16 zero_where_below(F32x16 a, F32x16 x, F32x16 limit) {
  TAMPU_LANEWISE(reinterpret_cast<Quad>(~(x.q[i] < limit.q[i]) & reinterpret_cast<QuadInt>(a.q[i])));
}
inline F32x16 select_bits(unsigned bits, F32x16 a, F32x16 b) {
  float x[16], y[16];
  store(x, a);
  store(y, b);
  for (int i = 0; i < 16; ++i) y[i] = bits >> i & 1u ? x[i] : y[i];
  return load(y);
}
inline float reduce_max(F32x16 a) {
  float x[16], m;
  store(x, a);
  m = x[0];
  for (int i = 1; i < 16; ++i) m = x[i] > m ? x[i] : m;
  return m;
}
inline float reduce_add(F32x16 a) {
  const Quad y = (a.q[0] + a.q[2]) + (a.q[1] + a.q[3]);
  return (y[0] + y[2]) + (y[1] + y[3]);
}
inline F32x16 exponent_from_low_bits(F32x16 x) {
  TAMPU_LANEWISE(reinterpret_cast<Quad>(reinterpret_cast<QuadInt>(x.q[i]) << 23));
}
constexpr int kTileRows = 3, kTileVectors = 1;

#endif

#if !defined(__AVX512F__)
inline int store_bit_ids(int32_t* p, int first, unsigned bits) {
  int count = 0;
  for (; bits != 0; bits &= bits - 1) p[count++] = first + __builtin_ctz(bits);
  return count;
}
#endif

inline F32x16 zero() { return set1(0.0f); }

// 2^x for x <= 0; exactly 1 at 0, exactly 0 below -100 (a softmax weight that can change no sum, kept away from
// slow subnormals). Relative error below 2e-7. NaN stays NaN.
inline F32x16 exp2_nonpositive(F32x16 x) {
  // Adding 1.5 * 2^23 + 127 rounds x to a whole number and leaves it, biased as an exponent, in the lowest bits.
  const F32x16 magic = set1(12583039.0f);
  const F32x16 shifted = add(x, magic);
  const F32x16 f = sub(x, sub(shifted, magic));  // [-0.5, 0.5]
  F32x16 p = set1(1.3264718e-3f);
  p = fma(p, f, set1(9.6715139e-3f));
  p = fma(p, f, set1(5.5507340e-2f));
  p = fma(p, f, set1(2.4022242e-1f));
  p = fma(p, f, set1(6.9314700e-1f));
  p = fma(p, f, set1(1.0f));
  return zero_where_below(mul(p, exponent_from_low_bits(shifted)), x, set1(-100.0f));
}

}  // namespace
}  // namespace tampu
