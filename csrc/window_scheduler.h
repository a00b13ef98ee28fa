// The window scheduler on the host. See ctd_engine/scheduling/python.py for what it promises.
#pragma once

#include <cstdint>
#include <vector>

#include "window_policy.h"

namespace ctd {

struct Finished {
  std::int64_t sample, slot, reason, rounds, evaluations, start, known;
};

// One round, as columns; see RoundPlan in ctd_engine/scheduling/plan.py.
struct Plan {
  std::vector<std::int64_t> slot, sample, start, length, known;
  std::vector<std::int64_t> row_slot, row_sample, row_node, row_entry, row_offset;
};

class WindowScheduler {
 public:
  WindowScheduler(std::int64_t num_samples, Limits limits, std::int64_t max_rows,
                  std::int64_t num_slots, bool lockstep);

  // The round to run now; an empty plan when all samples are finished. The same until `step`.
  const Plan& plan();
  // Throws std::invalid_argument, with nothing moved, when the input is out of range.
  std::vector<Finished> step(const std::vector<std::int64_t>& accepted,
                             const std::vector<std::int64_t>& finite);
  std::vector<Finished> cancel();

  std::int64_t round() const { return round_; }
  std::int64_t num_active() const;
  std::int64_t num_waiting() const { return num_samples_ - next_sample_; }
  std::int64_t num_finished() const { return num_finished_; }

 private:
  void admit();
  void check(const std::vector<std::int64_t>& accepted,
             const std::vector<std::int64_t>& finite) const;
  Finished finish(std::int64_t slot, Reason reason);

  std::int64_t num_samples_;
  Limits limits_;
  std::int64_t max_rows_;
  bool lockstep_;
  std::vector<Entry> slots_;  // a free slot holds sample -1
  std::int64_t next_sample_ = 0;
  std::int64_t num_finished_ = 0;
  std::int64_t round_ = 0;
  bool is_planned_ = false;
  Plan plan_;
};

}  // namespace ctd
