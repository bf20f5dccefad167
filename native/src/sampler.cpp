// One row of logits to one token; see sampler.h.
#include "tampu/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

namespace tampu {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr int kFirstGuess = 64;  // top_p rarely keeps more tokens than this

uint64_t finalise(uint64_t z) {
  z ^= z >> 30;
  z *= 0xBF58476D1CE4E5B9ull;
  z ^= z >> 27;
  z *= 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// A key whose unsigned order is the descending order of floats; -0 and +0 are one value.
uint32_t descending_key(float x) {
  x += 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
}

void check_id(int32_t token_id, int vocab_size) {
  if (token_id < 0 || token_id >= vocab_size)
    throw std::invalid_argument("token id " + std::to_string(token_id) + " is not in a vocabulary of " +
                                std::to_string(vocab_size));
}

}  // namespace

bool Sampler::comes_before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token_id < b.token_id);
}

double uniform(uint64_t seed, uint64_t position) {
  const uint64_t z = finalise(finalise(seed + 0x9E3779B97F4A7C15ull * (position + 1)));
  return static_cast<double>(z >> 11) * 0x1p-53;
}

SamplingState::SamplingState(SamplingParams params, int num_prompt_tokens, int vocab_size)
    : params_(std::move(params)),
      num_prompt_tokens_(num_prompt_tokens),
      vocab_size_(vocab_size),
      has_repetition_(params_.repetition_penalty != 0.0 && params_.repetition_penalty != 1.0),
      has_counts_(params_.frequency_penalty != 0.0 || params_.presence_penalty != 0.0) {
  for (const auto& [token_id, bias] : params_.logit_bias) check_id(token_id, vocab_size);
  const bool is_sane = params_.temperature >= 0.0f && params_.top_k >= 0 && params_.top_p >= 0.0 &&
                       params_.min_p >= 0.0 && params_.min_p <= 1.0 && params_.repetition_penalty >= 0.0;
  if (!is_sane) throw std::invalid_argument("a sampling parameter is out of range");
}

void SamplingState::observe(const int32_t* token_ids, size_t count) {
  for (size_t i = 0; i < count; ++i) check_id(token_ids[i], vocab_size_);
  for (size_t i = 0; i < count; ++i, ++num_observed_) {
    const bool is_output = num_observed_ >= num_prompt_tokens_;
    const auto [place, is_new] = index_.try_emplace(token_ids[i], entries_.size());
    if (is_new) entries_.push_back({token_ids[i], 0});
    if (is_output) ++entries_[place->second].output_count;
  }
}

void SamplingState::apply_bias_and_penalties(float* logits) const {
  for (const auto& [token_id, bias] : params_.logit_bias) logits[token_id] += bias;
  if (!has_penalties()) return;
  const auto repetition = static_cast<float>(params_.repetition_penalty);
  const auto frequency = static_cast<float>(params_.frequency_penalty);
  const auto presence = static_cast<float>(params_.presence_penalty);
  for (const Entry& entry : entries_) {
    float& x = logits[entry.token_id];
    if (has_repetition_) x = x > 0.0f ? x / repetition : x * repetition;
    if (has_counts_ && entry.output_count > 0)
      x -= frequency * static_cast<float>(entry.output_count) + presence;
  }
}

Sampler::Sampler(const Kernels& kernels, int vocab_size)
    : kernels_(kernels),
      vocab_size_(vocab_size),
      weights_(static_cast<size_t>(vocab_size)),
      block_sums_(static_cast<size_t>(vocab_size) / 64 + 1) {}

SampledRow Sampler::sample(float* logits, const SamplingState& state, int64_t position, const uint8_t* mask,
                           size_t mask_bytes) {
  const SamplingParams& params = state.params();
  SampledRow row;
  const RowSummary raw = kernels_.summarize(logits, vocab_size_);
  if (raw.has_nan || !std::isfinite(raw.maximum)) return row;
  if (params.num_logprobs >= 0) raw_.assign(logits, logits + vocab_size_);

  state.apply_bias_and_penalties(logits);
  if (mask != nullptr) kernels_.apply_mask(logits, vocab_size_, mask, mask_bytes);
  const RowSummary adjusted = kernels_.summarize(logits, vocab_size_);
  if (adjusted.has_nan || !std::isfinite(adjusted.maximum)) return row;

  // So cold that the scaled logits overflow: the limit is greedy.
  const float maximum = params.temperature > 0.0f ? adjusted.maximum / params.temperature : 0.0f;
  if (params.temperature == 0.0f || !std::isfinite(maximum)) {
    row.token_id = kernels_.first_equal(logits, vocab_size_, adjusted.maximum);
  } else {
    if (params.temperature != 1.0f) kernels_.divide(logits, vocab_size_, params.temperature);
    const double u = uniform(params.seed, static_cast<uint64_t>(position));
    if (params.top_k == 0 && params.top_p >= 1.0 && params.min_p == 0.0) {
      row.token_id = draw_unfiltered(logits, maximum, u);
    } else {
      filter(logits, maximum, params);
      row.token_id = draw_filtered(u);
    }
  }
  if (params.num_logprobs >= 0) add_logprobs(raw.maximum, params.num_logprobs, row);
  return row;
}

// Leaves in candidates_ and weights_ what the filters keep, most likely first.
void Sampler::filter(const float* x, float maximum, const SamplingParams& params) {
  const bool has_top_p = params.top_p < 1.0;
  if (params.top_k > 0) {
    select_top(x, params.top_k);
    weigh_candidates(maximum);
    double total = 0.0;
    for (size_t i = 0; i < candidates_.size(); ++i) total += weights_[i];
    if (has_top_p) cut_top_p(params.top_p * total);
  } else if (has_top_p) {
    // The mass is that of the whole row; candidates are fetched in growing numbers until they hold enough of it.
    const double wanted = params.top_p * sum_row(x, maximum);
    for (int k = kFirstGuess;; k = k < 16 * kFirstGuess ? k * 4 : vocab_size_) {
      select_top(x, k);
      weigh_candidates(maximum);
      if (cut_top_p(wanted) || k >= vocab_size_) break;
    }
  } else {
    // Everything within the bound, with room for rounding; the exact cut follows.
    const double exact = static_cast<double>(maximum) + std::log(params.min_p);
    const float bound = std::nextafter(static_cast<float>(exact - 1e-6), kLowest);
    int next = 0;
    found_.resize(static_cast<size_t>(vocab_size_) + 16);
    const int count = kernels_.collect_above(x, 0, vocab_size_, bound, true, found_.data(), vocab_size_, &next);
    candidates_.clear();
    for (int i = 0; i < count; ++i) candidates_.push_back({x[found_[i]], found_[i]});
    sort_candidates();
    weigh_candidates(maximum);
  }
  if (params.min_p > 0.0) {
    const double bound = params.min_p * weights_[0];
    size_t kept = 1;
    while (kept < candidates_.size() && weights_[kept] >= bound) ++kept;
    candidates_.resize(kept);
  }
}

// The k largest logits (fewer when fewer are allowed), sorted; ties go to the lower id.
void Sampler::select_top(const float* x, int k) {
  candidates_.clear();
  if (k >= vocab_size_ / 4) {
    for (int i = 0; i < vocab_size_; ++i)
      if (x[i] > kLowest) candidates_.push_back({x[i], i});
    sort_candidates();
    if (candidates_.size() > static_cast<size_t>(k)) candidates_.resize(static_cast<size_t>(k));
    return;
  }
  const size_t limit = static_cast<size_t>(k), room = 3 * limit + 256;
  float threshold = kLowest;
  found_.resize(room + 16);
  for (int next = 0; next < vocab_size_;) {
    const int count = kernels_.collect_above(x, next, vocab_size_, threshold, false, found_.data(),
                                             static_cast<int>(room - candidates_.size()), &next);
    for (int i = 0; i < count; ++i) candidates_.push_back({x[found_[i]], found_[i]});
    if (candidates_.size() > limit) {
      std::nth_element(candidates_.begin(), candidates_.begin() + (k - 1), candidates_.end(), comes_before);
      candidates_.resize(limit);
    }
    // Ids ascend, so a later token equal to the worst one kept loses against it: strictly greater is right.
    if (candidates_.size() == limit)
      threshold = std::max_element(candidates_.begin(), candidates_.end(), comes_before)->logit;
  }
  std::sort(candidates_.begin(), candidates_.end(), comes_before);
}

// Most likely first, ties by id; candidates_ comes in ascending id order.
void Sampler::sort_candidates() {
  if (candidates_.size() < 4096) {
    std::sort(candidates_.begin(), candidates_.end(), comes_before);
    return;
  }
  // Stable radix sort: a flat row of 128k tokens would take std::sort ten times as long.
  other_.resize(candidates_.size());
  for (int shift = 0; shift < 33; shift += 11) {
    size_t starts[2048] = {};
    for (const Candidate& c : candidates_) ++starts[descending_key(c.logit) >> shift & 2047u];
    size_t sum = 0;
    for (size_t& start : starts) sum += std::exchange(start, sum);
    for (const Candidate& c : candidates_) other_[starts[descending_key(c.logit) >> shift & 2047u]++] = c;
    candidates_.swap(other_);
  }
}

void Sampler::weigh_candidates(float maximum) {
  const size_t n = candidates_.size();
  values_.resize(n);
  for (size_t i = 0; i < n; ++i) values_[i] = candidates_[i].logit;
  kernels_.exponentials(values_.data(), static_cast<int>(n), maximum, weights_.data(), block_sums_.data());
}

// Keeps the shortest prefix whose mass reaches `wanted`, at least one; false when there is not enough.
bool Sampler::cut_top_p(double wanted) {
  double sum = 0.0;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    sum += weights_[i];
    if (sum >= wanted) {
      candidates_.resize(i + 1);
      return true;
    }
  }
  return false;
}

int32_t Sampler::draw_filtered(double u) const {
  double total = 0.0, sum = 0.0;
  for (size_t i = 0; i < candidates_.size(); ++i) total += weights_[i];
  for (size_t i = 0; i < candidates_.size(); ++i) {
    sum += weights_[i];
    if (sum > u * total) return candidates_[i].token_id;
  }
  return candidates_.back().token_id;
}

double Sampler::sum_row(const float* x, float maximum) {
  kernels_.exponentials(x, vocab_size_, maximum, weights_.data(), block_sums_.data());
  double total = 0.0;
  for (int b = 0; 64 * b < vocab_size_; ++b) total += block_sums_[static_cast<size_t>(b)];
  return total;
}

// Walks the row in id order: by blocks of 64 first, then inside the block where the draw falls.
int32_t Sampler::draw_unfiltered(const float* x, float maximum, double u) {
  const double wanted = u * sum_row(x, maximum);
  double sum = 0.0;
  int begin = 0;
  while (begin + 64 < vocab_size_ && sum + block_sums_[static_cast<size_t>(begin / 64)] <= wanted) {
    sum += block_sums_[static_cast<size_t>(begin / 64)];
    begin += 64;
  }
  int32_t last = -1;
  for (int i = begin; i < vocab_size_; ++i) {
    const double weight = weights_[static_cast<size_t>(i)];
    if (weight == 0.0) continue;
    sum += weight;
    last = i;
    if (sum > wanted) return i;
  }
  if (last >= 0) return last;
  for (int i = begin; i-- > 0;)  // rounding carried the walk past the last possible token
    if (weights_[static_cast<size_t>(i)] > 0.0) return i;
  return -1;
}

void Sampler::add_logprobs(float maximum, int num_logprobs, SampledRow& row) {
  const double log_total = std::log(sum_row(raw_.data(), maximum)) + static_cast<double>(maximum);
  const auto logprob = [&](float x) { return static_cast<double>(x) - log_total; };
  row.has_logprobs = true;
  row.logprob = logprob(raw_[static_cast<size_t>(row.token_id)]);
  if (num_logprobs == 0) return;
  select_top(raw_.data(), num_logprobs);
  for (const Candidate& c : candidates_) row.top.emplace_back(c.token_id, logprob(c.logit));
}

}  // namespace tampu
