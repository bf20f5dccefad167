// One row of logits to one token; see sampler.h.
#include "tampu/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

namespace tampu {
namespace {

constexpr float kHighest = std::numeric_limits<float>::infinity(), kLowest = -kHighest;
constexpr float kLowestFinite = std::numeric_limits<float>::lowest();
constexpr double kEverything = std::numeric_limits<double>::infinity();   // more mass than there is
constexpr double kNearTop = 0.01;    // weight of what a filter of mass looks at first,
constexpr int kFew = 2048;           // if it is not more tokens than this
constexpr int kSampleStride = 32;    // of the tokens by which the cut is guessed
constexpr int kLargeRow = 8192;      // for which guessing pays

uint64_t finalise(uint64_t z) {
  z ^= z >> 30;
  z *= 0xBF58476D1CE4E5B9ull;
  z ^= z >> 27;
  z *= 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

void check_id(int32_t token_id, int vocab_size) {
  if (token_id < 0 || token_id >= vocab_size)
    throw std::invalid_argument("token id " + std::to_string(token_id) + " is not in a vocabulary of " +
                                std::to_string(vocab_size));
}

// A float below (above) a bound, with room for the rounding of weights.
float below(double bound) { return std::nextafter(static_cast<float>(bound - 1e-6), kLowest); }
float above(double bound) { return std::nextafter(static_cast<float>(bound + 1e-6), kHighest); }

double sum_of(const std::vector<double>& values) {
  double sums[4] = {};   // four chains of additions are faster than one
  size_t i = 0;
  for (; i + 4 <= values.size(); i += 4)
    for (size_t lane = 0; lane < 4; ++lane) sums[lane] += values[i + lane];
  for (; i < values.size(); ++i) sums[0] += values[i];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

double mass_of(const std::vector<Candidate>& candidates) {
  double mass = 0.0;
  for (const Candidate& c : candidates) mass += c.weight;
  return mass;
}

double lowest_of(const std::vector<Candidate>& candidates) {
  float lowest = kHighest;
  for (const Candidate& c : candidates) lowest = std::min(lowest, c.logit);
  return static_cast<double>(lowest);
}

}  // namespace

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
      block_sums_((static_cast<size_t>(vocab_size) + kSumBlock - 1) / kSumBlock),
      kept_sums_(block_sums_.size()),
      found_(static_cast<size_t>(vocab_size) + 64) {}

SampledRow Sampler::sample(float* logits, const SamplingState& state, int64_t position, const uint8_t* mask,
                           size_t mask_bytes) {
  const SamplingParams& params = state.params();
  SampledRow row;
  const RowSummary raw = kernels_.summarize(logits, vocab_size_);
  if (raw.has_nan || !std::isfinite(raw.maximum)) return row;
  if (params.num_logprobs >= 0) raw_.assign(logits, logits + vocab_size_);

  RowSummary adjusted = raw;
  if (mask != nullptr || state.has_penalties() || !params.logit_bias.empty()) {
    state.apply_bias_and_penalties(logits);
    if (mask != nullptr) kernels_.apply_mask(logits, vocab_size_, mask, mask_bytes);
    adjusted = kernels_.summarize(logits, vocab_size_);
    if (adjusted.has_nan || !std::isfinite(adjusted.maximum)) return row;
  }

  // So cold that the scaled logits overflow: the limit is greedy.
  const float maximum = params.temperature > 0.0f ? adjusted.maximum / params.temperature : 0.0f;
  if (params.temperature == 0.0f || !std::isfinite(maximum)) {
    row.token_id = kernels_.first_equal(logits, vocab_size_, adjusted.maximum);
  } else {
    if (params.temperature != 1.0f) kernels_.divide(logits, vocab_size_, params.temperature);
    const double u = uniform(params.seed, static_cast<uint64_t>(position));
    const bool is_filtered = params.top_k > 0 || params.top_p < 1.0 || params.min_p > 0.0;
    row.token_id = is_filtered ? draw_filtered(logits, maximum, params, u) : draw_unfiltered(logits, maximum, u);
  }
  if (params.num_logprobs >= 0) add_logprobs(raw.maximum, params.num_logprobs, row);
  return row;
}

int32_t Sampler::draw_unfiltered(const float* x, float maximum, double u) {
  const double wanted = u * sum_row(x, maximum);
  return walk_blocks(x, maximum, block_sums_, wanted, [](int32_t, double) { return true; });
}

// The token in id order at which the mass of what is kept passes `wanted`: by blocks first, whose sums are given, then
// inside the block where the draw falls.
template <typename IsKept>
int32_t Sampler::walk_blocks(const float* x, float maximum, const std::vector<double>& sums, double wanted,
                             IsKept is_kept) {
  double sum = 0.0, weights[kSumBlock];
  int32_t last = -1;
  for (int begin = 0; begin < vocab_size_; begin += kSumBlock) {
    const double block = sums[static_cast<size_t>(begin / kSumBlock)];
    if (begin + kSumBlock < vocab_size_ && sum + block <= wanted) {
      sum += block;
      continue;
    }
    const int count = std::min(kSumBlock, vocab_size_ - begin);
    kernels_.exponentials(x + begin, count, maximum, weights);
    for (int i = 0; i < count; ++i) {
      if (weights[i] == 0.0 || !is_kept(begin + i, weights[i])) continue;
      sum += weights[i];
      last = begin + i;
      if (sum > wanted) return last;
    }
  }
  if (last >= 0) return last;
  for (int i = vocab_size_; i-- > 0;) {  // rounding carried the walk past the last possible token
    kernels_.exponentials(x + i, 1, maximum, weights);
    if (weights[0] > 0.0 && is_kept(i, weights[0])) return i;
  }
  return -1;
}

// Every filter keeps the tokens up to a cut in the order (logit descending, id ascending), so nothing is sorted but the
// few around the cut. The draw walks what is kept in id order.
int32_t Sampler::draw_filtered(const float* x, float maximum, const SamplingParams& params, double u) {
  const bool has_top_p = params.top_p < 1.0;
  const double top = static_cast<double>(maximum);
  if (params.top_k > 0) {
    collect_top(x, params.top_k);
    weigh(maximum);
    if (has_top_p) cut_candidates(params.top_p * mass_of(candidates_), lowest_of(candidates_), top);
    return draw_candidates(params.min_p, u);
  }
  // On most rows the cut is among the few tokens that come near the most likely one; where min_p is as high, it is.
  const double near_weight = has_top_p ? std::max(params.min_p, kNearTop) : params.min_p;
  const float near = below(top + std::log(near_weight));
  const bool are_few = collect(x, {near, kHighest}, kFew), is_near = are_few && near_weight == params.min_p;
  if (are_few) weigh(maximum);
  if (is_near && !has_top_p) return draw_candidates(params.min_p, u);
  const double near_mass = are_few ? mass_of(candidates_) : 0.0;
  if (!is_near && vocab_size_ >= kLargeRow) {
    const RowSample sample = sample_row(x, maximum);
    if (!are_few || near_mass < params.top_p * (near_mass + sample.mass_up_to(near))) {
      const float floor = params.min_p > 0.0 ? below(top + std::log(params.min_p)) : kLowestFinite;
      const Bracket outer{floor, are_few ? near : kHighest};
      Bracket bracket = guess_bracket(sample, std::min(params.top_p, 1.0), near_mass, outer);
      if (params.min_p > 0.0) bracket.high = std::max(bracket.high, above(top + std::log(params.min_p)));
      const int32_t token_id = draw_bracketed(x, maximum, bracket, floor, params, u);
      return token_id >= 0 ? token_id : draw_from_all(x, maximum, params, u);
    }
  }
  if (are_few) {
    const double wanted = params.top_p * sum_row(x, maximum);
    if (is_near || near_mass >= wanted) {
      cut_candidates(wanted, static_cast<double>(near), top);
      return draw_candidates(params.min_p, u);
    }
  }
  return draw_from_all(x, maximum, params, u);
}

// The obvious way: among all tokens that could be kept.
int32_t Sampler::draw_from_all(const float* x, float maximum, const SamplingParams& params, double u) {
  const double top = static_cast<double>(maximum);
  double wanted = kEverything, least = params.min_p;
  if (params.top_p < 1.0) {
    // Tokens of less than 1 - top_p of the mean weight hold less than 1 - top_p of the mass: the cut is above.
    const double total = sum_row(x, maximum);
    wanted = params.top_p * total;
    least = std::max((1.0 - params.top_p) * total / vocab_size_, params.min_p);
  }
  const float floor = below(top + std::log(least));
  collect(x, {floor, kHighest}, vocab_size_);
  weigh(maximum);
  cut_candidates(wanted, static_cast<double>(floor), top);
  return draw_candidates(params.min_p, u);
}

// What lies above the bracket is summed, not looked at. -1 when the cut is not in the bracket, nor below its end where
// that is the floor under which nothing may be kept.
int32_t Sampler::draw_bracketed(const float* x, float maximum, const Bracket& bracket, float floor,
                                const SamplingParams& params, double u) {
  kernels_.sum_exponentials_above(x, vocab_size_, maximum, bracket.high, block_sums_.data(), kept_sums_.data());
  const double wanted = params.top_p < 1.0 ? params.top_p * sum_of(block_sums_) : kEverything;
  const double above = sum_of(kept_sums_);
  if (above > 0.0 && above >= wanted) return -1;
  collect(x, bracket, vocab_size_);
  weigh(maximum);
  if (bracket.low > floor && above + mass_of(candidates_) < wanted) return -1;
  const Candidate cut = cut_finder_.find(candidates_, wanted - above, static_cast<double>(bracket.low),
                                         static_cast<double>(std::min(bracket.high, maximum)));
  // Half of the bracket is kept, in no order, so: no branches. Where rounding puts the cut at the end of the row, what
  // lies below the bracket is dropped all the same.
  const auto is_in = [&](float logit, int32_t token_id, double weight) {
    const bool is_up_to_cut = (logit > cut.logit) | ((logit == cut.logit) & (token_id <= cut.token_id));
    return is_up_to_cut & (logit > bracket.low) & (weight >= params.min_p);
  };
  for (const Candidate& c : candidates_)
    kept_sums_[static_cast<size_t>(c.token_id / kSumBlock)] += is_in(c.logit, c.token_id, c.weight) ? c.weight : 0.0;
  return walk_blocks(x, maximum, kept_sums_, u * sum_of(kept_sums_),
                     [&](int32_t token_id, double weight) { return is_in(x[token_id], token_id, weight); });
}

// Draws from candidates_ those of at least min_p times the weight of the most likely one, which weighs 1.
int32_t Sampler::draw_candidates(double min_p, double u) {
  double total = 0.0, sum = 0.0;
  size_t kept = 0;
  for (const Candidate& c : candidates_) {
    if (c.weight < min_p) continue;
    total += c.weight;
    candidates_[kept++] = c;
  }
  for (size_t i = 0; i < kept; ++i) {
    sum += candidates_[i].weight;
    if (sum > u * total) return candidates_[i].token_id;
  }
  while (kept > 1 && candidates_[kept - 1].weight == 0.0) --kept;
  return candidates_[kept - 1].token_id;
}

RowSample Sampler::sample_row(const float* x, float maximum) {
  const int count = vocab_size_ / kSampleStride;
  values_.resize(static_cast<size_t>(count));
  weights_.resize(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) values_[static_cast<size_t>(i)] = x[i * kSampleStride + kSampleStride / 2];
  kernels_.exponentials(values_.data(), count, maximum, weights_.data());
  return {values_.data(), weights_.data(), count, static_cast<double>(vocab_size_) / count};
}

// The tokens of a bracket in id order; false, and not all of them, when there are more than `limit`.
bool Sampler::collect(const float* x, const Bracket& bracket, int limit) {
  int next = 0;
  const int count = kernels_.collect_between(x, 0, vocab_size_, bracket.low, bracket.high, found_.data(), limit, &next);
  candidates_.resize(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) candidates_[static_cast<size_t>(i)] = {x[found_[i]], found_[i], 0.0};
  return next == vocab_size_;
}

// The k largest logits (fewer when fewer are allowed) in id order; ties go to the lower id.
void Sampler::collect_top(const float* x, int k) {
  candidates_.clear();
  const size_t limit = static_cast<size_t>(k), room = 3 * limit + 256;
  if (room >= static_cast<size_t>(vocab_size_)) {
    collect(x, {kLowest, kHighest}, vocab_size_);
    if (candidates_.size() <= limit) return;
    float highest = kLowest;
    for (Candidate& c : candidates_) {
      c.weight = 1.0;   // counted, not weighed
      highest = std::max(highest, c.logit);
    }
    cut_candidates(static_cast<double>(k), lowest_of(candidates_), static_cast<double>(highest));
    return;
  }
  float threshold = kLowest;
  for (int next = 0; next < vocab_size_;) {
    const int count = kernels_.collect_between(x, next, vocab_size_, threshold, kHighest, found_.data(),
                                               static_cast<int>(room - candidates_.size()), &next);
    for (int i = 0; i < count; ++i) candidates_.push_back({x[found_[i]], found_[i], 0.0});
    if (candidates_.size() > limit) {
      std::nth_element(candidates_.begin(), candidates_.begin() + (k - 1), candidates_.end(), comes_before);
      candidates_.resize(limit);
    }
    // Ids ascend, so a later token equal to the worst one kept loses against it: strictly greater is right.
    if (candidates_.size() == limit)
      threshold = std::max_element(candidates_.begin(), candidates_.end(), comes_before)->logit;
  }
  std::sort(candidates_.begin(), candidates_.end(),
            [](const Candidate& a, const Candidate& b) { return a.token_id < b.token_id; });
}

void Sampler::weigh(float maximum) {
  const size_t n = candidates_.size();
  values_.resize(n);
  weights_.resize(n);
  for (size_t i = 0; i < n; ++i) values_[i] = candidates_[i].logit;
  kernels_.exponentials(values_.data(), static_cast<int>(n), maximum, weights_.data());
  for (size_t i = 0; i < n; ++i) candidates_[i].weight = weights_[i];
}

// Keeps the shortest prefix of candidates_, most likely first, whose mass reaches `wanted`.
void Sampler::cut_candidates(double wanted, double lowest, double highest) {
  const Candidate cut = cut_finder_.find(candidates_, wanted, lowest, highest);
  std::erase_if(candidates_, [&](const Candidate& c) { return comes_before(cut, c); });
}

double Sampler::sum_row(const float* x, float maximum) {
  kernels_.sum_exponentials(x, vocab_size_, maximum, block_sums_.data());
  return sum_of(block_sums_);
}

void Sampler::add_logprobs(float maximum, int num_logprobs, SampledRow& row) {
  const double log_total = std::log(sum_row(raw_.data(), maximum)) + static_cast<double>(maximum);
  const auto logprob = [&](float x) { return static_cast<double>(x) - log_total; };
  row.has_logprobs = true;
  row.logprob = logprob(raw_[static_cast<size_t>(row.token_id)]);
  if (num_logprobs == 0) return;
  collect_top(raw_.data(), num_logprobs);
  std::sort(candidates_.begin(), candidates_.end(), comes_before);
  for (const Candidate& c : candidates_) row.top.emplace_back(c.token_id, logprob(c.logit));
}

}  // namespace tampu
