// Workers, waiting and parking; see thread_pool.h.
#include "tampu/thread_pool.h"

#include <sched.h>

#include <chrono>

namespace tampu {
namespace {

using Clock = std::chrono::steady_clock;

// A phase lasts some tens of microseconds. Between two steps the caller's thread does other work for longer than
// that; a worker that spun through it would steal the core of an event loop.
constexpr std::chrono::microseconds kPhasePatience{200};
constexpr std::chrono::microseconds kJobPatience{30};
constexpr int kSpins = 150;  // some microseconds

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

// Spins, then offers the core to whoever else wants it; true as soon as `is_over`, false when patience has run out.
template <class Test>
bool wait_briefly(const Test& is_over, std::chrono::microseconds patience) {
  for (int i = 0; i < kSpins; ++i) {
    if (is_over()) return true;
    relax();
  }
  const auto deadline = Clock::now() + patience;
  do {
    sched_yield();
    for (int i = 0; i < 8; ++i) {
      if (is_over()) return true;
      relax();
    }
  } while (Clock::now() < deadline);
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(num_threads),
      cursors_(std::make_unique<Cursor[]>(static_cast<size_t>(num_threads))),
      ranges_(std::make_unique<Range[]>(static_cast<size_t>(num_threads))) {
  threads_.reserve(static_cast<size_t>(num_threads - 1));
  try {
    for (int worker = 1; worker < num_threads; ++worker) threads_.emplace_back([this, worker] { work(worker); });
  } catch (...) {   // the system has no more threads; those that run would end the process with this object
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  is_stopping_.store(true, std::memory_order_release);
  job_.fetch_add(1);
  job_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void ThreadPool::run(void (*fn)(void*, int), void* context) {
  fn_ = fn;
  context_ = context;
  first_phase_ = phase_of(state_.load(std::memory_order_relaxed));
  cursors_[0].number = first_phase_;
  if (num_threads_ > 1) {
    num_inside_.store(0, std::memory_order_release);
    job_.fetch_add(1);
    job_.notify_all();
  }
  fn(context, 0);
  if (num_threads_ == 1) return;
  // Nobody enters any more. Whoever is inside finds every phase over and leaves without waiting.
  num_inside_.fetch_add(kClosed, std::memory_order_acq_rel);
  const auto all_left = [&] { return num_inside_.load(std::memory_order_acquire) == kClosed; };
  while (!wait_briefly(all_left, kPhasePatience)) sched_yield();
}

bool ThreadPool::join_job() {
  int inside = num_inside_.load(std::memory_order_acquire);
  while (inside < kClosed)
    if (num_inside_.compare_exchange_weak(inside, inside + 1, std::memory_order_acq_rel)) return true;
  return false;
}

void ThreadPool::leave_job() { num_inside_.fetch_sub(1, std::memory_order_acq_rel); }

void ThreadPool::work(int worker) {
  uint32_t seen = 0;
  for (;;) {
    const auto has_job = [&] { return job_.load(std::memory_order_acquire) != seen; };
    if (!wait_briefly(has_job, kJobPatience))
      while (!has_job()) job_.wait(seen);
    seen = job_.load(std::memory_order_acquire);
    if (is_stopping_.load(std::memory_order_acquire)) return;
    if (!join_job()) continue;
    cursors_[worker].number = first_phase_;
    fn_(context_, worker);
    leave_job();
  }
}

int ThreadPool::claim(int owner, uint32_t number, int num_chunks, bool first) {
  std::atomic<uint64_t>& left = ranges_[owner].left;
  uint64_t word = left.load(std::memory_order_acquire);
  for (;;) {
    int begin = range_begin(owner, num_chunks), end = range_begin(owner + 1, num_chunks);
    if (phase_of(word) == number) {
      begin = static_cast<int>(word >> 16 & 0xffff);
      end = static_cast<int>(word & 0xffff);
    } else if (static_cast<int32_t>(phase_of(word) - number) > 0) {
      return -1;  // the others are already in a later phase
    }
    if (begin >= end) return -1;
    const int chunk = first ? begin++ : --end;
    const uint64_t taken = static_cast<uint64_t>(number) << 32 | static_cast<uint64_t>(begin) << 16 |
                           static_cast<uint64_t>(end);
    if (left.compare_exchange_weak(word, taken, std::memory_order_acq_rel, std::memory_order_acquire)) return chunk;
  }
}

void ThreadPool::advance(uint32_t number) {
  state_.store(static_cast<uint64_t>(number) << 32, std::memory_order_release);
  // Sequentially consistent on both sides: either this sees the sleeper, or the sleeper sees the count. A count and not
  // the number: whoever is held up between these two lines, while others go through later phases, must not undo it.
  num_phases_.fetch_add(1);
  if (num_parked_.load() > 0) num_phases_.notify_all();
}

void ThreadPool::wait_until_left(uint32_t number) {
  const auto is_over = [&] { return phase_of(state_.load(std::memory_order_acquire)) != number; };
  if (wait_briefly(is_over, kPhasePatience)) return;
  num_parked_.fetch_add(1);
  for (;;) {
    const uint32_t seen = num_phases_.load();
    if (is_over()) break;
    num_phases_.wait(seen);
  }
  num_parked_.fetch_sub(1);
}

}  // namespace tampu
