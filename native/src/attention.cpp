// Plans and runs paged attention; see attention.h.
#include "tampu/attention.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace tampu {
namespace {

constexpr int kTileRows = 48;               // query rows that share one pass over the keys
constexpr int kUnitsPerThread = 4;          // enough that one slow thread does not hold up the others
constexpr size_t kMaxPartialFloats = 16u << 20;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

int divide_up(int a, int b) { return (a + b - 1) / b; }

}  // namespace

Attention::Attention(const Kernels& kernels, int num_heads, int num_kv_heads, int head_dim, int num_threads)
    : kernels_(kernels),
      num_heads_(num_heads),
      num_kv_heads_(num_kv_heads),
      group_(num_heads / num_kv_heads),
      head_dim_(head_dim),
      padded_(divide_up(head_dim, 16) * 16),
      num_threads_(num_threads),
      max_rows_(std::max(kTileRows, num_heads / num_kv_heads)),
      scratch_(static_cast<size_t>(num_threads)) {
  const auto rows = static_cast<size_t>(max_rows_), width = static_cast<size_t>(padded_);
  for (Scratch& s : scratch_) {
    s.q.assign(rows * width, 0.0f);
    s.q_bytes.resize(rows * width);
    s.q_scales.resize(rows);
    s.q_offsets.resize(rows);
    s.scores.resize(rows * kScoreStride);
    s.keys.resize(64 * static_cast<size_t>(head_dim));
    s.values.resize(64 * width);
    s.state_values.resize(rows * width);
    s.part_values.resize(rows * width);
    for (auto* v : {&s.maxima, &s.sums, &s.part_maxima, &s.part_sums}) v->resize(rows);
    s.limits.resize(rows);
  }
}

size_t Attention::partial_floats(const Item& item) const {
  return static_cast<size_t>(item.num_tokens * group_) * static_cast<size_t>(padded_ + 2);
}

void Attention::plan(const std::vector<Run>& runs) {
  items_.clear();
  units_.clear();
  const int tile_tokens = std::max(1, kTileRows / group_);
  int64_t total = 0;
  for (const Run& run : runs)
    for (int begin = 0; begin < run.num_tokens; begin += tile_tokens) {
      const int count = std::min(tile_tokens, run.num_tokens - begin);
      const int partitions = divide_up(run.position + begin + count, kPartitionKeys);
      for (int head = 0; head < num_kv_heads_; ++head)
        items_.push_back({run, begin, count, head, partitions, 1, 0});
      total += static_cast<int64_t>(partitions) * count * num_kv_heads_;
    }
  const bool may_split = num_threads_ > 1 && items_.size() < static_cast<size_t>(kUnitsPerThread * num_threads_);
  const int64_t wanted_cost = std::max<int64_t>(1, total / (kUnitsPerThread * num_threads_));
  size_t used = 0;
  for (size_t i = 0; i < items_.size(); ++i) {
    Item& item = items_[i];
    int per_unit = item.num_partitions;
    const size_t floats = partial_floats(item) * static_cast<size_t>(item.num_partitions);
    if (may_split && used + floats <= kMaxPartialFloats)
      per_unit = static_cast<int>(std::clamp<int64_t>(wanted_cost / item.num_tokens, 1, item.num_partitions));
    item.num_units = divide_up(item.num_partitions, per_unit);
    if (item.num_units > 1) {
      item.partials = used;
      used += floats;
    }
    for (int p = 0; p < item.num_partitions; p += per_unit) {
      const int end = std::min(p + per_unit, item.num_partitions);
      units_.push_back({static_cast<int>(i), p, end, static_cast<int64_t>(end - p) * item.num_tokens});
    }
  }
  if (partials_.size() < used) partials_.resize(used);
  if (units_left_size_ < items_.size()) {
    units_left_size_ = items_.size();
    units_left_ = std::make_unique<std::atomic<int>[]>(units_left_size_);
  }
  for (size_t i = 0; i < items_.size(); ++i) units_left_[i].store(items_[i].num_units, std::memory_order_relaxed);
  std::stable_sort(units_.begin(), units_.end(), [](const Unit& a, const Unit& b) { return a.cost > b.cost; });
}

void Attention::gather(const Item& item, KvType type, const float* qkv, int64_t qkv_stride, Scratch& s) const {
  size_t r = 0;
  const auto width = static_cast<size_t>(padded_);
  for (int t = 0; t < item.num_tokens; ++t) {
    const float* row = qkv + (item.run.row_begin + item.token_begin + t) * qkv_stride;
    for (int h = 0; h < group_; ++h, ++r) {
      const float* q = row + (item.kv_head * group_ + h) * head_dim_;
      if (type == KvType::Q8)
        kernels_.quantize_query(q, head_dim_, padded_, s.q_bytes.data() + r * width, &s.q_scales[r], &s.q_offsets[r]);
      else
        std::memcpy(s.q.data() + r * width, q, sizeof(float) * static_cast<size_t>(head_dim_));
      s.limits[r] = item.run.position + item.token_begin + t + 1;
    }
  }
}

void Attention::finish(const Item& item, const AttentionState& state, float* out) const {
  int r = 0;
  for (int t = 0; t < item.num_tokens; ++t) {
    float* row = out + static_cast<int64_t>(item.run.row_begin + item.token_begin + t) * num_heads_ * head_dim_;
    for (int h = 0; h < group_; ++h, ++r)
      kernels_.finish_row(state.values + static_cast<ptrdiff_t>(r) * padded_, state.sum[r], head_dim_,
                          row + (item.kv_head * group_ + h) * head_dim_);
  }
}

AttentionState Attention::partial(const Item& item, int partition) {
  const int rows = item.num_tokens * group_;
  float* begin = partials_.data() + item.partials + static_cast<size_t>(partition) * partial_floats(item);
  return {begin, begin + static_cast<ptrdiff_t>(rows) * padded_, begin + static_cast<ptrdiff_t>(rows) * (padded_ + 1)};
}

void Attention::run(int unit_index, const KvCache& cache, int layer, const float* qkv, int64_t qkv_stride, float* out,
                    int worker) {
  Scratch& s = scratch_[static_cast<size_t>(worker)];
  const AttentionScratch kernel_scratch{s.scores.data(), s.keys.data(), s.values.data()};
  const Unit& unit = units_[static_cast<size_t>(unit_index)];
  const Item& item = items_[static_cast<size_t>(unit.item)];
  const int rows = item.num_tokens * group_;
  const int num_keys = item.run.position + item.token_begin + item.num_tokens;
  const KvHead kv = cache.head(layer, item.kv_head);
  const QueryRows q = s.query_rows();
  gather(item, kv.type, qkv, qkv_stride, s);
  const auto attend = [&](int partition, const AttentionState& to) {
    const int begin = partition * kPartitionKeys, end = std::min(begin + kPartitionKeys, num_keys);
    kernels_.attend_partition(q, rows, s.limits.data(), kv, item.run.block_table, begin, end,
                              partition + 1 < unit.partition_end ? num_keys : end, kernel_scratch, to);
  };
  if (item.num_units == 1) {
    const AttentionState state{s.state_values.data(), s.maxima.data(), s.sums.data()};
    const AttentionState part{s.part_values.data(), s.part_maxima.data(), s.part_sums.data()};
    attend(0, state);
    for (int p = 1; p < item.num_partitions; ++p) {
      attend(p, part);
      kernels_.merge_partition(state, part, rows, padded_);
    }
    finish(item, state, out);
    return;
  }
  for (int p = unit.partition_begin; p < unit.partition_end; ++p) attend(p, partial(item, p));
  auto& left = units_left_[static_cast<size_t>(unit.item)];
  if (left.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  // The last to finish merges, in ascending order whoever computed what.
  left.store(item.num_units, std::memory_order_relaxed);
  const AttentionState first = partial(item, 0);
  for (int p = 1; p < item.num_partitions; ++p) kernels_.merge_partition(first, partial(item, p), rows, padded_);
  finish(item, first, out);
}

}  // namespace tampu
