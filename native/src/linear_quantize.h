// Quantisation of one activation group, the plain definition: x is kept as offset + scale * level with offset the
// smallest of the 32 values, scale = range / 255 or, in a fine group, range / 65535, and level rounded to nearest even.
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

// What a group's levels are: the largest one, and how far to the left they are kept. A group of a High record that is
// not fine holds the levels of a Normal one in its high bytes, so it gives the same sums times 256, exactly.
struct LevelForm {
  float largest;
  int shift;
};
constexpr LevelForm kNormalForm{255.0f, 0}, kFineForm{65535.0f, 0}, kCoarseForm{255.0f, 8};

inline LevelForm high_form(const uint8_t* is_fine, int group) {
  return is_fine[group] != 0 ? kFineForm : kCoarseForm;
}

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

// level_sum: of the levels before they are shifted.
inline GroupLevels group_levels(const GroupRange& range, int32_t level_sum, const LevelForm& form) {
  const float scale = form.shift == 0 ? range.scale : range.scale / 256.0f;
  return {scale, range.offset, range.scale * static_cast<float>(level_sum) + 32.0f * range.offset};
}

inline void finish_record(Int8Record& record, const GroupRange& range, int32_t level_sum, const LevelForm& form) {
  record.group = group_levels(range, level_sum, form);
  record.minus_eights = -8 * level_sum;
}

inline void finish_record(Int16Record& record, const GroupRange& range, int32_t level_sum, const LevelForm& form) {
  record.group = group_levels(range, level_sum, form);
  record.is_fine = form.shift == 0 ? 1 : 0;
}

}  // namespace
}  // namespace tampu::detail
