// Paged attention of one step: which (request, query tile, KV head, key partitions) are computed, by whom, and how
// partial results are merged. Bits do not depend on any of these choices. Knows no weights.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "tampu/kernels.h"
#include "tampu/kv_cache.h"

namespace tampu {

// Consecutive tokens of one request in this step.
struct Run {
  int row_begin;               // first row of the step's batch
  int num_tokens;
  int position;                // of the first token
  const int32_t* block_table;  // covers position + num_tokens
  bool is_sampled;
};

class Attention {
 public:
  Attention(const Kernels& kernels, int num_heads, int num_kv_heads, int head_dim, int num_threads);

  // Cuts a step into units of work, the same for every layer. Not thread-safe.
  void plan(const std::vector<Run>& runs);

  int num_units() const { return static_cast<int>(units_.size()); }

  // One unit of one layer; units may run in any order and side by side, `worker` says whose scratch is used.
  // qkv: one row per token, its first num_heads * head_dim values are queries, rotated and scaled by
  // log2(e)/sqrt(head_dim). out: [rows][num_heads * head_dim].
  void run(int unit, const KvCache& cache, int layer, const float* qkv, int64_t qkv_stride, float* out, int worker);

 private:
  struct Item {  // rows of one request that share a KV head
    Run run;
    int token_begin, num_tokens, kv_head, num_partitions;
    int num_units;
    size_t partials;  // offset in partials_, when num_units > 1
  };
  struct Unit {
    int item, partition_begin, partition_end;
    int64_t cost;
  };
  struct Scratch {
    std::vector<float> q, q_scales, scores, keys, values, state_values, part_values, maxima, sums, part_maxima,
        part_sums;
    std::vector<int8_t> q_bytes;
    std::vector<int32_t> q_offsets, limits;
    QueryRows query_rows() { return {q.data(), q_bytes.data(), q_scales.data(), q_offsets.data()}; }
  };

  void gather(const Item& item, KvType type, const float* qkv, int64_t qkv_stride, Scratch& scratch) const;
  void finish(const Item& item, const AttentionState& state, float* out) const;
  AttentionState partial(const Item& item, int partition);
  size_t partial_floats(const Item& item) const;

  const Kernels& kernels_;
  const int num_heads_, num_kv_heads_, group_, head_dim_, padded_, num_threads_, max_rows_;
  std::vector<Item> items_;
  std::vector<Unit> units_;
  std::vector<float> partials_;
  std::unique_ptr<std::atomic<int>[]> units_left_;
  size_t units_left_size_ = 0;
  std::vector<Scratch> scratch_;
};

}  // namespace tampu
