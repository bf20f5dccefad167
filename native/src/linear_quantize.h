// Quantisation of one activation row, the plain definition: one group of 32 at a time, scale = largest magnitude /
// 127 (Normal) or / 32512 (High), round to nearest even. A group with a NaN or an infinity gets a NaN scale, so that
// the whole output row shows it; a group below 2^-100 counts as zero.
#pragma once
#include <cstdint>

#include "linear_layout.h"

namespace tampu::detail {
namespace {

constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr uint32_t kTinyBits = 0x0d800000u;   // 2^-100
constexpr float kNormalLevels = 127.0f;
constexpr float kHighLevels = 32512.0f;       // 127 * 256

struct GroupScale {
  float scale;     // of the result
  float inverse;   // levels per unit
};

// From the largest magnitude's bits (the order of the bits is the order of the values, NaN above infinity).
inline GroupScale group_scale(uint32_t magnitude_bits, float levels) {
  if (magnitude_bits >= kInfinityBits) return {__builtin_bit_cast(float, 0x7fc00000u), 0.0f};
  if (magnitude_bits < kTinyBits) return {0.0f, 0.0f};
  const float magnitude = __builtin_bit_cast(float, magnitude_bits);
  return {magnitude / levels, levels / magnitude};
}

inline void set_sums(GroupSums& out, float scale, int32_t sum, int32_t low_sum) {
  out.scale = scale;
  out.scaled_sum = scale * static_cast<float>(sum);
  out.minus8 = -8 * sum;
  out.minus32_low = -32 * low_sum;
}

}  // namespace
}  // namespace tampu::detail
