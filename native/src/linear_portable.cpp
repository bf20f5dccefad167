// The kernels in plain C++: the definition that the others are tested against, and the path of every machine without
// a better one. Loops over the 32 columns of a panel are left to the compiler's vectoriser.
#include <cmath>
#include <cstring>

#include "linear_driver.h"
#include "linear_quantize.h"

namespace tampu::detail {
namespace {

void store_row(const TileOutput& output, int row, const float* sums) {
  if (!output.is_last) {
    std::memcpy(output.partial[row], sums, sizeof(float) * kPanel);
    return;
  }
  float* y = output.y + row * output.ldy;
  for (int c = 0; c < output.num_columns; ++c) y[c] = output.add ? y[c] + sums[c] : sums[c];
}

void load_row(const TileOutput& output, int row, float* sums) {
  for (int c = 0; c < kPanel; ++c) sums[c] = output.is_first ? 0.0f : output.partial[row][c];
}

// sums[c] += the dot product of 4 weights of each column with 4 activations.
void dot4(const uint32_t* words, const int8_t* q, int32_t* sums) {
  const auto* w = reinterpret_cast<const uint8_t*>(words);
  const int32_t q0 = q[0], q1 = q[1], q2 = q[2], q3 = q[3];
  for (int c = 0; c < kPanel; ++c) {
    sums[c] += w[4 * c] * q0 + w[4 * c + 1] * q1 + w[4 * c + 2] * q2 + w[4 * c + 3] * q3;
  }
}

void dot(const Int8Group& group, int begin, int end, const int8_t* q, int32_t* sums) {
  for (int w = begin; w < end; ++w) dot4(group.words[w], q + 4 * w, sums);
}

// Integer sums of words [begin, end) of one group, starting from `start`; two levels give 256 * high + low.
void group_dot(const Int8Group& group, int begin, int end, const uint8_t* record, Precision precision, int32_t start,
               int32_t* sums) {
  const auto* q = reinterpret_cast<const int8_t*>(record);
  std::memset(sums, 0, sizeof(int32_t) * kPanel);
  dot(group, begin, end, q, sums);
  if (precision == Precision::High) {
    for (int c = 0; c < kPanel; ++c) sums[c] *= 256;
    dot(group, begin, end, q + kGroup, sums);
  }
  for (int c = 0; c < kPanel; ++c) sums[c] += start;
}

void accumulate(const int32_t* sums, const float* weight_scale, float scale, float* out) {
  for (int c = 0; c < kPanel; ++c) out[c] += static_cast<float>(sums[c]) * (weight_scale[c] * scale);
}

void row_group(GroupKind kind, Precision precision, const Int8Group& group, const uint8_t* record, float* out) {
  GroupSums sums;
  std::memcpy(&sums, record + (precision == Precision::High ? 2 : 1) * kGroup, sizeof(sums));
  int32_t dots[kPanel];
  if (kind == GroupKind::Halves) {
    group_dot(group, 0, 4, record, precision, sums.minus32_low, dots);
    accumulate(dots, group.scale, sums.scale, out);
    group_dot(group, 4, 8, record, precision, 4 * sums.minus8 - sums.minus32_low, dots);
    accumulate(dots, group.extra, sums.scale, out);
    return;
  }
  const int32_t start = kind == GroupKind::Offset8 ? sums.minus8 : kind == GroupKind::Offset128 ? 16 * sums.minus8 : 0;
  group_dot(group, 0, 8, record, precision, start, dots);
  accumulate(dots, group.scale, sums.scale, out);
  if (kind == GroupKind::Minimum) {
    for (int c = 0; c < kPanel; ++c) out[c] += group.extra[c] * sums.scaled_sum;
  }
}

struct Portable {
  static constexpr int kInt8Rows = 8, kFloatRows = 8;

  static void halves(const uint16_t* source, float* out) {
    for (int c = 0; c < kPanel; ++c) out[c] = half_to_float(source[c]);
  }

  static void int8_tile(GroupKind kind, Precision precision, int rows, const Int8Group* groups, int num_groups,
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

template <class Record, class Quantize>
void quantize_groups(const float* x, int k, float levels, Record* out, const Quantize& quantize) {
  for (int g = 0; g < k / kGroup; ++g, x += kGroup) {
    uint32_t magnitude = 0;
    for (int i = 0; i < kGroup; ++i) {
      const uint32_t bits = __builtin_bit_cast(uint32_t, x[i]) & 0x7fffffffu;
      magnitude = bits > magnitude ? bits : magnitude;
    }
    const GroupScale scale = group_scale(magnitude, levels);
    int32_t sum = 0, low_sum = 0;
    for (int i = 0; i < kGroup; ++i) {
      const int32_t q = scale.inverse == 0.0f ? 0 : static_cast<int32_t>(std::nearbyint(x[i] * scale.inverse));
      quantize(out[g], i, q);
      sum += q;
      if (i < 16) low_sum += q;
    }
    set_sums(out[g].sums, scale.scale, sum, low_sum);
  }
}

void quantize_normal(const float* x, int k, Int8Record* out) {
  quantize_groups(x, k, kNormalLevels, out,
                  [](Int8Record& record, int i, int32_t q) { record.q[i] = static_cast<int8_t>(q); });
}

void quantize_high(const float* x, int k, Int16Record* out) {
  quantize_groups(x, k, kHighLevels, out, [](Int16Record& record, int i, int32_t q) {
    const int32_t high = (q + 128) >> 8;
    record.high[i] = static_cast<int8_t>(high);
    record.low[i] = static_cast<int8_t>(q - high * 256);
  });
}

void silu_mul_row(const float* gate, const float* up, int n, float* out) {
  for (int i = 0; i < n; ++i) out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

}  // namespace

const KernelTable& portable_kernels() {
  static constexpr KernelTable table{matmul_int8<Portable>, matmul_f32<Portable>, quantize_normal, quantize_high,
                                     silu_mul_row};
  return table;
}

}  // namespace tampu::detail
