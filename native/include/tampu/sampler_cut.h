// Where a filter cuts a row: every filter of the sampler keeps the tokens up to some token in the order (logit
// descending, id ascending), and these functions find it without sorting the row. Knows no parameters and no draws.
#pragma once
#include <cstdint>
#include <vector>

namespace tampu {

// A token that a filter may keep. `weight` is exp(logit - maximum).
struct Candidate { float logit; int32_t token_id; double weight; };

inline bool comes_before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token_id < b.token_id);
}

// Where every candidate is kept: nothing comes after it.
Candidate end_of_row();

class CutFinder {
 public:
  // The last of the shortest prefix of `candidates` (any order), most likely first, whose mass reaches `wanted`;
  // end_of_row() when all of them do not reach it. Linear in their number. `lowest` and
  // `highest` bound their logits.
  Candidate find(const std::vector<Candidate>& candidates, double wanted, double lowest, double highest);

 private:
  std::vector<Candidate> pool_;  // those among which the cut still is
};

// Logits, low < x <= high.
struct Bracket { float low, high; };

// Logits of a row taken without looking, and their weights. Each stands for the same number of tokens.
struct RowSample {
  const float* logits;
  const double* weights;
  int count;
  double tokens_each;
  double mass_up_to(float logit) const;   // estimated
};

// Logits between which the shortest prefix that holds `share` of the row's mass very probably ends, inside `outer`.
// `mass_above` is the mass above outer.high, known exactly.
Bracket guess_bracket(const RowSample& sample, double share, double mass_above, const Bracket& outer);

}  // namespace tampu
