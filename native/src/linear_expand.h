// Widening of packed panels into the tiles that the kernels multiply. Included once per instruction set, in that
// file's own flags: everything here has internal linkage, and the loops over 32 columns are written to be vectorised.
#pragma once
#include <cstdint>

#include "linear_layout.h"

namespace tampu::detail {
namespace {

constexpr int kWordBytes = 4 * kPanel;   // four values of K of every column

inline const uint16_t* as_halves(const uint8_t* p) { return reinterpret_cast<const uint16_t*>(p); }
inline const uint32_t* as_words(const uint8_t* p) { return reinterpret_cast<const uint32_t*>(p); }
inline int8_t* bytes_of(int8_t (*w)[kPanel][4]) { return &w[0][0][0]; }

inline void split_nibbles(const uint8_t* __restrict packed, int num_words, int offset, int8_t* __restrict low,
                          int8_t* __restrict high) {
  for (int i = 0; i < num_words * kWordBytes; ++i) {
    low[i] = static_cast<int8_t>((packed[i] & 15) - offset);
    high[i] = static_cast<int8_t>((packed[i] >> 4) - offset);
  }
}

// Set::column_sums(const int8_t* w, int num_words, int32_t* sums): per column, over num_words x 4 values.
template <class Set>
inline void set_scaled_sum(GroupKind kind, WeightGroup& g) {
  int32_t sums[kPanel], more[kPanel];
  if (kind == GroupKind::Halves) {
    Set::column_sums(bytes_of(g.w), 4, sums);
    Set::column_sums(bytes_of(g.w + 4), 4, more);
    for (int c = 0; c < kPanel; ++c)
      g.scaled_sum[c] = g.scale[c] * static_cast<float>(sums[c]) + g.extra[c] * static_cast<float>(more[c]);
  } else {
    Set::column_sums(bytes_of(g.w), 8, sums);
    for (int c = 0; c < kPanel; ++c) g.scaled_sum[c] = g.scale[c] * static_cast<float>(sums[c]);
  }
}

// Scales and minima of sub-block j (0..7) of Q4_K and Q5_K, from the three packed words per column.
inline void k_scales(const uint32_t* words, int j, const float* d, const float* dmin, WeightGroup& out) {
  constexpr uint32_t kLow4 = 0x0f0f0f0fu, kLow6 = 0x3f3f3f3fu, kLow2 = 0x03030303u;
  const int shift = 8 * (j % 4);
  for (int c = 0; c < kPanel; ++c) {
    const uint32_t u0 = words[c], u1 = words[kPanel + c], u2 = words[2 * kPanel + c];
    const uint32_t s = j < 4 ? u0 & kLow6 : (u2 & kLow4) | (((u0 >> 6) & kLow2) << 4);
    const uint32_t m = j < 4 ? u1 & kLow6 : ((u2 >> 4) & kLow4) | (((u1 >> 6) & kLow2) << 4);
    out.scale[c] = d[c] * static_cast<float>(static_cast<int32_t>((s >> shift) & 0xffu));
    out.extra[c] = -(dmin[c] * static_cast<float>(static_cast<int32_t>((m >> shift) & 0xffu)));
  }
}

// Sub-blocks j and j + 1 of Q5_K: 32 values of K each, whose fifth bits are bits j and j + 1 of `high`.
template <int j>
inline void join_five_bits(const uint8_t* __restrict low, const uint8_t* __restrict high, int8_t* __restrict first,
                           int8_t* __restrict second) {
  for (int i = 0; i < 8 * kWordBytes; ++i) {
    first[i] = static_cast<int8_t>((low[i] & 15) | (((high[i] >> j) & 1) << 4));
    second[i] = static_cast<int8_t>((low[i] >> 4) | (((high[i] >> (j + 1)) & 1) << 4));
  }
}

// Set::halves(const uint16_t*, float*): 32 half-precision values to float.
template <class Set>
inline void expand_k45(const uint8_t* block, bool has_high_bits, WeightGroup* out) {
  float d[kPanel], dmin[kPanel];
  Set::halves(as_halves(block), d);
  Set::halves(as_halves(block) + kPanel, dmin);
  const uint8_t* scales = block + kPanel * 4;
  const uint8_t* high = scales + 3 * kWordBytes;
  const uint8_t* quants = has_high_bits ? high + 8 * kWordBytes : high;
  const auto low = [&](int j) { return quants + j * 4 * kWordBytes; };
  const auto w = [&](int j) { return bytes_of(out[j].w); };
  for (int j = 0; j < 8; ++j) k_scales(as_words(scales), j, d, dmin, out[j]);
  if (has_high_bits) {
    join_five_bits<0>(low(0), high, w(0), w(1));
    join_five_bits<2>(low(2), high, w(2), w(3));
    join_five_bits<4>(low(4), high, w(4), w(5));
    join_five_bits<6>(low(6), high, w(6), w(7));
  } else {
    for (int j = 0; j < 8; j += 2) split_nibbles(low(j), 8, 0, w(j), w(j + 1));
  }
}

// Half a block of Q6_K, 128 values of K: low halves of two words, four times two high bits.
inline void join_six_bits(const uint8_t* __restrict low, const uint8_t* __restrict high, int8_t* __restrict w0,
                          int8_t* __restrict w1, int8_t* __restrict w2, int8_t* __restrict w3) {
  const uint8_t* __restrict more = low + 8 * kWordBytes;
  for (int i = 0; i < 8 * kWordBytes; ++i) {
    w0[i] = static_cast<int8_t>(((low[i] & 15) | ((high[i] & 3) << 4)) - 32);
    w1[i] = static_cast<int8_t>(((more[i] & 15) | (((high[i] >> 2) & 3) << 4)) - 32);
    w2[i] = static_cast<int8_t>(((low[i] >> 4) | (((high[i] >> 4) & 3) << 4)) - 32);
    w3[i] = static_cast<int8_t>(((more[i] >> 4) | ((high[i] >> 6) << 4)) - 32);
  }
}

template <class Set>
inline void expand_k6(const uint8_t* block, WeightGroup* out) {
  float d[kPanel];
  Set::halves(as_halves(block), d);
  const uint8_t* low = block + kPanel * 2;
  const uint8_t* high = low + 32 * kWordBytes;
  const uint32_t* scales = as_words(high + 16 * kWordBytes);
  for (int half = 0; half < 2; ++half) {
    WeightGroup* g = out + half * 4;
    join_six_bits(low + half * 16 * kWordBytes, high + half * 8 * kWordBytes, bytes_of(g[0].w), bytes_of(g[1].w),
                  bytes_of(g[2].w), bytes_of(g[3].w));
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
inline void expand_groups(QType qtype, const uint8_t* panel, int group_begin, int num_groups, WeightGroup* out) {
  const BlockLayout& layout = block_layout(qtype);
  const int groups_per_block = layout.k / kGroup;
  const size_t step = layout.packed_bytes();
  const uint8_t* block = panel + size_t(group_begin / groups_per_block) * step;
  for (int g = 0; g < num_groups; g += groups_per_block, block += step) {
    WeightGroup& group = out[g];
    switch (qtype) {
      case QType::Q4_0:
        Set::halves(as_halves(block), group.scale);
        split_nibbles(block + kPanel * 2, 4, 8, bytes_of(group.w), bytes_of(group.w + 4));
        break;
      case QType::Q4_1:
        Set::halves(as_halves(block), group.scale);
        Set::halves(as_halves(block) + kPanel, group.extra);
        split_nibbles(block + kPanel * 4, 4, 0, bytes_of(group.w), bytes_of(group.w + 4));
        break;
      case QType::Q8_0:
        Set::halves(as_halves(block), group.scale);
        __builtin_memcpy(group.w, block + kPanel * 2, sizeof(group.w));
        break;
      case QType::Q4_K: expand_k45<Set>(block, false, out + g); break;
      case QType::Q5_K: expand_k45<Set>(block, true, out + g); break;
      case QType::Q6_K: expand_k6<Set>(block, out + g); break;
      default: break;
    }
    for (int i = 0; i < groups_per_block; ++i) set_scaled_sum<Set>(group_kind(qtype), out[g + i]);
  }
}

// One group as float32 values, out[k][c]: the same roundings as the format's definition.
inline void group_to_float(GroupKind kind, const WeightGroup& group, float (*__restrict out)[kPanel]) {
  for (int k = 0; k < kGroup; ++k) {
    const auto* words = reinterpret_cast<const uint32_t*>(group.w[k / 4]);
    const int shift = 24 - 8 * (k % 4);
    const float* scale = kind == GroupKind::Halves && k >= 16 ? group.extra : group.scale;
    for (int c = 0; c < kPanel; ++c)
      out[k][c] = scale[c] * static_cast<float>(static_cast<int32_t>(words[c] << shift) >> 24);
    if (!has_minimum(kind)) continue;
    for (int c = 0; c < kPanel; ++c) out[k][c] += group.extra[c];
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
