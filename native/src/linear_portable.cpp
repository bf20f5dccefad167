// The kernels in plain C++: the definition that the others are tested against, and the path of every machine without
// a better one. Loops over the 32 columns of a panel are left to the compiler's vectoriser.
#include <cmath>
#include <cstring>

#include "linear_driver.h"
#include "linear_quantize.h"

namespace tampu::detail {
namespace {

float silu(float x) { return x / (1.0f + std::exp(-x)); }

void store_row(const TileOutput& output, int row, const float* sums) {
  if (!output.is_last) {
    std::memcpy(output.partial[row], sums, sizeof(float) * kPanel);
    return;
  }
  float* y = output.y + row * output.ldy;
  for (int c = 0; c < output.num_columns; ++c) {
    const float v = output.gate == nullptr ? sums[c] : silu(output.gate[row][c]) * sums[c];
    y[c] = output.add ? y[c] + v : v;
  }
}

void load_row(const TileOutput& output, int row, float* sums) {
  for (int c = 0; c < kPanel; ++c) sums[c] = output.is_first ? 0.0f : output.partial[row][c];
}

// sums[c] += words [begin, end) of a group's columns times the levels.
void dot(const WeightGroup& group, int begin, int end, const uint8_t* level, int32_t* sums) {
  for (int q = begin; q < end; ++q) {
    const int32_t a0 = level[4 * q], a1 = level[4 * q + 1], a2 = level[4 * q + 2], a3 = level[4 * q + 3];
    for (int c = 0; c < kPanel; ++c) {
      const int8_t* w = group.w[q][c];
      sums[c] += w[0] * a0 + w[1] * a1 + w[2] * a2 + w[3] * a3;
    }
  }
}

void accumulate(const WeightGroup& group, int begin, int end, const uint8_t* record, Precision precision,
                const float* weight_scale, float scale, float* out) {
  int32_t dots[kPanel] = {};
  dot(group, begin, end, record, dots);
  if (precision == Precision::High) {
    for (int c = 0; c < kPanel; ++c) dots[c] *= 256;
    dot(group, begin, end, record + kGroup, dots);
  }
  for (int c = 0; c < kPanel; ++c) out[c] += static_cast<float>(dots[c]) * (weight_scale[c] * scale);
}

void row_group(GroupKind kind, Precision precision, const WeightGroup& group, const uint8_t* record, float* out) {
  GroupLevels levels;
  std::memcpy(&levels, record + (precision == Precision::High ? 2 : 1) * kGroup, sizeof(levels));
  if (kind == GroupKind::Halves) {
    accumulate(group, 0, 4, record, precision, group.scale, levels.scale, out);
    accumulate(group, 4, 8, record, precision, group.extra, levels.scale, out);
  } else {
    accumulate(group, 0, 8, record, precision, group.scale, levels.scale, out);
  }
  for (int c = 0; c < kPanel; ++c) out[c] += group.scaled_sum[c] * levels.offset;
  if (!has_minimum(kind)) return;
  for (int c = 0; c < kPanel; ++c) out[c] += group.extra[c] * levels.sum;
}

struct Portable {
  static constexpr int kInt8Rows = 8, kFloatRows = 8, kPackedRows = 0;

  static void halves(const uint16_t* source, float* out) {
    for (int c = 0; c < kPanel; ++c) out[c] = half_to_float(source[c]);
  }

  static void column_sums(const int8_t* w, int num_words, int32_t* sums) {
    for (int c = 0; c < kPanel; ++c) sums[c] = 0;
    for (int q = 0; q < num_words; ++q, w += 4 * kPanel) {
      for (int c = 0; c < kPanel; ++c) sums[c] += w[4 * c] + w[4 * c + 1] + w[4 * c + 2] + w[4 * c + 3];
    }
  }

  static void expand(QType qtype, const uint8_t* panel, int group_begin, int num_groups, WeightGroup* out) {
    expand_groups<Portable>(qtype, panel, group_begin, num_groups, out);
  }

  static void int8_tile(GroupKind kind, Precision precision, int rows, const WeightGroup* groups, int num_groups,
                        const uint8_t* activations, size_t stride, const TileOutput& output, Ahead&) {
    const size_t record = precision == Precision::High ? sizeof(Int16Record) : sizeof(Int8Record);
    for (int r = 0; r < rows; ++r) {
      float sums[kPanel];
      load_row(output, r, sums);
      for (int g = 0; g < num_groups; ++g) {
        row_group(kind, precision, groups[g], activations + r * stride + g * record, sums);
      }
      store_row(output, r, sums);
    }
  }

  static void float_tile(int rows, const float (*weights)[kPanel], int num_k, const uint8_t* activations,
                         size_t stride, const TileOutput& output) {
    for (int r = 0; r < rows; ++r) {
      const auto* x = reinterpret_cast<const float*>(activations + r * stride);
      float sums[kPanel];
      load_row(output, r, sums);
      for (int k = 0; k < num_k; ++k) {
        for (int c = 0; c < kPanel; ++c) sums[c] += x[k] * weights[k][c];
      }
      store_row(output, r, sums);
    }
  }
};

// form(g): of group g's levels.
template <class Record, class Form, class Store>
void quantize_groups(const float* x, int k, const Form& form_of, Record* out, const Store& store) {
  for (int g = 0; g < k / kGroup; ++g, x += kGroup) {
    const LevelForm form = form_of(g);
    uint32_t magnitude = 0;
    float smallest = x[0], largest = x[0];
    for (int i = 0; i < kGroup; ++i) {
      const uint32_t bits = __builtin_bit_cast(uint32_t, x[i]) & 0x7fffffffu;
      magnitude = bits > magnitude ? bits : magnitude;
      smallest = x[i] < smallest ? x[i] : smallest;
      largest = x[i] > largest ? x[i] : largest;
    }
    const GroupRange range = group_range(magnitude, smallest, largest, form.largest);
    int32_t sum = 0;
    for (int i = 0; i < kGroup; ++i) {
      const float level = std::nearbyint((x[i] - range.offset) * range.inverse);
      const int32_t q = range.inverse == 0.0f ? 0 : static_cast<int32_t>(level < form.largest ? level : form.largest);
      store(out[g], i, q << form.shift);
      sum += q;
    }
    finish_record(out[g], range, sum, form);
  }
}

void quantize_normal(const float* x, int k, Int8Record* out) {
  quantize_groups(
      x, k, [](int) { return kNormalForm; }, out,
      [](Int8Record& record, int i, int32_t q) { record.level[i] = static_cast<uint8_t>(q); });
}

void quantize_high(const float* x, int k, const uint8_t* is_fine, Int16Record* out) {
  quantize_groups(
      x, k, [is_fine](int g) { return high_form(is_fine, g); }, out,
      [](Int16Record& record, int i, int32_t q) {
        record.high[i] = static_cast<uint8_t>(q >> 8);
        record.low[i] = static_cast<uint8_t>(q & 255);
      });
}

void silu_mul_row(const float* gate, const float* up, int n, float* out) {
  for (int i = 0; i < n; ++i) out[i] = silu(gate[i]) * up[i];
}

}  // namespace

const KernelTable& portable_kernels() {
  static constexpr KernelTable table{matmul_int8<Portable>, matmul_f32<Portable>, quantize_normal, quantize_high,
                                     silu_mul_row};
  return table;
}

}  // namespace tampu::detail
