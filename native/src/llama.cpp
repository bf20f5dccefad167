// Weights and scratch of a model, and the checks on a step's inputs; the arithmetic is in llama_forward.cpp.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "tampu/llama.h"

namespace tampu {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

const LlamaConfig& checked(const LlamaConfig& m) {
  const auto positive = [](int value, const char* name) {
    if (value < 1) refuse(std::string(name) + " must be at least 1");
  };
  positive(m.vocab_size, "vocab_size");
  positive(m.hidden_size, "hidden_size");
  positive(m.intermediate_size, "intermediate_size");
  positive(m.num_layers, "num_hidden_layers");
  positive(m.num_heads, "num_attention_heads");
  positive(m.num_kv_heads, "num_key_value_heads");
  if (m.num_heads % m.num_kv_heads != 0) refuse("num_attention_heads must be a multiple of num_key_value_heads");
  if (m.head_dim < 2 || m.head_dim > 512 || m.head_dim % 2 != 0) refuse("head_dim must be even and at most 512");
  if (m.inv_freq.size() != static_cast<size_t>(m.head_dim) / 2) refuse("inv_freq must have head_dim / 2 values");
  return m;
}

const RunnerConfig& checked(const RunnerConfig& r) {
  if (r.num_threads < 1 || r.num_threads > 1024) refuse("num_threads must be between 1 and 1024");
  if (r.max_num_batched_tokens < 1 || r.max_num_seqs < 1 || r.max_num_seqs > ThreadPool::kMaxChunks)
    refuse("max_num_batched_tokens and max_num_seqs must be at least 1 and max_num_seqs at most 65535");
  if (r.max_num_seqs > r.max_num_batched_tokens) refuse("max_num_seqs must not exceed max_num_batched_tokens");
  if (!isa_available(r.isa)) refuse("this machine cannot run the instruction set that was asked for");
  return r;
}

}  // namespace

Llama::Llama(LlamaConfig model, RunnerConfig runner)
    : model_(checked(model)),
      runner_(checked(runner)),
      kernels_(kernels_for(runner.isa)),
      query_width_(model.num_heads * model.head_dim),
      kv_width_(model.num_kv_heads * model.head_dim),
      qkv_width_(query_width_ + 2 * kv_width_),
      query_scale_(1.4426950408889634f / std::sqrt(static_cast<float>(model.head_dim))),
      layers_(static_cast<size_t>(model.num_layers)),
      attention_(kernels_, model.num_heads, model.num_kv_heads, model.head_dim, runner.num_threads),
      pool_(runner.num_threads) {}

void Llama::set_linear(Slot slot, int layer, const std::vector<LinearPart>& parts, int in_features,
                       const std::vector<uint8_t>& fine_groups) {
  const bool is_in_layer = slot != Slot::LmHead && slot != Slot::EmbedTokens;
  if (is_in_layer && (layer < 0 || layer >= model_.num_layers)) refuse("layer index is out of range");
  int n = 0, k = model_.hidden_size, wanted = model_.vocab_size;
  std::unique_ptr<Linear>* to = slot == Slot::LmHead ? &lm_head_ : &embed_tokens_;
  if (is_in_layer) {
    Layer& l = layers_[static_cast<size_t>(layer)];
    if (slot == Slot::QkvProj) to = &l.qkv_proj, wanted = qkv_width_;
    if (slot == Slot::OProj) to = &l.o_proj, wanted = model_.hidden_size, k = query_width_;
    if (slot == Slot::GateUpProj) to = &l.gate_up_proj, wanted = 2 * model_.intermediate_size;
    if (slot == Slot::DownProj) to = &l.down_proj, wanted = model_.hidden_size, k = model_.intermediate_size;
  }
  if (parts.empty()) refuse("a weight has no parts");
  if (in_features != k) refuse("a weight has rows of " + std::to_string(in_features) + " where " + std::to_string(k) + " are needed");
  for (const LinearPart& part : parts) n += part.n;
  if (n != wanted) refuse("a weight has " + std::to_string(n) + " rows where " + std::to_string(wanted) + " are needed");
  if (slot == Slot::GateUpProj && (parts.size() != 2 || parts[0].n != parts[1].n))
    refuse("gate_up_proj needs two parts of one size, gate and up");
  refuse_when_allocated();
  *to = parts.size() == 1 ? make_linear(parts[0].qtype, parts[0].data, n, k, runner_.isa, runner_.activations, fine_groups)
                          : make_fused_linear(parts.data(), static_cast<int>(parts.size()), k, runner_.isa,
                                              runner_.activations, fine_groups);
}

// What a step needs was sized for the weights as they were.
void Llama::refuse_when_allocated() const {
  if (cache_) throw std::logic_error("weights cannot be set, nor memory allocated, after allocate()");
}

KvCache& Llama::kv_cache() {
  if (!cache_) throw std::logic_error("there is no KV cache before allocate()");
  return *cache_;
}

void Llama::set_norm(Norm norm, int layer, const float* values, int n) {
  if (n != model_.hidden_size) refuse("a norm weight must have hidden_size values");
  if (norm != Norm::Final && (layer < 0 || layer >= model_.num_layers)) refuse("layer index is out of range");
  refuse_when_allocated();
  std::vector<float>& to = norm == Norm::Final   ? final_norm_
                           : norm == Norm::Input ? layers_[static_cast<size_t>(layer)].input_norm
                                                 : layers_[static_cast<size_t>(layer)].post_attention_norm;
  to.assign(values, values + n);
}

void Llama::allocate(int num_blocks, int block_size) {
  if (num_blocks < 1) refuse("num_blocks must be at least 1");
  if (block_size != 16 && block_size != 32 && block_size != 64) refuse("block_size must be 16, 32 or 64");
  refuse_when_allocated();
  bool is_complete = lm_head_ && !final_norm_.empty() && (model_.tie_word_embeddings || embed_tokens_);
  for (const Layer& l : layers_)
    is_complete = is_complete && l.qkv_proj && l.o_proj && l.gate_up_proj && l.down_proj && !l.input_norm.empty() &&
                  !l.post_attention_norm.empty();
  if (!is_complete) throw std::logic_error("allocate() before every weight was set");

  const auto rows = static_cast<size_t>(runner_.max_num_batched_tokens);
  const auto width = [](int n) { return static_cast<size_t>(n); };
  hidden_.resize(rows * width(model_.hidden_size));
  normed_.resize(rows * width(model_.hidden_size));
  qkv_.resize(rows * width(qkv_width_));
  attended_.resize(rows * width(query_width_));
  gated_.resize(rows * width(model_.intermediate_size));
  cosines_.resize(rows * width(model_.head_dim) / 2);
  sines_.resize(cosines_.size());
  logits_.resize(width(runner_.max_num_seqs) * width(model_.vocab_size));

  const int batch = runner_.max_num_batched_tokens;
  hidden_rows_ = activations_of(batch, model_.hidden_size, {&Layer::qkv_proj, &Layer::gate_up_proj});
  attended_rows_ = activations_of(batch, query_width_, {&Layer::o_proj});
  gated_rows_ = activations_of(batch, model_.intermediate_size, {&Layer::down_proj});
  head_rows_ = make_activations(runner_.isa, runner_.activations);
  head_rows_->require(*lm_head_);
  head_rows_->reserve(runner_.max_num_seqs, model_.hidden_size);
  for (const Layer& l : layers_) {
    const size_t bytes = l.qkv_proj->bytes() + l.o_proj->bytes() + l.gate_up_proj->bytes() + l.down_proj->bytes();
    largest_layer_bytes_ = std::max(largest_layer_bytes_, bytes);
  }
  if (prefers_row_blocks(batch)) allocate_row_blocks();
  for (int w = 0; w < runner_.num_threads; ++w)
    samplers_.push_back(std::make_unique<Sampler>(kernels_, model_.vocab_size));
  cache_ = std::make_unique<KvCache>(runner_.kv_type, model_.num_layers, num_blocks, block_size, model_.num_kv_heads,
                                     model_.head_dim);
}

std::unique_ptr<Activations> Llama::activations_of(
    int max_rows, int k, std::initializer_list<std::unique_ptr<Linear> Layer::*> readers) const {
  auto activations = make_activations(runner_.isa, runner_.activations);
  for (const Layer& l : layers_)
    for (const auto reader : readers) activations->require(*(l.*reader));
  activations->reserve(max_rows, k);
  return activations;
}

void Llama::allocate_row_blocks() {
  for (int w = 0; w < runner_.num_threads; ++w) {
    RowBlock block;
    block.hidden_rows = activations_of(kRowBlock, model_.hidden_size, {&Layer::qkv_proj, &Layer::gate_up_proj});
    block.attended_rows = activations_of(kRowBlock, query_width_, {&Layer::o_proj});
    block.gated_rows = activations_of(kRowBlock, model_.intermediate_size, {&Layer::down_proj});
    block.normed.resize(size_t{kRowBlock} * static_cast<size_t>(model_.hidden_size));
    block.gated.resize(size_t{kRowBlock} * static_cast<size_t>(model_.intermediate_size));
    row_blocks_.push_back(std::move(block));
  }
}

size_t Llama::weight_bytes() const {
  size_t sum = lm_head_ ? lm_head_->bytes() : 0;
  if (embed_tokens_) sum += embed_tokens_->bytes();
  for (const Layer& l : layers_)
    for (const auto* linear : {&l.qkv_proj, &l.o_proj, &l.gate_up_proj, &l.down_proj})
      if (*linear) sum += (*linear)->bytes();
  return sum;
}

void Llama::check(const std::vector<StepRun>& runs, bool samples) const {
  if (!cache_) throw std::logic_error("execute() before allocate()");
  int64_t num_tokens = 0;
  int num_sampled = 0;
  for (const StepRun& run : runs) {
    if (run.token_ids.empty()) refuse("a run has no tokens");
    for (const int32_t id : run.token_ids)
      if (id < 0 || id >= model_.vocab_size)
        refuse("token id " + std::to_string(id) + " is not in a vocabulary of " + std::to_string(model_.vocab_size));
    num_tokens += static_cast<int64_t>(run.token_ids.size());
    const int64_t end = static_cast<int64_t>(run.position) + static_cast<int64_t>(run.token_ids.size());
    const int64_t covered = static_cast<int64_t>(run.block_table.size()) * cache_->block_size();
    if (run.position < 0 || end > covered)
      refuse("positions up to " + std::to_string(end) + " do not fit a block table of " +
             std::to_string(run.block_table.size()) + " blocks");
    for (const int32_t block : run.block_table)
      if (block < 0 || block >= cache_->num_blocks())
        refuse("block id " + std::to_string(block) + " is not in a cache of " + std::to_string(cache_->num_blocks()));
    if (run.sampling != nullptr && run.sampling->vocab_size() != model_.vocab_size)
      refuse("a sampling state was made for another vocabulary");
    num_sampled += run.sampling != nullptr;
  }
  if (num_tokens > runner_.max_num_batched_tokens)
    refuse(std::to_string(num_tokens) + " tokens in a step, max_num_batched_tokens is " +
           std::to_string(runner_.max_num_batched_tokens));
  if (samples && num_sampled > runner_.max_num_seqs)
    refuse(std::to_string(num_sampled) + " sampled requests in a step, max_num_seqs is " +
           std::to_string(runner_.max_num_seqs));
}

void Llama::prepare(const std::vector<StepRun>& runs) {
  runs_.clear();
  token_ids_.clear();
  positions_.clear();
  run_of_row_.clear();
  output_rows_.clear();
  sampled_runs_.clear();
  for (size_t i = 0; i < runs.size(); ++i) {
    const StepRun& run = runs[i];
    const auto row = static_cast<int>(token_ids_.size()), count = static_cast<int>(run.token_ids.size());
    runs_.push_back({row, count, run.position, run.block_table.data(), run.sampling != nullptr});
    token_ids_.insert(token_ids_.end(), run.token_ids.begin(), run.token_ids.end());
    for (int t = 0; t < count; ++t) {
      positions_.push_back(run.position + t);
      run_of_row_.push_back(static_cast<int32_t>(i));
      if (logits_out_ != nullptr) output_rows_.push_back(row + t);
    }
    if (logits_out_ == nullptr && run.sampling != nullptr) {
      output_rows_.push_back(row + count - 1);
      sampled_runs_.push_back(static_cast<int32_t>(i));
    }
  }
  attention_.plan(runs_);
}

std::vector<SampledRow> Llama::step(const std::vector<StepRun>& runs, bool samples, float* logits) {
  if (is_busy_.exchange(true)) throw std::logic_error("execute() was called while another call is running");
  struct Release {
    std::atomic<bool>& flag;
    ~Release() { flag.store(false); }
  } release{is_busy_};
  check(runs, samples);
  if (runs.empty()) return {};
  step_runs_ = &runs;
  logits_out_ = logits;
  prepare(runs);
  sampled_.assign(sampled_runs_.size(), SampledRow{});
  masks_.assign(sampled_runs_.size(), TokenMask{});
  num_masks_asked_.store(0, std::memory_order_relaxed);
  pool_.run([](void* self, int worker) { static_cast<Llama*>(self)->work(worker); }, this);
  return std::move(sampled_);   // before another call may begin
}

std::vector<SampledRow> Llama::execute(const std::vector<StepRun>& runs) { return step(runs, true, nullptr); }

void Llama::compute_logits(const std::vector<StepRun>& runs, float* logits) { step(runs, false, logits); }

}  // namespace tampu
