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

constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr int kSumBlock = 64;        // of Kernels::sum_exponentials
constexpr double kNearTop = 0.01;    // weight of what top_p looks at first
constexpr size_t kSmallPool = 192;   // sorting so many is cheaper than another pass of bins

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
      block_sums_(static_cast<size_t>(vocab_size) / kSumBlock + 1),
      found_(static_cast<size_t>(vocab_size) + 16) {}

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

// Walks the row in id order: by blocks first, then inside the block where the draw falls.
int32_t Sampler::draw_unfiltered(const float* x, float maximum, double u) {
  const double wanted = u * sum_row(x, maximum);
  double sum = 0.0, weights[kSumBlock];
  int32_t last = -1;
  for (int begin = 0; begin < vocab_size_; begin += kSumBlock) {
    const double block = block_sums_[static_cast<size_t>(begin / kSumBlock)];
    if (begin + kSumBlock < vocab_size_ && sum + block <= wanted) {
      sum += block;
      continue;
    }
    const int count = std::min(kSumBlock, vocab_size_ - begin);
    kernels_.exponentials(x + begin, count, maximum, weights);
    for (int i = 0; i < count; ++i) {
      if (weights[i] == 0.0) continue;
      sum += weights[i];
      last = begin + i;
      if (sum > wanted) return last;
    }
  }
  if (last >= 0) return last;
  for (int i = vocab_size_; i-- > 0;) {  // rounding carried the walk past the last possible token
    kernels_.exponentials(x + i, 1, maximum, weights);
    if (weights[0] > 0.0) return i;
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
    if (has_top_p) keep_mass(params.top_p * candidate_mass(), lowest_candidate(), top);
  } else if (has_top_p) {
    // The mass is that of the whole row. Tokens of less than `least` hold less than 1 - top_p of it together, so the
    // cut is above; on most rows it is already among the few that come near the most likely one.
    const double total = sum_row(x, maximum), wanted = params.top_p * total;
    const double least = std::max((1.0 - params.top_p) * total / vocab_size_, params.min_p);
    float bound = collect(x, top + std::log(std::max(least, kNearTop)));
    weigh(maximum);
    if (least < kNearTop && candidate_mass() < wanted) {
      bound = collect(x, top + std::log(least));
      weigh(maximum);
    }
    keep_mass(wanted, static_cast<double>(bound), top);
  } else {
    collect(x, top + std::log(params.min_p));
    weigh(maximum);
  }
  double total = 0.0, sum = 0.0;
  size_t kept = 0;
  for (const Candidate& c : candidates_) {
    if (c.weight < params.min_p) continue;   // the most likely token weighs 1
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

// All tokens above a bound, with room for its rounding, in id order. Returns what they are above.
float Sampler::collect(const float* x, double bound) {
  const float threshold = std::nextafter(static_cast<float>(bound - 1e-6), kLowest);
  int next = 0;
  const int count = kernels_.collect_above(x, 0, vocab_size_, threshold, false, found_.data(), vocab_size_, &next);
  candidates_.resize(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) candidates_[static_cast<size_t>(i)] = {x[found_[i]], found_[i], 0.0};
  return threshold;
}

double Sampler::candidate_mass() const {
  double mass = 0.0;
  for (const Candidate& c : candidates_) mass += c.weight;
  return mass;
}

double Sampler::lowest_candidate() const {
  float lowest = std::numeric_limits<float>::infinity();
  for (const Candidate& c : candidates_) lowest = std::min(lowest, c.logit);
  return static_cast<double>(lowest);
}

// The k largest logits (fewer when fewer are allowed) in id order; ties go to the lower id.
void Sampler::collect_top(const float* x, int k) {
  candidates_.clear();
  const size_t limit = static_cast<size_t>(k), room = 3 * limit + 256;
  if (room >= static_cast<size_t>(vocab_size_)) {
    collect(x, -std::numeric_limits<double>::max());
    if (candidates_.size() <= limit) return;
    float highest = kLowest;
    for (Candidate& c : candidates_) {
      c.weight = 1.0;   // counted, not weighed
      highest = std::max(highest, c.logit);
    }
    keep_mass(static_cast<double>(k), lowest_candidate(), static_cast<double>(highest));
    return;
  }
  float threshold = kLowest;
  for (int next = 0; next < vocab_size_;) {
    const int count = kernels_.collect_above(x, next, vocab_size_, threshold, false, found_.data(),
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

// Keeps the shortest prefix of candidates_, most likely first, whose mass reaches `wanted` (all, when all do not); at
// least one. The cut is looked for in ever narrower bins of logits, so the time is linear whatever the row.
// `lowest` and `highest` bound the logits.
void Sampler::keep_mass(double wanted, double lowest, double highest) {
  constexpr int kBins = 1024;
  double before = 0.0;   // mass of what is more likely than everything in the pool
  const std::vector<Candidate>* source = &candidates_;
  while (source->size() > kSmallPool && highest > lowest) {
    const double scale = (kBins - 1) / (highest - lowest);
    const auto bin_of = [&](const Candidate& c) {
      return static_cast<int>((highest - static_cast<double>(c.logit)) * scale);
    };
    double mass[kBins] = {};
    for (const Candidate& c : *source) mass[bin_of(c)] += c.weight;
    int bin = 0;
    while (bin + 1 < kBins && before + mass[bin] < wanted) before += mass[bin++];
    if (before + mass[bin] < wanted) return;
    size_t count = 0;
    pool_.resize(source->size());
    float low = std::numeric_limits<float>::infinity(), high = kLowest;
    for (const Candidate& c : *source) {
      if (bin_of(c) != bin) continue;
      pool_[count++] = c;
      low = std::min(low, c.logit);
      high = std::max(high, c.logit);
    }
    pool_.resize(count);
    lowest = static_cast<double>(low);
    highest = static_cast<double>(high);
    source = &pool_;
  }
  if (source == &candidates_) pool_ = candidates_;
  if (highest > lowest) std::sort(pool_.begin(), pool_.end(), comes_before);
  // Where rounding keeps the sum below what the bins had, the last of the pool is the cut.
  size_t last = 0;
  for (before += pool_[0].weight; before < wanted && last + 1 < pool_.size();) before += pool_[++last].weight;
  const Candidate cut = pool_[last];
  std::erase_if(candidates_, [&](const Candidate& c) { return comes_before(cut, c); });
}

double Sampler::sum_row(const float* x, float maximum) {
  kernels_.sum_exponentials(x, vocab_size_, maximum, block_sums_.data());
  double total = 0.0;
  for (int b = 0; kSumBlock * b < vocab_size_; ++b) total += block_sums_[static_cast<size_t>(b)];
  return total;
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
