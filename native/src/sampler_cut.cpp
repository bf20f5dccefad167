// Bins of logits, ever narrower, and a guess from a sample; see sampler_cut.h.
#include "tampu/sampler_cut.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tampu {
namespace {

constexpr int kBins = 1024;
constexpr int kGuessBins = 512;
constexpr size_t kSmallPool = 64;   // sorting so many is cheaper than another pass of bins
constexpr double kDeviations = 3.0; // of the guess: one in some hundred is wrong, and found out
constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

Candidate end_of_row() { return {-kInfinity, std::numeric_limits<int32_t>::max(), 0.0}; }

Candidate CutFinder::find(const std::vector<Candidate>& candidates, double wanted, double lowest, double highest) {
  if (candidates.empty()) return end_of_row();
  double before = 0.0;   // mass of what is more likely than everything in the pool
  const std::vector<Candidate>* source = &candidates;
  while (source->size() > kSmallPool && highest > lowest) {
    const double scale = (kBins - 1) / (highest - lowest);
    const auto bin_of = [&](const Candidate& c) {
      return static_cast<int>((highest - static_cast<double>(c.logit)) * scale);
    };
    double mass[kBins] = {};
    for (const Candidate& c : *source) mass[bin_of(c)] += c.weight;
    int bin = 0;
    while (bin + 1 < kBins && before + mass[bin] < wanted) before += mass[bin++];
    if (before + mass[bin] < wanted) return end_of_row();
    size_t count = 0;
    float low = kInfinity, high = -kInfinity;
    if (source == &candidates) pool_.resize(candidates.size());
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
  if (source == &candidates) pool_ = candidates;
  if (highest > lowest) std::sort(pool_.begin(), pool_.end(), comes_before);
  // Where rounding keeps the sum below what the bins had, the last of the pool is the cut.
  size_t last = 0;
  for (before += pool_[0].weight; before < wanted && last + 1 < pool_.size();) before += pool_[++last].weight;
  return pool_[last];
}

double RowSample::mass_up_to(float logit) const {
  double mass = 0.0;
  for (int i = 0; i < count; ++i) mass += logits[i] <= logit ? weights[i] : 0.0;
  return mass * tokens_each;
}

// With `tail` the mass up to a logit and `head` the mass above, the prefix ends where
// share * tail = (1 - share) * head. Both are estimated; the bracket ends where the difference is some standard
// deviations away from zero.
Bracket guess_bracket(const RowSample& sample, double share, double mass_above, const Bracket& outer) {
  float low = kInfinity, high = -kInfinity;
  for (int i = 0; i < sample.count; ++i) {
    const float x = sample.logits[i];
    const bool is_inside = (x > outer.low) & (x <= outer.high);
    low = std::min(low, is_inside ? x : low);
    high = std::max(high, is_inside ? x : high);
  }
  const float scale = static_cast<float>(kGuessBins) / (high - low);
  if (!(high > low) || !(scale > 0.0f) || !std::isfinite(scale)) return outer;   // no such bins
  struct Mass { double sum = 0.0, squares = 0.0; };
  Mass bins[kGuessBins + 2];   // the first is what lies below, the last what lies above and is known exactly
  for (int i = 0; i < sample.count; ++i) {
    const float x = sample.logits[i], inside = std::min(std::max(x, low), high);
    const int place = std::min(static_cast<int>((inside - low) * scale), kGuessBins - 1) + 1;
    Mass& bin = bins[x < low ? 0 : x > high ? kGuessBins + 1 : place];
    const double w = sample.weights[i];
    bin.sum += w;
    bin.squares += w * w;
  }
  Mass tail = bins[0], head;
  for (int b = 1; b <= kGuessBins; ++b) {
    head.sum += bins[b].sum;
    head.squares += bins[b].squares;
  }
  const double rest = 1.0 - share, each = sample.tokens_each;
  Bracket bracket = outer;
  for (int b = 0;; ++b) {
    const float edge = low + static_cast<float>(b) / scale;
    const double excess = each * (share * tail.sum - rest * head.sum) - rest * mass_above;
    const double variance = each * each * (share * share * tail.squares + rest * rest * std::max(head.squares, 0.0));
    const bool is_sure = excess * excess > kDeviations * kDeviations * variance;
    if (is_sure && excess < 0.0) bracket.low = edge;
    if (is_sure && excess > 0.0) bracket.high = std::min(edge, outer.high);
    if ((is_sure && excess > 0.0) || b == kGuessBins) break;
    const Mass& bin = bins[b + 1];
    tail.sum += bin.sum;
    tail.squares += bin.squares;
    head.sum -= bin.sum;
    head.squares -= bin.squares;
  }
  return bracket.low < bracket.high ? bracket : outer;
}

}  // namespace tampu
