// Persistent worker threads that walk a job's phases together. Knows nothing of what they compute.
//
// A job is one function that every worker runs; it calls `phase` again and again, always in the same sequence. A
// phase is a number of chunks. Every worker has a range of them, the same for the same number of chunks, claims it in
// ascending order, and then takes what is left of the others' ranges from their ends; the phase is over when all its
// chunks are done, whoever did them. So a worker usually knows what it will do next and can have it fetched, and one
// that the operating system has put aside holds up nobody unless it sits on a chunk: on a machine whose cores also run
// other work, that is what keeps a step short. Waiting threads spin for a moment, then offer their core, then park in
// the kernel, so an idle server uses no CPU.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace tampu {

class ThreadPool {
 public:
  static constexpr int kMaxChunks = 65535;

  explicit ThreadPool(int num_threads);  // >= 1; starts num_threads - 1 threads, the caller of run is worker 0
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return num_threads_; }

  // Runs fn(context, worker) on the caller and on every worker that wakes up in time; returns when all of them have
  // left it. `fn` must not throw, and everything it does to shared data must happen in phases. One caller at a time.
  void run(void (*fn)(void*, int), void* context);

  // First chunk of a worker's own range; for worker == size(): the end of the last.
  int range_begin(int worker, int num_chunks) const {
    return static_cast<int>(static_cast<int64_t>(num_chunks) * worker / num_threads_);
  }

  // chunk(i) for each i in [0, num_chunks), each once, by the workers that are there; then tail() once, by the worker
  // that finished last. Returns when all that is done and visible. 1 <= num_chunks <= kMaxChunks.
  template <class Chunk, class Tail>
  void phase(int worker, int num_chunks, const Chunk& chunk, const Tail& tail) {
    const uint32_t number = cursors_[worker].number++;
    if (phase_of(state_.load(std::memory_order_acquire)) != number) return;  // the others have finished it
    for (int i = 0, owner = worker; i < num_threads_; ++i, owner = owner + 1 < num_threads_ ? owner + 1 : 0) {
      for (int next; (next = claim(owner, number, num_chunks, i == 0)) >= 0;) {
        chunk(next);
        const uint64_t state = state_.fetch_add(1, std::memory_order_acq_rel) + 1;
        if (static_cast<int>(state & 0xffff) == num_chunks) {
          tail();
          advance(number + 1);
          return;
        }
      }
    }
    wait_until_left(number);
  }
  template <class Chunk>
  void phase(int worker, int num_chunks, const Chunk& chunk) {
    phase(worker, num_chunks, chunk, [] {});
  }

 private:
  struct alignas(64) Cursor {
    uint32_t number = 0;  // of the phase this worker comes to next
  };

  struct alignas(64) Range {
    // Phase number, first chunk left, end; of an earlier phase: not claimed from yet.
    std::atomic<uint64_t> left{static_cast<uint64_t>(~0u) << 32};
  };

  static uint32_t phase_of(uint64_t word) { return static_cast<uint32_t>(word >> 32); }
  // A chunk of the owner's range, the first or the last that is left; -1: none.
  int claim(int owner, uint32_t number, int num_chunks, bool first);
  void advance(uint32_t number);
  void wait_until_left(uint32_t number);
  void work(int worker);
  void stop();
  bool join_job();
  void leave_job();

  const int num_threads_;
  void (*fn_)(void*, int) = nullptr;
  void* context_ = nullptr;
  uint32_t first_phase_ = 0;
  std::unique_ptr<Cursor[]> cursors_;
  std::unique_ptr<Range[]> ranges_;
  alignas(64) std::atomic<uint64_t> state_{0};  // phase number, chunks done
  alignas(64) std::atomic<uint32_t> num_phases_{0};  // that are over: what parked workers wait on
  alignas(64) std::atomic<int> num_parked_{0};
  alignas(64) std::atomic<uint32_t> job_{0};
  alignas(64) std::atomic<int> num_inside_{kClosed};  // workers inside the job's function; kClosed: no entry
  alignas(64) std::atomic<bool> is_stopping_{false};
  std::vector<std::thread> threads_;

  static constexpr int kClosed = 1 << 20;
};

}  // namespace tampu
