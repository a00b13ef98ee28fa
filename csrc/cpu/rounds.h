// The rounds of a run on the CPU: what comes before and after each model call, in one call each.
// The decisions are the scheduler's and the numbers those of the operations in ops.h.
#pragma once

#include <utility>
#include <vector>

#include "ops.h"
#include "window_scheduler.h"

namespace ctd {

// What stays from the first round to the last, and outlives the rounds.
template <class T>
struct RoundParts {
  Ring<T> x, x0, change;      // [S, R, D]; the change's data may be null: no secant slopes
  Ring<T> record, record_x0;  // [B, N + 1, D], their data may be null
  Tables<T> update;
  Tables<T> guess, first_guess;       // the last one's numbers may be null: it is as the others
  const T *input_scale, *model_time;  // [N]
  const T* threshold;                 // [N + 1]
  const Index* seeds;                 // [B], may be null
  const T* noise;                     // [N, B, D] instead, may be null
  Index stride_noise_node, stride_noise_sample;
  bool guesses_noise;
  bool clips;
  T clip;
  Index num_slots, num_samples, num_elements;
};

// The windows of a round, by entry.
struct RoundWindows {
  std::vector<Index> sample, start, length;
};

template <class T>
class Rounds {
 public:
  Rounds(WindowScheduler& scheduler, const RoundParts<T>& parts);

  // Rows of the next round, 0 once all samples have ended.
  Index num_rows() { return static_cast<Index>(scheduler_.plan().row_slot.size()); }
  // Nodes that the windows of the next round have left behind.
  Index num_left_behind();
  // (slot, sample) of those that begin with the next round: x_0 is written before `begin`.
  std::vector<std::pair<Index, Index>> admitted();
  // Guess the points that are new, and write the model's input `copies` times: rows
  // [copies, rows, D], times [copies, rows], and whose rows they are [rows].
  void begin(Index copies, T* rows, T* times, Index* row_sample, Index max_threads);
  // The update from the model's outputs [rows, D]; m_null's data may be null. The samples that end.
  std::vector<Finished> correct(Rows<T> m, Rows<T> m_null, T guidance_scale, Index max_threads);

  const std::vector<RoundWindows>& history() const { return history_; }

 private:
  const Plan& plan();
  void guess(const Plan& plan, const Tables<T>& tables, const std::vector<Index>& count,
             Index max_threads);
  void record(const Plan& plan) const;
  // The noise of steps from `first` on, by entry of the plan.
  StepNoise<T> noise_from(const Plan& plan, const std::vector<Index>& first);
  const Index* seeds_of(const Plan& plan);

  WindowScheduler& scheduler_;
  RoundParts<T> parts_;
  std::vector<RoundWindows> history_;
  // of one round, kept for their memory
  std::vector<Index> count_, first_count_, first_row_, noise_first_, seeds_;
  std::vector<Index> accepted_, finite_;
  std::vector<T> slopes_, partials_;
};

}  // namespace ctd
