// Widening of packed panels into the tiles that the kernels multiply. Included once per instruction set, in that
// file's own flags: everything here has internal linkage, and the loops over 32 columns are written to be vectorised.
#pragma once
#include <cstdint>

#include "linear_layout.h"

namespace tampu::detail {
namespace {

constexpr uint32_t kNibbles = 0x0f0f0f0fu;

inline void split_nibbles(const uint32_t* packed, int num_words, uint32_t (*low)[kPanel], uint32_t (*high)[kPanel]) {
  for (int w = 0; w < num_words; ++w) {
    for (int c = 0; c < kPanel; ++c) {
      const uint32_t v = packed[w * kPanel + c];
      low[w][c] = v & kNibbles;
      high[w][c] = (v >> 4) & kNibbles;
    }
  }
}

// Scales and minima of sub-block j (0..7) of Q4_K and Q5_K, from the three packed words per column.
inline void k_scales(const uint32_t* words, int j, const float* d, const float* dmin, Int8Group& out) {
  for (int c = 0; c < kPanel; ++c) {
    const uint32_t u0 = words[c], u1 = words[kPanel + c], u2 = words[2 * kPanel + c];
    const uint32_t s = j < 4 ? u0 & 0x3f3f3f3fu : (u2 & kNibbles) | (((u0 >> 6) & 0x03030303u) << 4);
    const uint32_t m = j < 4 ? u1 & 0x3f3f3f3fu : ((u2 >> 4) & kNibbles) | (((u1 >> 6) & 0x03030303u) << 4);
    const int shift = 8 * (j % 4);
    out.scale[c] = d[c] * static_cast<float>(static_cast<int32_t>((s >> shift) & 0xffu));
    out.extra[c] = -(dmin[c] * static_cast<float>(static_cast<int32_t>((m >> shift) & 0xffu)));
  }
}

// Set::halves(const uint16_t*, float*): 32 half-precision values to float.
template <class Set>
inline void expand_k45(const uint8_t* block, bool has_high_bits, Int8Group* out) {
  float d[kPanel], dmin[kPanel];
  Set::halves(reinterpret_cast<const uint16_t*>(block), d);
  Set::halves(reinterpret_cast<const uint16_t*>(block) + kPanel, dmin);
  const auto* words = reinterpret_cast<const uint32_t*>(block + kPanel * 4);
  for (int j = 0; j < 8; ++j) k_scales(words, j, d, dmin, out[j]);
  const uint32_t* high = words + 3 * kPanel;
  const uint32_t* quants = has_high_bits ? high + 8 * kPanel : high;
  for (int j = 0; j < 8; j += 2) split_nibbles(quants + j * 4 * kPanel, 8, out[j].words, out[j + 1].words);
  if (!has_high_bits) return;
  for (int j = 0; j < 8; ++j) {
    for (int w = 0; w < 8; ++w) {
      for (int c = 0; c < kPanel; ++c) out[j].words[w][c] |= ((high[w * kPanel + c] >> j) & 0x01010101u) << 4;
    }
  }
}

template <class Set>
inline void expand_k6(const uint8_t* block, Int8Group* out) {
  float d[kPanel];
  Set::halves(reinterpret_cast<const uint16_t*>(block), d);
  const auto* low = reinterpret_cast<const uint32_t*>(block + kPanel * 2);
  const uint32_t* high = low + 32 * kPanel;
  const uint32_t* scales = high + 16 * kPanel;
  for (int half = 0; half < 2; ++half) {
    Int8Group* g = out + half * 4;
    for (int j = 0; j < 2; ++j) split_nibbles(low + (half * 16 + j * 8) * kPanel, 8, g[j].words, g[j + 2].words);
    for (int j = 0; j < 4; ++j) {
      for (int w = 0; w < 8; ++w) {
        const uint32_t* h = high + (half * 8 + w) * kPanel;
        for (int c = 0; c < kPanel; ++c) g[j].words[w][c] |= ((h[c] >> (2 * j)) & 0x03030303u) << 4;
      }
    }
  }
  for (int j = 0; j < 8; ++j) {
    const uint32_t* s = scales + (j / 2) * kPanel;
    const int first = 24 - 16 * (j % 2), second = 16 - 16 * (j % 2);
    for (int c = 0; c < kPanel; ++c) {
      out[j].scale[c] = d[c] * static_cast<float>(static_cast<int32_t>(s[c] << first) >> 24);
      out[j].extra[c] = d[c] * static_cast<float>(static_cast<int32_t>(s[c] << second) >> 24);
    }
  }
}

// Groups [group_begin, group_begin + num_groups) of a panel. For the K-quants both are multiples of 8.
template <class Set>
inline void expand_groups(QType qtype, const uint8_t* panel, int group_begin, int num_groups, Int8Group* out) {
  const BlockLayout& layout = block_layout(qtype);
  const int groups_per_block = layout.k / kGroup;
  const size_t step = layout.packed_bytes();
  const uint8_t* block = panel + size_t(group_begin / groups_per_block) * step;
  for (int g = 0; g < num_groups; g += groups_per_block, block += step) {
    Int8Group& group = out[g];
    switch (qtype) {
      case QType::Q4_0:
        Set::halves(reinterpret_cast<const uint16_t*>(block), group.scale);
        split_nibbles(reinterpret_cast<const uint32_t*>(block + kPanel * 2), 4, group.words, group.words + 4);
        break;
      case QType::Q4_1:
        Set::halves(reinterpret_cast<const uint16_t*>(block), group.scale);
        Set::halves(reinterpret_cast<const uint16_t*>(block) + kPanel, group.extra);
        split_nibbles(reinterpret_cast<const uint32_t*>(block + kPanel * 4), 4, group.words, group.words + 4);
        break;
      case QType::Q8_0: {
        Set::halves(reinterpret_cast<const uint16_t*>(block), group.scale);
        const auto* words = reinterpret_cast<const uint32_t*>(block + kPanel * 2);
        for (int w = 0; w < 8; ++w) {
          for (int c = 0; c < kPanel; ++c) group.words[w][c] = words[w * kPanel + c];
        }
        break;
      }
      case QType::Q4_K: expand_k45<Set>(block, false, out + g); break;
      case QType::Q5_K: expand_k45<Set>(block, true, out + g); break;
      case QType::Q6_K: expand_k6<Set>(block, out + g); break;
      default: break;
    }
  }
}

// One group as float32 values, out[k][c]: the same roundings as the format's definition.
inline void group_to_float(GroupKind kind, const Int8Group& group, float (*out)[kPanel]) {
  const int offset = kind == GroupKind::Offset8 ? 8 : kind == GroupKind::Offset128 ? 128 : kind == GroupKind::Halves ? 32 : 0;
  for (int k = 0; k < kGroup; ++k) {
    const uint32_t* words = group.words[k / 4];
    const int shift = 8 * (k % 4);
    const float* scale = kind == GroupKind::Halves && k >= 16 ? group.extra : group.scale;
    if (kind == GroupKind::Minimum) {
      for (int c = 0; c < kPanel; ++c)
        out[k][c] = scale[c] * static_cast<float>(static_cast<int32_t>((words[c] >> shift) & 0xffu)) + group.extra[c];
    } else {
      for (int c = 0; c < kPanel; ++c)
        out[k][c] = scale[c] * static_cast<float>(static_cast<int32_t>((words[c] >> shift) & 0xffu) - offset);
    }
  }
}

// Values [k_begin, k_begin + num_k) of a panel of 16- or 32-bit floats.
template <class Set>
inline void expand_floats(QType qtype, const uint8_t* panel, int k_begin, int num_k, float (*out)[kPanel]) {
  if (qtype == QType::F32) {
    const auto* source = reinterpret_cast<const float*>(panel) + size_t(k_begin) * kPanel;
    for (int i = 0; i < num_k; ++i) {
      for (int c = 0; c < kPanel; ++c) out[i][c] = source[i * kPanel + c];
    }
    return;
  }
  const auto* source = reinterpret_cast<const uint16_t*>(panel) + size_t(k_begin) * kPanel;
  for (int i = 0; i < num_k; ++i) {
    if (qtype == QType::F16) {
      Set::halves(source + i * kPanel, out[i]);
    } else {
      for (int c = 0; c < kPanel; ++c)
        out[i][c] = __builtin_bit_cast(float, static_cast<uint32_t>(source[i * kPanel + c]) << 16);
    }
  }
}

}  // namespace
}  // namespace tampu::detail
