// A Llama on the CPU: weights, KV cache and scratch of one model, and one step of it over a ragged batch. Token ids
// in, token ids out; knows no files, no text, no scheduling. Every integer of a step is checked before it is used.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <vector>

#include "tampu/attention.h"
#include "tampu/kernels.h"
#include "tampu/kv_cache.h"
#include "tampu/linear.h"
#include "tampu/sampler.h"
#include "tampu/thread_pool.h"

namespace tampu {

struct LlamaConfig {
  int vocab_size, hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim;
  float rms_norm_eps;
  std::vector<float> inv_freq;  // (head_dim / 2,)
  bool tie_word_embeddings;
};

struct RunnerConfig {
  int num_threads, max_num_batched_tokens, max_num_seqs;
  Isa isa;
  ActivationType activations;
  KvType kv_type;
};

// Allowed tokens: bit i (least significant bit of byte 0 first) for token i; those beyond the end are not.
struct TokenMask {
  const uint8_t* data = nullptr;  // null: everything is allowed
  size_t size = 0;
};

// One request's share of a step.
struct StepRun {
  std::vector<int32_t> token_ids;    // to compute, at least one
  int position;                      // of the first of them
  std::vector<int32_t> block_table;  // covers them
  const SamplingState* sampling;     // null: not sampled
  std::function<TokenMask()> mask;   // asked once, late, on any worker; never throws; may be empty
};

class Llama {
 public:
  // Throws std::invalid_argument when the numbers make no model.
  Llama(LlamaConfig model, RunnerConfig runner);

  // Weights, one call each, before allocate(). Shapes are checked; throws std::invalid_argument.
  enum class Slot { QkvProj, OProj, GateUpProj, DownProj, LmHead, EmbedTokens };
  enum class Norm { Input, PostAttention, Final };
  void set_linear(Slot slot, int layer, const std::vector<LinearPart>& parts, int in_features,
                  const std::vector<uint8_t>& fine_groups);
  void set_norm(Norm norm, int layer, const float* values, int n);
  // Throws std::logic_error when a weight is missing.
  void allocate(int num_blocks, int block_size);

  // One step. Returns one row for each run with `sampling`, in order. Throws std::invalid_argument, before anything
  // is computed, when an input is out of range; the model stays usable.
  std::vector<SampledRow> execute(const std::vector<StepRun>& runs);
  // The same forward pass, giving the logits of every token ([num_tokens][vocab_size]) instead of samples.
  void compute_logits(const std::vector<StepRun>& runs, float* logits);

  const LlamaConfig& config() const { return model_; }
  size_t weight_bytes() const;
  KvCache& kv_cache();   // throws std::logic_error before allocate()

 private:
  struct Layer {
    std::vector<float> input_norm, post_attention_norm;
    std::unique_ptr<Linear> qkv_proj, o_proj, gate_up_proj, down_proj;
  };

  static constexpr int kRowBlock = 64;
  // One worker's rows, when it takes a block of them from one attention to the next by itself.
  struct RowBlock {
    std::unique_ptr<Activations> hidden_rows, attended_rows, gated_rows;
    std::vector<float> normed, gated;
  };

  void check(const std::vector<StepRun>& runs, bool samples) const;
  void prepare(const std::vector<StepRun>& runs);
  std::unique_ptr<Activations> activations_of(
      int max_rows, int k, std::initializer_list<std::unique_ptr<Linear> Layer::*> readers) const;
  void allocate_row_blocks();
  void refuse_when_allocated() const;
  std::vector<SampledRow> step(const std::vector<StepRun>& runs, bool samples, float* logits);
  void work(int worker);
  template <class Chunk, class Row>
  void chunks_then_rows(int worker, int num_chunks, const Chunk& chunk, int num_rows, const Row& row);
  template <class Row>
  void each_row(int worker, int num_rows, const Row& row);
  void work_by_columns(int worker);
  void work_by_row_blocks(int worker);
  bool prefers_row_blocks(int num_rows) const;
  void rows_before_attention(int layer, int begin, int end, int worker);
  void rows_after_attention(int layer, int begin, int end, int worker);
  int num_unit_chunks() const;
  void run_units(int chunk, int layer, int worker);
  void embed(int r);
  void norm_row(int r, const std::vector<float>& weight);
  void rotate_and_store(int r, int layer);
  void attention_block(int index, int worker);
  void mlp_block(int index, int worker);
  void head(int worker);
  void sample_rows(int worker);
  void ask_masks();
  void sample(int i, int worker);
  float* hidden_row(int r) { return hidden_.data() + static_cast<int64_t>(r) * model_.hidden_size; }
  const Linear& embedding() const { return embed_tokens_ ? *embed_tokens_ : *lm_head_; }

  const LlamaConfig model_;
  const RunnerConfig runner_;
  const Kernels& kernels_;
  const int query_width_, kv_width_, qkv_width_;
  const float query_scale_;  // log2(e) / sqrt(head_dim): scores are kept in base 2
  std::vector<Layer> layers_;
  std::vector<float> final_norm_;
  std::unique_ptr<Linear> embed_tokens_, lm_head_;
  std::unique_ptr<KvCache> cache_;
  Attention attention_;

  // Rows of one step, sized for max_num_batched_tokens.
  std::vector<float> hidden_;      // [rows][hidden_size], the residual stream
  std::vector<float> normed_;      // [rows][hidden_size]
  std::vector<float> qkv_;         // [rows][qkv_width]
  std::vector<float> attended_;    // [rows][num_heads * head_dim]
  std::vector<float> gated_;       // [rows][intermediate_size]
  std::vector<float> cosines_, sines_;  // [rows][head_dim / 2]
  std::vector<float> logits_;      // [max_num_seqs][vocab_size]
  std::unique_ptr<Activations> hidden_rows_, attended_rows_, gated_rows_, head_rows_;
  std::vector<std::unique_ptr<Sampler>> samplers_;  // one per worker
  std::vector<RowBlock> row_blocks_;                // one per worker
  size_t largest_layer_bytes_ = 0;

  // The step being computed.
  std::vector<Run> runs_;
  std::vector<int32_t> token_ids_, positions_, run_of_row_;
  std::vector<int32_t> output_rows_;    // rows whose logits are wanted
  std::vector<int32_t> sampled_runs_;   // indices into step_runs_
  const std::vector<StepRun>* step_runs_ = nullptr;
  std::vector<TokenMask> masks_;        // one per sampled run
  std::atomic<int> num_masks_asked_{0};  // leading sampled runs whose masks are there
  std::vector<SampledRow> sampled_;
  float* logits_out_ = nullptr;         // not null: logits instead of samples
  std::atomic<bool> is_busy_{false};
  ThreadPool pool_;
};

}  // namespace tampu
