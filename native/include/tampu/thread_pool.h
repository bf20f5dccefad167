// Persistent worker threads with a barrier. Knows nothing of what they compute.
//
// A job is one function run by every worker at once (worker 0 is the caller); inside it, `barrier` separates
// phases. A waiting thread spins for a bounded time and then parks in the kernel, so an idle server uses no CPU
// and a machine with fewer free cores than workers still makes progress.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace tampu {

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);  // >= 1; starts num_threads - 1 threads
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return num_threads_; }

  // Runs fn(context, worker) on every worker and returns when all have finished. `fn` must not throw.
  // Not reentrant; one caller at a time.
  void run(void (*fn)(void*, int), void* context);

  // Called by every worker of a running job: nobody leaves before all have arrived. What was written before it is
  // visible to everyone after it.
  void barrier();

 private:
  void work(int worker);

  const int num_threads_;
  void (*fn_)(void*, int) = nullptr;
  void* context_ = nullptr;
  // Each on its own cache line: they are written by different threads at a high rate.
  alignas(64) std::atomic<uint32_t> job_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<bool> is_stopping_{false};
  std::vector<std::thread> threads_;
};

}  // namespace tampu
