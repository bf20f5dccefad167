// The memory of the paged KV cache: one allocation, halves, addressed by (layer, block, KV head). Block ids come from
// the scheduler; who owns which block is not known here.
#pragma once
#include <cstddef>
#include <cstdint>

#include "tampu/kernels.h"

namespace tampu {

class KvCache {
 public:
  // Throws std::bad_alloc when the address space cannot be had. Pages are touched as they are first written.
  KvCache(int num_layers, int num_blocks, int block_size, int num_kv_heads, int head_dim);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  static size_t bytes_per_block(int num_layers, int block_size, int num_kv_heads, int head_dim);
  size_t bytes() const { return bytes_; }
  int num_blocks() const { return num_blocks_; }
  int block_size() const { return block_size_; }

  KvHead head(int layer, int kv_head) const {
    return {data_ + static_cast<size_t>(layer) * layer_halves_ + static_cast<size_t>(kv_head) * head_halves_,
            block_halves_, block_size_, head_dim_, padded_head_dim_};
  }
  // Where the key of `row` in a block begins (its elements are block_size apart), and its value row.
  uint16_t* key_column(const KvHead& head, int32_t block, int row) const {
    return const_cast<uint16_t*>(head.base) + static_cast<size_t>(block) * block_halves_ + row;
  }
  uint16_t* value_row(const KvHead& head, int32_t block, int row) const {
    return const_cast<uint16_t*>(head.base) + static_cast<size_t>(block) * block_halves_ +
           static_cast<size_t>(head_dim_) * static_cast<size_t>(block_size_) +
           static_cast<size_t>(row) * static_cast<size_t>(padded_head_dim_);
  }

  // Fills everything with one 16-bit pattern: tests use NaN, so that a read of a slot nobody wrote shows.
  void fill(uint16_t pattern);

 private:
  int num_blocks_, block_size_, head_dim_, padded_head_dim_;
  size_t head_halves_, block_halves_, layer_halves_, bytes_;
  uint16_t* data_;
};

}  // namespace tampu
