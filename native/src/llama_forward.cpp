// The forward pass of one step, as a sequence of phases that every worker walks. Work inside a phase is cut into
// chunks of rows, of weight columns, or of attention units; which worker gets a chunk changes no bit.
#include <algorithm>
#include <cmath>

#include "tampu/llama.h"

namespace tampu {
namespace {

// Up to this many rows, the row-wise work after a matrix product is done by the worker that finishes last: handing
// it out would take longer.
constexpr int kFewRows = 3;
constexpr int kChunksPerWorker = 3;
constexpr size_t kCachedLayerBytes = 8u << 20;
constexpr int kMaxUnitChunks = ThreadPool::kMaxChunks / 2;

}  // namespace

// `columns` chunks first, then row(r) for every row, in the same phase or in one of its own.
template <class Chunk, class Row>
void Llama::chunks_then_rows(int worker, int num_chunks, const Chunk& chunk, int num_rows, const Row& row) {
  if (num_rows <= kFewRows) {
    pool_.phase(worker, num_chunks, chunk, [&] {
      for (int r = 0; r < num_rows; ++r) row(r);
    });
  } else {
    pool_.phase(worker, num_chunks, chunk);
    each_row(worker, num_rows, row);
  }
}

template <class Row>
void Llama::each_row(int worker, int num_rows, const Row& row) {
  const int num_chunks = std::min(num_rows, kChunksPerWorker * runner_.num_threads);
  pool_.phase(worker, num_chunks, [&](int c) {
    const auto first = static_cast<int>(static_cast<int64_t>(num_rows) * c / num_chunks);
    const auto last = static_cast<int>(static_cast<int64_t>(num_rows) * (c + 1) / num_chunks);
    for (int r = first; r < last; ++r) row(r);
  });
}

void Llama::work(int worker) {
  if (prefers_row_blocks(static_cast<int>(token_ids_.size())))
    work_by_row_blocks(worker);
  else
    work_by_columns(worker);
  if (output_rows_.empty()) return;
  head(worker);
  if (logits_out_ == nullptr) sample_rows(worker);
}

// Few rows: reading the weights is the work, so the workers share every matrix.
void Llama::work_by_columns(int worker) {
  const int rows = static_cast<int>(token_ids_.size());
  each_row(worker, rows, [&](int r) {
    embed(r);
    norm_row(r, layers_[0].input_norm);
  });
  for (int i = 0; i < model_.num_layers; ++i) {
    attention_block(i, worker);
    mlp_block(i, worker);
  }
}

// Many rows of a model whose layers fit a cache: a worker takes a block of rows from one attention to the next by
// itself, and nothing of it leaves the worker's own cache.
bool Llama::prefers_row_blocks(int num_rows) const {
  return num_rows >= kRowBlock / 2 * runner_.num_threads && largest_layer_bytes_ <= kCachedLayerBytes;
}

void Llama::work_by_row_blocks(int worker) {
  const int rows = static_cast<int>(token_ids_.size()), workers = runner_.num_threads;
  // As many blocks as fill the last round of workers.
  const int num_blocks = (rows + kRowBlock * workers - 1) / (kRowBlock * workers) * workers;
  const auto each_block = [&](const auto& block) {
    pool_.phase(worker, num_blocks, [&](int b) {
      const auto begin = static_cast<int>(static_cast<int64_t>(rows) * b / num_blocks);
      const auto end = static_cast<int>(static_cast<int64_t>(rows) * (b + 1) / num_blocks);
      if (begin < end) block(begin, end);
    });
  };
  each_block([&](int begin, int end) {
    for (int r = begin; r < end; ++r) embed(r);
    rows_before_attention(0, begin, end, worker);
  });
  for (int i = 0; i < model_.num_layers; ++i) {
    pool_.phase(worker, num_unit_chunks(), [&](int c) { run_units(c, i, worker); });
    each_block([&](int begin, int end) {
      rows_after_attention(i, begin, end, worker);
      if (i + 1 < model_.num_layers) rows_before_attention(i + 1, begin, end, worker);
    });
  }
}

void Llama::rows_before_attention(int layer, int begin, int end, int worker) {
  RowBlock& block = row_blocks_[static_cast<size_t>(worker)];
  const Layer& l = layers_[static_cast<size_t>(layer)];
  const int width = model_.hidden_size;
  for (int r = begin; r < end; ++r)
    kernels_.rms_norm(hidden_row(r), l.input_norm.data(), model_.rms_norm_eps, width,
                      block.normed.data() + static_cast<int64_t>(r - begin) * width);
  block.hidden_rows->set_rows(block.normed.data(), width, 0, end - begin);
  l.qkv_proj->forward(*block.hidden_rows, end - begin, qkv_.data() + static_cast<int64_t>(begin) * qkv_width_,
                      qkv_width_, Epilogue::Store, 0, 1);
  for (int r = begin; r < end; ++r) rotate_and_store(r, layer);
}

void Llama::rows_after_attention(int layer, int begin, int end, int worker) {
  RowBlock& block = row_blocks_[static_cast<size_t>(worker)];
  const Layer& l = layers_[static_cast<size_t>(layer)];
  const int width = model_.hidden_size, inner = model_.intermediate_size, count = end - begin;
  block.attended_rows->set_rows(attended_.data() + static_cast<int64_t>(begin) * query_width_, query_width_, 0, count);
  l.o_proj->forward(*block.attended_rows, count, hidden_row(begin), width, Epilogue::Add, 0, 1);
  for (int r = begin; r < end; ++r)
    kernels_.rms_norm(hidden_row(r), l.post_attention_norm.data(), model_.rms_norm_eps, width,
                      block.normed.data() + static_cast<int64_t>(r - begin) * width);
  block.hidden_rows->set_rows(block.normed.data(), width, 0, count);
  l.gate_up_proj->forward(*block.hidden_rows, count, block.gated.data(), inner, Epilogue::SiluMul, 0, 1);
  block.gated_rows->set_rows(block.gated.data(), inner, 0, count);
  l.down_proj->forward(*block.gated_rows, count, hidden_row(begin), width, Epilogue::Add, 0, 1);
}

// A phase has a limited number of chunks; attention units may be more.
int Llama::num_unit_chunks() const { return std::min(attention_.num_units(), kMaxUnitChunks); }

void Llama::run_units(int chunk, int layer, int worker) {
  for (int u = chunk; u < attention_.num_units(); u += num_unit_chunks())
    attention_.run(u, *cache_, layer, qkv_.data(), qkv_width_, attended_.data(), worker);
}

void Llama::embed(int r) {
  const auto row = static_cast<size_t>(r);
  embedding().dequantize_row(token_ids_[row], hidden_row(r));
  const int half = model_.head_dim / 2;
  for (int i = 0; i < half; ++i) {
    // The angle is the float product, as in tampu.model.rope; only its cosine and sine are taken in double.
    const double angle = static_cast<float>(positions_[row]) * model_.inv_freq[static_cast<size_t>(i)];
    cosines_[row * half + i] = static_cast<float>(std::cos(angle));
    sines_[row * half + i] = static_cast<float>(std::sin(angle));
  }
}

void Llama::norm_row(int r, const std::vector<float>& weight) {
  const int width = model_.hidden_size;
  float* normed = normed_.data() + static_cast<int64_t>(r) * width;
  kernels_.rms_norm(hidden_row(r), weight.data(), model_.rms_norm_eps, width, normed);
  hidden_rows_->set_rows(normed_.data(), width, r, r + 1);
}

void Llama::rotate_and_store(int r, int layer) {
  const int d = model_.head_dim, block_size = cache_->block_size();
  float* row = qkv_.data() + static_cast<int64_t>(r) * qkv_width_;
  const float* cosines = cosines_.data() + static_cast<int64_t>(r) * (d / 2);
  const float* sines = sines_.data() + static_cast<int64_t>(r) * (d / 2);
  for (int h = 0; h < model_.num_heads; ++h) kernels_.rope(row + h * d, cosines, sines, d, query_scale_);
  const int position = positions_[static_cast<size_t>(r)];
  const Run& run = runs_[static_cast<size_t>(run_of_row_[static_cast<size_t>(r)])];
  const int32_t block = run.block_table[position / block_size];
  for (int h = 0; h < model_.num_kv_heads; ++h) {
    const KvHead kv = cache_->head(layer, h);
    float* key = row + query_width_ + h * d;
    kernels_.rope(key, cosines, sines, d, 1.0f);
    kernels_.store_kv(key, key + kv_width_, kv, block, position % block_size);
  }
}

void Llama::attention_block(int index, int worker) {
  const Layer& layer = layers_[static_cast<size_t>(index)];
  const int rows = static_cast<int>(token_ids_.size()), parts = kChunksPerWorker * runner_.num_threads;
  chunks_then_rows(
      worker, parts,
      [&](int part) {
        layer.qkv_proj->forward(*hidden_rows_, rows, qkv_.data(), qkv_width_, Epilogue::Store, part, parts);
      },
      rows, [&](int r) { rotate_and_store(r, index); });
  chunks_then_rows(
      worker, num_unit_chunks(), [&](int c) { run_units(c, index, worker); },
      rows, [&](int r) { attended_rows_->set_rows(attended_.data(), query_width_, r, r + 1); });
  chunks_then_rows(
      worker, parts,
      [&](int part) {
        layer.o_proj->forward(*attended_rows_, rows, hidden_.data(), model_.hidden_size, Epilogue::Add, part, parts);
      },
      rows, [&](int r) { norm_row(r, layer.post_attention_norm); });
}

void Llama::mlp_block(int index, int worker) {
  const Layer& layer = layers_[static_cast<size_t>(index)];
  const int rows = static_cast<int>(token_ids_.size()), parts = kChunksPerWorker * runner_.num_threads;
  const int inner = model_.intermediate_size;
  chunks_then_rows(
      worker, parts,
      [&](int part) {
        layer.gate_up_proj->forward(*hidden_rows_, rows, gated_.data(), inner, Epilogue::SiluMul, part, parts);
      },
      rows,
      [&](int r) {
        gated_rows_->set_rows(gated_.data(), inner, r, r + 1);
      });
  const bool is_last = index + 1 == model_.num_layers;
  chunks_then_rows(
      worker, parts,
      [&](int part) {
        layer.down_proj->forward(*gated_rows_, rows, hidden_.data(), model_.hidden_size, Epilogue::Add, part, parts);
      },
      is_last ? 0 : rows,
      [&](int r) { norm_row(r, layers_[static_cast<size_t>(index) + 1].input_norm); });
}

void Llama::head(int worker) {
  const int total = static_cast<int>(output_rows_.size()), width = model_.hidden_size;
  const int parts = kChunksPerWorker * runner_.num_threads;
  for (int first = 0; first < total; first += runner_.max_num_seqs) {
    const int count = std::min(runner_.max_num_seqs, total - first);
    each_row(worker, count, [&](int r) {
      kernels_.rms_norm(hidden_row(output_rows_[static_cast<size_t>(first + r)]), final_norm_.data(),
                        model_.rms_norm_eps, width, normed_.data() + static_cast<int64_t>(r) * width);
      head_rows_->set_rows(normed_.data(), width, r, r + 1);
    });
    float* logits =
        logits_out_ != nullptr ? logits_out_ + static_cast<int64_t>(first) * model_.vocab_size : logits_.data();
    pool_.phase(worker, parts, [&](int part) {
      lm_head_->forward(*head_rows_, count, logits, model_.vocab_size, Epilogue::Store, part, parts);
    });
  }
}

// Who comes first asks for all masks, one after the other: they read the same memory, and most come from behind one
// lock. Meanwhile the others sample, each row as soon as its mask is there.
void Llama::sample_rows(int worker) {
  pool_.phase(worker, static_cast<int>(sampled_runs_.size()), [&](int i) {
    if (i == 0) ask_masks();
    sample(i, worker);
  });
}

void Llama::ask_masks() {
  for (size_t i = 0; i < sampled_runs_.size(); ++i) {
    const StepRun& run = (*step_runs_)[static_cast<size_t>(sampled_runs_[i])];
    if (!run.mask) continue;
    masks_[i] = run.mask();
    num_masks_asked_.store(static_cast<int>(i) + 1, std::memory_order_release);
    num_masks_asked_.notify_all();
  }
}

void Llama::sample(int i, int worker) {
  const StepRun& run = (*step_runs_)[static_cast<size_t>(sampled_runs_[static_cast<size_t>(i)])];
  const int64_t position = run.position + static_cast<int64_t>(run.token_ids.size());
  TokenMask mask;
  if (run.mask) {
    for (int asked; (asked = num_masks_asked_.load(std::memory_order_acquire)) <= i;) num_masks_asked_.wait(asked);
    mask = masks_[static_cast<size_t>(i)];
  }
  sampled_[static_cast<size_t>(i)] = samplers_[static_cast<size_t>(worker)]->sample(
      logits_.data() + static_cast<int64_t>(i) * model_.vocab_size, *run.sampling, position, mask.data, mask.size);
}

}  // namespace tampu
