// Spin-then-park workers; see thread_pool.h.
#include "tampu/thread_pool.h"

#include <chrono>

namespace tampu {
namespace {

// A phase of a step lasts tens of microseconds, so a barrier spins that long before it parks. Between two steps
// the caller's thread does other work; a worker that spun through it would steal the core of an event loop.
constexpr std::chrono::microseconds kBarrierSpin{200};
constexpr std::chrono::microseconds kJobSpin{20};

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

// Returns once `value` differs from `seen`.
void wait_for_change(const std::atomic<uint32_t>& value, uint32_t seen, std::chrono::microseconds spin) {
  for (int i = 0; i < 64; ++i) {
    if (value.load(std::memory_order_acquire) != seen) return;
    relax();
  }
  const auto deadline = std::chrono::steady_clock::now() + spin;
  while (std::chrono::steady_clock::now() < deadline) {
    for (int i = 0; i < 16; ++i) {
      if (value.load(std::memory_order_acquire) != seen) return;
      relax();
    }
  }
  while (value.load(std::memory_order_acquire) == seen) value.wait(seen, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads) {
  threads_.reserve(static_cast<size_t>(num_threads - 1));
  for (int worker = 1; worker < num_threads; ++worker) threads_.emplace_back([this, worker] { work(worker); });
}

ThreadPool::~ThreadPool() {
  is_stopping_.store(true, std::memory_order_release);
  job_.fetch_add(1, std::memory_order_release);
  job_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void ThreadPool::run(void (*fn)(void*, int), void* context) {
  fn_ = fn;
  context_ = context;
  if (num_threads_ > 1) {
    job_.fetch_add(1, std::memory_order_release);
    job_.notify_all();
  }
  fn(context, 0);
  barrier();
}

void ThreadPool::work(int worker) {
  uint32_t seen = 0;
  for (;;) {
    wait_for_change(job_, seen, kJobSpin);
    seen = job_.load(std::memory_order_acquire);
    if (is_stopping_.load(std::memory_order_acquire)) return;
    fn_(context_, worker);
    barrier();
  }
}

void ThreadPool::barrier() {
  if (num_threads_ == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == num_threads_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.fetch_add(1, std::memory_order_release);
    phase_.notify_all();
  } else {
    wait_for_change(phase_, phase, kBarrierSpin);
  }
}

}  // namespace tampu
