// The memory of the paged KV cache: one allocation of halves or of scaled bytes, addressed by (layer, block, KV head). Block ids come from
// the scheduler; who owns which block is not known here.
#pragma once
#include <cstddef>
#include <cstdint>

#include "tampu/kernels.h"

namespace tampu {

class KvCache {
 public:
  // Throws std::bad_alloc when the address space cannot be had. Pages are touched as they are first written.
  KvCache(KvType type, int num_layers, int num_blocks, int block_size, int num_kv_heads, int head_dim);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  static size_t bytes_per_block(KvType type, int num_layers, int block_size, int num_kv_heads, int head_dim);
  size_t bytes() const { return bytes_; }
  int num_blocks() const { return num_blocks_; }
  int block_size() const { return first_.block_size; }

  KvHead head(int layer, int kv_head) const {
    KvHead head = first_;
    head.base += static_cast<size_t>(layer) * layer_bytes_ + static_cast<size_t>(kv_head) * head_bytes_;
    return head;
  }

  // Fills everything with one 16-bit pattern: tests use one that is NaN as a half and twice over as a float, so that
  // a read of a slot nobody wrote shows.
  void fill(uint16_t pattern);

 private:
  const int num_blocks_;
  const size_t head_bytes_, layer_bytes_, bytes_;
  KvHead first_;  // of layer 0
};

}  // namespace tampu
