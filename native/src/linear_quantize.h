// Quantisation of one activation group, the plain definition: x is kept as offset + scale * level with offset the
// smallest of the 32 values, scale = range / 255 (Normal) or / 65535 (High), and level rounded to nearest even.
// A group with a NaN or an infinity gets a NaN scale, so that the whole output row shows it; a group whose values are
// all below 2^-100 counts as zero; one without range is its offset alone.
#pragma once
#include <cstdint>

#include "linear_layout.h"

namespace tampu::detail {
namespace {

constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr uint32_t kTinyBits = 0x0d800000u;   // 2^-100
constexpr float kTinyScale = 0x1p-110f;
constexpr float kNormalLevels = 255.0f;
constexpr float kHighLevels = 65535.0f;

struct GroupRange {
  float scale;
  float offset;
  float inverse;   // levels per unit; 0: every level is 0
};

// magnitude_bits: the largest |x|, as bits (their order is the order of the values, with NaN above infinity).
inline GroupRange group_range(uint32_t magnitude_bits, float smallest, float largest, float levels) {
  if (magnitude_bits >= kInfinityBits) return {__builtin_bit_cast(float, 0x7fc00000u), 0.0f, 0.0f};
  if (magnitude_bits < kTinyBits) return {0.0f, 0.0f, 0.0f};
  const float scale = largest / levels - smallest / levels;   // the difference itself could overflow
  if (scale < kTinyScale) return {0.0f, smallest, 0.0f};
  return {scale, smallest, 1.0f / scale};
}

inline GroupLevels group_levels(const GroupRange& range, int32_t level_sum) {
  return {range.scale, range.offset, range.scale * static_cast<float>(level_sum) + 32.0f * range.offset, 0.0f};
}

}  // namespace
}  // namespace tampu::detail
