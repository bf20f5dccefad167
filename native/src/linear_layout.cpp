// Packing of weight rows into panels and the formats' own definition of every stored value.
#include "linear_layout.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace tampu::detail {
namespace {

constexpr BlockLayout kLayouts[] = {
    // name, k, bytes, halves, offsets, words, offset
    {"F32", 1, 4, 0, {0, 0}, 1, 0},
    {"F16", 1, 2, 1, {0, 0}, 0, 0},
    {"BF16", 1, 2, 1, {0, 0}, 0, 0},
    {"Q8_0", 32, 34, 1, {0, 0}, 8, 2},
    {"Q4_0", 32, 18, 1, {0, 0}, 4, 2},
    {"Q4_1", 32, 20, 2, {0, 2}, 4, 4},
    {"Q4_K", 256, 144, 2, {0, 2}, 35, 4},      // words: scales 3, quants 32
    {"Q5_K", 256, 176, 2, {0, 2}, 43, 4},      // words: scales 3, high bits 8, quants 32
    {"Q6_K", 256, 210, 1, {208, 0}, 52, 0},    // words: low bits 32, high bits 16, scales 4
};

uint16_t load16(const uint8_t* p) {
  uint16_t v;
  std::memcpy(&v, p, 2);
  return v;
}

uint32_t load32(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}

// Six-bit scales and minima of Q4_K and Q5_K, eight of each in twelve bytes.
void unpack_scales(const uint8_t* s, uint8_t* scale, uint8_t* minimum) {
  for (int j = 0; j < 4; ++j) {
    scale[j] = s[j] & 63;
    minimum[j] = s[j + 4] & 63;
    scale[j + 4] = static_cast<uint8_t>((s[j + 8] & 15) | ((s[j] >> 6) << 4));
    minimum[j + 4] = static_cast<uint8_t>((s[j + 8] >> 4) | ((s[j + 4] >> 6) << 4));
  }
}

void dequantize_k45(const uint8_t* block, bool has_high_bits, float* out) {
  const float d = half_to_float(load16(block)), dmin = half_to_float(load16(block + 2));
  uint8_t scale[8], minimum[8];
  unpack_scales(block + 4, scale, minimum);
  const uint8_t* high = block + 16;
  const uint8_t* quants = has_high_bits ? block + 48 : block + 16;
  for (int j = 0; j < 8; ++j) {
    const float s = d * scale[j], m = dmin * minimum[j];
    for (int l = 0; l < 32; ++l) {
      const uint8_t byte = quants[(j / 2) * 32 + l];
      int q = (j % 2) ? byte >> 4 : byte & 15;
      if (has_high_bits) q |= ((high[l] >> j) & 1) << 4;
      out[j * 32 + l] = s * static_cast<float>(q) - m;
    }
  }
}

void dequantize_k6(const uint8_t* block, float* out) {
  const float d = half_to_float(load16(block + 208));
  const auto* scales = reinterpret_cast<const int8_t*>(block + 192);
  for (int j = 0; j < 8; ++j) {
    for (int l = 0; l < 32; ++l) {
      const uint8_t low = block[(j / 4) * 64 + (j % 2) * 32 + l];
      const uint8_t high = block[128 + (j / 4) * 32 + l];
      const int q = ((j % 4 < 2 ? low & 15 : low >> 4) | (((high >> (2 * (j % 4))) & 3) << 4)) - 32;
      out[j * 32 + l] = (d * static_cast<float>(scales[j * 2 + l / 16])) * static_cast<float>(q);
    }
  }
}

void dequantize_block(QType qtype, const uint8_t* block, float* out) {
  switch (qtype) {
    case QType::F32: std::memcpy(out, block, 4); break;
    case QType::F16: out[0] = half_to_float(load16(block)); break;
    case QType::BF16: out[0] = std::bit_cast<float>(static_cast<uint32_t>(load16(block)) << 16); break;
    case QType::Q8_0: {
      const float d = half_to_float(load16(block));
      for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(static_cast<int8_t>(block[2 + i])) * d;
      break;
    }
    case QType::Q4_0: {
      const float d = half_to_float(load16(block));
      for (int i = 0; i < 16; ++i) {
        out[i] = d * static_cast<float>((block[2 + i] & 15) - 8);
        out[16 + i] = d * static_cast<float>((block[2 + i] >> 4) - 8);
      }
      break;
    }
    case QType::Q4_1: {
      const float d = half_to_float(load16(block)), m = half_to_float(load16(block + 2));
      for (int i = 0; i < 16; ++i) {
        out[i] = d * static_cast<float>(block[4 + i] & 15) + m;
        out[16 + i] = d * static_cast<float>(block[4 + i] >> 4) + m;
      }
      break;
    }
    case QType::Q4_K: dequantize_k45(block, false, out); break;
    case QType::Q5_K: dequantize_k45(block, true, out); break;
    case QType::Q6_K: dequantize_k6(block, out); break;
  }
}

}  // namespace

const BlockLayout& block_layout(QType qtype) { return kLayouts[static_cast<int>(qtype)]; }

bool is_quantized(QType qtype) { return qtype != QType::F32 && qtype != QType::F16 && qtype != QType::BF16; }

GroupKind group_kind(QType qtype) {
  switch (qtype) {
    case QType::Q4_0: return GroupKind::Nibbles;
    case QType::Q8_0: return GroupKind::Bytes;
    case QType::Q5_K: return GroupKind::FiveBits;
    case QType::Q6_K: return GroupKind::Halves;
    default: return GroupKind::Minimum;
  }
}

float half_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 31u, mantissa = bits & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}

void pack_panel(QType qtype, const uint8_t* rows, size_t row_stride, int num_columns, int k, uint8_t* panel) {
  const BlockLayout& layout = block_layout(qtype);
  const int num_blocks = k / layout.k;
  for (int b = 0; b < num_blocks; ++b, panel += layout.packed_bytes()) {
    auto* halves = reinterpret_cast<uint16_t*>(panel);
    auto* words = reinterpret_cast<uint32_t*>(panel + size_t(kPanel) * 2 * layout.num_halves);
    for (int c = 0; c < kPanel; ++c) {
      if (c >= num_columns) {
        for (int h = 0; h < layout.num_halves; ++h) halves[h * kPanel + c] = 0;
        for (int w = 0; w < layout.num_words; ++w) words[w * kPanel + c] = 0;
        continue;
      }
      const uint8_t* block = rows + c * row_stride + size_t(b) * layout.bytes;
      for (int h = 0; h < layout.num_halves; ++h) halves[h * kPanel + c] = load16(block + layout.half_offset[h]);
      const uint8_t* source = block + layout.word_offset;
      for (int w = 0; w < layout.num_words; ++w) words[w * kPanel + c] = load32(source + 4 * w);
    }
  }
}

void unpack_column(QType qtype, const uint8_t* panel, int column, int k, uint8_t* row) {
  const BlockLayout& layout = block_layout(qtype);
  const int num_blocks = k / layout.k;
  for (int b = 0; b < num_blocks; ++b, panel += layout.packed_bytes(), row += layout.bytes) {
    const auto* halves = reinterpret_cast<const uint16_t*>(panel);
    const auto* words = reinterpret_cast<const uint32_t*>(panel + size_t(kPanel) * 2 * layout.num_halves);
    for (int h = 0; h < layout.num_halves; ++h)
      std::memcpy(row + layout.half_offset[h], halves + h * kPanel + column, 2);
    for (int w = 0; w < layout.num_words; ++w) {
      const uint32_t word = words[w * kPanel + column];
      std::memcpy(row + layout.word_offset + 4 * w, &word, 4);
    }
  }
}

void dequantize(QType qtype, const uint8_t* row, int k, float* out) {
  const BlockLayout& layout = block_layout(qtype);
  for (int b = 0; b < k / layout.k; ++b)
    dequantize_block(qtype, row + size_t(b) * layout.bytes, out + size_t(b) * layout.k);
}

}  // namespace tampu::detail
