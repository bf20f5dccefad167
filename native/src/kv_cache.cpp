// One anonymous mapping for the whole cache; see kv_cache.h.
#include "tampu/kv_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace tampu {
namespace {

size_t padded(int head_dim) { return static_cast<size_t>(head_dim + 15) / 16 * 16; }

size_t key_bytes(KvType type, int block_size, int head_dim) {
  const auto rows = static_cast<size_t>(block_size);
  return type == KvType::Q8 ? rows * padded(head_dim) : rows * static_cast<size_t>(head_dim) * sizeof(uint16_t);
}

size_t value_bytes(KvType type, int block_size, int head_dim) {
  return static_cast<size_t>(block_size) * padded(head_dim) * (type == KvType::Q8 ? 1 : sizeof(uint16_t));
}

size_t head_bytes(KvType type, int block_size, int head_dim) {
  const size_t scales = type == KvType::Q8 ? 2 * sizeof(float) * static_cast<size_t>(block_size) : 0;
  return key_bytes(type, block_size, head_dim) + value_bytes(type, block_size, head_dim) + scales;
}

}  // namespace

size_t KvCache::bytes_per_block(KvType type, int num_layers, int block_size, int num_kv_heads, int head_dim) {
  return static_cast<size_t>(num_layers) * static_cast<size_t>(num_kv_heads) * head_bytes(type, block_size, head_dim);
}

KvCache::KvCache(KvType type, int num_layers, int num_blocks, int block_size, int num_kv_heads, int head_dim)
    : num_blocks_(num_blocks),
      head_bytes_(head_bytes(type, block_size, head_dim)),
      layer_bytes_(head_bytes_ * static_cast<size_t>(num_kv_heads) * static_cast<size_t>(num_blocks)),
      bytes_(layer_bytes_ * static_cast<size_t>(num_layers)) {
  void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  // A decode step walks through the whole cache of a request; small pages would cost it a table walk every 4 KiB.
  madvise(memory, bytes_, MADV_HUGEPAGE);
  first_.base = static_cast<uint8_t*>(memory);
  first_.block_stride = head_bytes_ * static_cast<size_t>(num_kv_heads);
  first_.values_offset = key_bytes(type, block_size, head_dim);
  first_.scales_offset = first_.values_offset + value_bytes(type, block_size, head_dim);
  first_.block_size = block_size;
  first_.head_dim = head_dim;
  first_.padded_head_dim = static_cast<int>(padded(head_dim));
  first_.type = type;
}

KvCache::~KvCache() { munmap(first_.base, bytes_); }

void KvCache::fill(uint16_t pattern) { std::fill_n(reinterpret_cast<uint16_t*>(first_.base), bytes_ / 2, pattern); }

}  // namespace tampu
