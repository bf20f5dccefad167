// One anonymous mapping for the whole cache; see kv_cache.h.
#include "tampu/kv_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace tampu {
namespace {

int padded(int head_dim) { return (head_dim + 15) / 16 * 16; }

size_t halves_per_head(int block_size, int head_dim) {
  return static_cast<size_t>(block_size) * static_cast<size_t>(head_dim + padded(head_dim));
}

}  // namespace

size_t KvCache::bytes_per_block(int num_layers, int block_size, int num_kv_heads, int head_dim) {
  return sizeof(uint16_t) * static_cast<size_t>(num_layers) * static_cast<size_t>(num_kv_heads) *
         halves_per_head(block_size, head_dim);
}

KvCache::KvCache(int num_layers, int num_blocks, int block_size, int num_kv_heads, int head_dim)
    : num_blocks_(num_blocks),
      block_size_(block_size),
      head_dim_(head_dim),
      padded_head_dim_(padded(head_dim)),
      head_halves_(halves_per_head(block_size, head_dim)),
      block_halves_(head_halves_ * static_cast<size_t>(num_kv_heads)),
      layer_halves_(block_halves_ * static_cast<size_t>(num_blocks)),
      bytes_(layer_halves_ * static_cast<size_t>(num_layers) * sizeof(uint16_t)) {
  void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<uint16_t*>(memory);
}

KvCache::~KvCache() { munmap(data_, bytes_); }

void KvCache::fill(uint16_t pattern) { std::fill_n(data_, bytes_ / sizeof(uint16_t), pattern); }

}  // namespace tampu
