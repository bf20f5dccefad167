// The forward pass of one step. Every worker runs `work`; a barrier separates phases that read what others wrote.
// Rows are shared out the same way in consecutive row-wise phases, so that those need no barrier between them.
#include <algorithm>
#include <cmath>

#include "tampu/llama.h"

namespace tampu {

std::pair<int, int> Llama::share(int n, int worker) const {
  const int64_t workers = runner_.num_threads;
  return {static_cast<int>(n * static_cast<int64_t>(worker) / workers),
          static_cast<int>(n * static_cast<int64_t>(worker + 1) / workers)};
}

void Llama::work(int worker) {
  embed(worker);
  for (size_t i = 0; i < layers_.size(); ++i) {
    attention_block(layers_[i], static_cast<int>(i), worker);
    mlp_block(layers_[i], worker);
  }
  if (!output_rows_.empty()) head(worker);
}

void Llama::embed(int worker) {
  const auto [begin, end] = share(static_cast<int>(token_ids_.size()), worker);
  const int half = model_.head_dim / 2;
  for (int r = begin; r < end; ++r) {
    embedding().dequantize_row(token_ids_[static_cast<size_t>(r)],
                               hidden_.data() + static_cast<int64_t>(r) * model_.hidden_size);
    for (int i = 0; i < half; ++i) {
      // The angle is the float product, as in tampu.model.rope; only its cosine and sine are taken in double.
      const double angle = static_cast<float>(positions_[static_cast<size_t>(r)]) *
                           model_.inv_freq[static_cast<size_t>(i)];
      cosines_[static_cast<size_t>(r) * half + i] = static_cast<float>(std::cos(angle));
      sines_[static_cast<size_t>(r) * half + i] = static_cast<float>(std::sin(angle));
    }
  }
}

void Llama::attention_block(const Layer& layer, int index, int worker) {
  const int rows = static_cast<int>(token_ids_.size()), threads = runner_.num_threads, d = model_.head_dim;
  const int width = model_.hidden_size;
  const auto [begin, end] = share(rows, worker);
  for (int r = begin; r < end; ++r)
    kernels_.rms_norm(hidden_.data() + static_cast<int64_t>(r) * width, layer.input_norm.data(), model_.rms_norm_eps,
                      width, normed_.data() + static_cast<int64_t>(r) * width);
  if (begin < end) hidden_rows_->set_rows(normed_.data(), width, begin, end);
  pool_.barrier();
  layer.qkv_proj->forward(*hidden_rows_, rows, qkv_.data(), qkv_width_, Epilogue::Store, worker, threads);
  pool_.barrier();

  // Scores are kept in base 2, so that the softmax needs no multiplication per score.
  const float query_scale = 1.4426950408889634f / std::sqrt(static_cast<float>(d));
  const int block_size = cache_->block_size();
  for (int r = begin; r < end; ++r) {
    float* row = qkv_.data() + static_cast<int64_t>(r) * qkv_width_;
    const float* cosines = cosines_.data() + static_cast<int64_t>(r) * (d / 2);
    const float* sines = sines_.data() + static_cast<int64_t>(r) * (d / 2);
    for (int h = 0; h < model_.num_heads; ++h) kernels_.rope(row + h * d, cosines, sines, d, query_scale);
    const int position = positions_[static_cast<size_t>(r)];
    const Run& run = runs_[static_cast<size_t>(run_of_row_[static_cast<size_t>(r)])];
    const int32_t block = run.block_table[position / block_size];
    for (int h = 0; h < model_.num_kv_heads; ++h) {
      const KvHead kv = cache_->head(index, h);
      float* key = row + query_width_ + h * d;
      kernels_.rope(key, cosines, sines, d, 1.0f);
      kernels_.store_key(key, d, cache_->key_column(kv, block, position % block_size), block_size);
      kernels_.store_value(key + kv_width_, d, cache_->value_row(kv, block, position % block_size));
    }
  }
  if (worker == 0) attention_.rewind();
  pool_.barrier();
  attention_.run(*cache_, index, qkv_.data(), qkv_width_, attended_.data(), worker);
  pool_.barrier();
  if (begin < end) attended_rows_->set_rows(attended_.data(), query_width_, begin, end);
  pool_.barrier();
  layer.o_proj->forward(*attended_rows_, rows, hidden_.data(), width, Epilogue::Add, worker, threads);
  pool_.barrier();
}

void Llama::mlp_block(const Layer& layer, int worker) {
  const int rows = static_cast<int>(token_ids_.size()), threads = runner_.num_threads;
  const int width = model_.hidden_size, inner = model_.intermediate_size;
  const auto [begin, end] = share(rows, worker);
  for (int r = begin; r < end; ++r)
    kernels_.rms_norm(hidden_.data() + static_cast<int64_t>(r) * width, layer.post_attention_norm.data(),
                      model_.rms_norm_eps, width, normed_.data() + static_cast<int64_t>(r) * width);
  if (begin < end) hidden_rows_->set_rows(normed_.data(), width, begin, end);
  pool_.barrier();
  layer.gate_up_proj->forward(*hidden_rows_, rows, gate_up_.data(), 2 * inner, Epilogue::Store, worker, threads);
  pool_.barrier();
  if (begin < end) {
    silu_mul(gate_up_.data(), 2 * inner, inner, gated_.data(), inner, begin, end, runner_.isa);
    gated_rows_->set_rows(gated_.data(), inner, begin, end);
  }
  pool_.barrier();
  layer.down_proj->forward(*gated_rows_, rows, hidden_.data(), width, Epilogue::Add, worker, threads);
  pool_.barrier();
}

void Llama::head(int worker) {
  const int total = static_cast<int>(output_rows_.size()), width = model_.hidden_size;
  for (int first = 0; first < total; first += runner_.max_num_seqs) {
    const int count = std::min(runner_.max_num_seqs, total - first);
    const auto [begin, end] = share(count, worker);
    for (int r = begin; r < end; ++r) {
      const int64_t row = output_rows_[static_cast<size_t>(first + r)];
      kernels_.rms_norm(hidden_.data() + row * width, final_norm_.data(), model_.rms_norm_eps, width,
                        normed_.data() + static_cast<int64_t>(r) * width);
    }
    if (begin < end) head_rows_->set_rows(normed_.data(), width, begin, end);
    pool_.barrier();
    float* logits = logits_out_ != nullptr ? logits_out_ + static_cast<int64_t>(first) * model_.vocab_size
                                           : logits_.data();
    lm_head_->forward(*head_rows_, count, logits, model_.vocab_size, Epilogue::Store, worker, runner_.num_threads);
    pool_.barrier();
  }
  if (logits_out_ == nullptr) sample_rows(worker);
}

void Llama::sample_rows(int worker) {
  for (;;) {
    const int i = next_sample_.fetch_add(1, std::memory_order_relaxed);
    if (i >= static_cast<int>(sampled_runs_.size())) return;
    const StepRun& run = (*step_runs_)[static_cast<size_t>(sampled_runs_[static_cast<size_t>(i)])];
    const int64_t position = run.position + static_cast<int64_t>(run.token_ids.size());
    sampled_[static_cast<size_t>(i)] = samplers_[static_cast<size_t>(worker)]->sample(
        logits_.data() + static_cast<int64_t>(i) * model_.vocab_size, *run.sampling, position, run.mask,
        run.mask_bytes);
  }
}

}  // namespace tampu
