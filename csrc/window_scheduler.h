// The window scheduler on the host. See ctd_engine/scheduling/python.py for what it promises.
#pragma once

#include <cstdint>
#include <vector>

#include "host_block.h"
#include "window_state.h"

namespace ctd {

struct Finished {
  std::int64_t sample, slot, reason, rounds, evaluations, start, known;
};

// One round, as columns; see RoundPlan in ctd_engine/scheduling/plan.py.
struct Plan {
  std::vector<std::int64_t> slot, sample, start, length, known, dense;
  std::vector<bool> is_new;  // whether the entry's sample was admitted now
  std::vector<std::int64_t> row_slot, row_sample, row_node, row_entry, row_offset;
};

class WindowScheduler {
 public:
  WindowScheduler(std::int64_t num_samples, const Limits& limits, std::int64_t max_rows,
                  std::int64_t num_slots, bool is_lockstep);

  // The round to run now; an empty plan when all samples are finished. The same until `step`.
  const Plan& plan();
  // Throws std::invalid_argument, with nothing moved, when the input is out of range.
  std::vector<Finished> step(const std::vector<std::int64_t>& accepted,
                             const std::vector<std::int64_t>& finite,
                             const std::vector<std::int64_t>& near);
  std::vector<Finished> cancel();

  std::int64_t round() const { return state().header(kRound); }
  std::int64_t num_active() const;
  std::int64_t num_waiting() const;
  std::int64_t num_finished() const { return state().header(kNumFinished); }

 private:
  State state() const { return State(data_.data(), rows_.data()); }
  void check(const std::vector<std::int64_t>& accepted,
             const std::vector<std::int64_t>& finite) const;
  Finished finished(std::int64_t sample) const;

  // a view of them is how they are read, too
  mutable std::vector<std::int64_t> data_, rows_;
  std::vector<std::int64_t> accepted_, finite_, near_;  // [num_slots]
  SerialBlock block_;
  bool is_planned_ = false;
  Plan plan_;
};

}  // namespace ctd
