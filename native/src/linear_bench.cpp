// Timing of the kernels and of the machine's own limits. Best of many short rounds: other programs can only slow one.
#include "linear_bench.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>

namespace tampu {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::atomic<unsigned> sink;

// Threads meet here by spinning, then by yielding: a benchmark must not hang when the machine is shared.
class Barrier {
 public:
  explicit Barrier(int num_threads) : num_threads_(num_threads) {}
  void wait() {
    const unsigned phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
      if (spins > 20000) std::this_thread::yield();
    }
  }

 private:
  const int num_threads_;
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> phase_{0};
};

// Best time of round(thread) over all threads, repeated for about `seconds`, at least three times.
template <class Round>
double best_round(int num_threads, double seconds, const Round& round) {
  Barrier barrier(num_threads);
  double best = 1e30;
  std::atomic<bool> stop{false};
  const auto work = [&](int thread) {
    const double begin = now();
    for (int i = 0; !stop.load(std::memory_order_relaxed); ++i) {
      barrier.wait();
      const double t0 = now();
      round(thread);
      barrier.wait();
      if (thread == 0) {
        best = std::min(best, now() - t0);
        if (i >= 2 && now() - begin > seconds) stop.store(true, std::memory_order_relaxed);
      }
      barrier.wait();
    }
  };
  std::vector<std::thread> threads;
  for (int t = 1; t < num_threads; ++t) threads.emplace_back(work, t);
  work(0);
  for (auto& t : threads) t.join();
  return best;
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

}  // namespace

BenchTimes bench_layers(const std::vector<const Linear*>& layers, Isa isa, int rows, int num_threads, double seconds) {
  const Linear& first = *layers.front();
  const int k = first.in_features(), n = first.out_features();
  auto activations = make_activations(isa, first.activation_type());
  for (const Linear* layer : layers) activations->require(*layer);
  activations->reserve(rows, k);
  std::vector<float> x(size_t(rows) * k), y(size_t(rows) * n);
  uint32_t state = 1;
  for (float& v : x) {
    state = state * 1664525u + 1013904223u;
    v = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  }
  const auto share = [&](int thread) { return static_cast<int>(int64_t(rows) * thread / num_threads); };
  BenchTimes times;
  times.quantize_s = best_round(num_threads, seconds / 4, [&](int thread) {
    activations->set_rows(x.data(), k, share(thread), share(thread + 1));
  });
  times.multiply_s = best_round(num_threads, seconds, [&](int thread) {
    for (const Linear* layer : layers) {
      layer->forward(*activations, rows, y.data(), n, Epilogue::Store, thread, num_threads);
    }
  }) / static_cast<double>(layers.size());
  return times;
}

double stream_read_bytes_per_s(size_t bytes_per_thread, int num_threads, double seconds) {
#if defined(TAMPU_X86)
  if (!isa_available(Isa::Avx2)) return 0;
  constexpr size_t kHugePage = size_t{2} << 20;
  const size_t bytes = std::max(bytes_per_thread / kHugePage, size_t{1}) * kHugePage;
  std::vector<std::unique_ptr<void, Free>> blocks;
  for (int t = 0; t < num_threads; ++t) {
    blocks.emplace_back(std::aligned_alloc(kHugePage, bytes));
    std::memset(blocks.back().get(), t + 1, bytes);
  }
  const double best = best_round(num_threads, seconds,
                                 [&](int t) { sink += detail::read_block_avx2(blocks[t].get(), bytes); });
  return static_cast<double>(bytes) * num_threads / best;
#else
  return 0;
#endif
}

double int8_dot_ops_per_s(int num_threads, double seconds) {
#if defined(TAMPU_X86)
  if (!isa_available(Isa::Avx512)) return 0;
  constexpr long kIterations = 20000;
  const double best = best_round(num_threads, seconds, [&](int) { detail::dot_chain_avx512(kIterations); });
  return 16.0 * 128.0 * kIterations * num_threads / best;
#else
  return 0;
#endif
}

}  // namespace tampu
