// Draws the next token of one row of logits. Twin of the NumPy oracle in tampu.sampling: same order of operations,
// same tokens. Knows nothing of the model or of other rows.
#pragma once
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tampu/kernels.h"
#include "tampu/sampler_cut.h"

namespace tampu {

struct SamplingParams {
  float temperature = 0.0f;         // 0 = greedy
  int top_k = 0;                    // 0 = off
  double top_p = 1.0;               // >= 1 = off
  double min_p = 0.0;               // 0 = off
  double repetition_penalty = 1.0;  // 0 and 1 = off
  double frequency_penalty = 0.0;
  double presence_penalty = 0.0;
  uint64_t seed = 0;
  int num_logprobs = -1;            // -1 = none
  std::vector<std::pair<int32_t, float>> logit_bias;
};

// What one request's sampling remembers between steps: its parameters and how often each token occurred.
class SamplingState {
 public:
  // Throws std::invalid_argument when a logit_bias id is not in the vocabulary or a number makes no sense.
  SamplingState(SamplingParams params, int num_prompt_tokens, int vocab_size);

  // The next tokens of the request's history, prompt first. Throws std::invalid_argument, and changes nothing, when
  // an id is not in the vocabulary.
  void observe(const int32_t* token_ids, size_t count);

  const SamplingParams& params() const { return params_; }
  bool has_penalties() const { return has_repetition_ || has_counts_; }
  int vocab_size() const { return vocab_size_; }
  int64_t num_observed() const { return num_observed_; }
  void apply_bias_and_penalties(float* logits) const;

 private:
  struct Entry { int32_t token_id; int32_t output_count; };
  SamplingParams params_;
  int64_t num_prompt_tokens_;
  int vocab_size_;
  int64_t num_observed_ = 0;
  bool has_repetition_;
  bool has_counts_;
  std::vector<Entry> entries_;  // each distinct token once
  std::unordered_map<int32_t, size_t> index_;
};

struct SampledRow {
  int32_t token_id = -1;  // -1: the logits hold NaN or +infinity, or nothing is allowed
  bool has_logprobs = false;
  double logprob = 0.0;
  std::vector<std::pair<int32_t, double>> top;
};

// One per thread; buffers for rows of up to vocab_size logits.
class Sampler {
 public:
  Sampler(const Kernels& kernels, int vocab_size);

  // `logits` (vocab_size values) is overwritten. `position` is the absolute index the sampled token will have.
  // `mask` may be null (everything allowed); its missing bytes mean "not allowed".
  SampledRow sample(float* logits, const SamplingState& state, int64_t position, const uint8_t* mask,
                    size_t mask_bytes);

 private:
  int32_t draw_unfiltered(const float* x, float maximum, double u);
  int32_t draw_filtered(const float* x, float maximum, const SamplingParams& params, double u);
  int32_t draw_candidates(double min_p, double u);
  int32_t draw_from_all(const float* x, float maximum, const SamplingParams& params, double u);
  int32_t draw_bracketed(const float* x, float maximum, const Bracket& bracket, float floor,
                         const SamplingParams& params, double u);
  template <typename IsKept>
  int32_t walk_blocks(const float* x, float maximum, const std::vector<double>& sums, double wanted, IsKept is_kept);
  bool collect(const float* x, const Bracket& bracket, int limit);
  void collect_top(const float* x, int k);
  void cut_candidates(double wanted, double lowest, double highest);
  void weigh(float maximum);
  RowSample sample_row(const float* x, float maximum);
  double sum_row(const float* x, float maximum);
  void add_logprobs(float maximum, int num_logprobs, SampledRow& row);

  const Kernels& kernels_;
  const int vocab_size_;
  std::vector<Candidate> candidates_;  // in ascending id order, unless said otherwise
  CutFinder cut_finder_;
  std::vector<float> values_;          // logits of candidates_, or of a sample of the row
  std::vector<double> weights_;        // and their weights
  std::vector<double> block_sums_;     // of the whole row
  std::vector<double> kept_sums_;      // of what a filter keeps
  std::vector<int32_t> found_;
  std::vector<float> raw_;             // the unmodified row, when logprobs are wanted
};

// In [0, 1), from a counter: the same (seed, position) always gives the same number.
double uniform(uint64_t seed, uint64_t position);

}  // namespace tampu
