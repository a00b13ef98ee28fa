#include "window_scheduler.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

namespace ctd {

WindowScheduler::WindowScheduler(std::int64_t num_samples, Limits limits, std::int64_t max_rows,
                                 std::int64_t num_slots, bool lockstep)
    : num_samples_(num_samples),
      limits_(limits),
      max_rows_(max_rows),
      lockstep_(lockstep),
      slots_(static_cast<std::size_t>(num_slots)) {}

std::int64_t WindowScheduler::num_active() const {
  return std::count_if(slots_.begin(), slots_.end(), [](const Entry& e) { return e.sample >= 0; });
}

void WindowScheduler::admit() {
  for (Entry& entry : slots_) {
    if (entry.sample < 0 && next_sample_ < num_samples_) {
      entry = Entry{};
      entry.sample = next_sample_++;
    }
  }
}

const Plan& WindowScheduler::plan() {
  if (is_planned_) return plan_;
  admit();
  plan_ = Plan{};
  std::vector<std::int64_t> wanted;
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    if (slots_[slot].sample < 0) continue;
    plan_.slot.push_back(static_cast<std::int64_t>(slot));
    wanted.push_back(wanted_rows(slots_[slot], limits_));
  }
  if (wanted.empty()) return plan_;
  plan_.length.resize(wanted.size());
  share_rows(wanted.data(), static_cast<std::int64_t>(wanted.size()), max_rows_, round_,
             plan_.length.data());
  for (std::size_t a = 0; a < wanted.size(); ++a) {
    Entry& entry = slots_[static_cast<std::size_t>(plan_.slot[a])];
    open_window(entry, plan_.length[a]);
    plan_.sample.push_back(entry.sample);
    plan_.start.push_back(entry.start);
    plan_.known.push_back(entry.known);
    for (std::int64_t offset = 0; offset < entry.length; ++offset) {
      plan_.row_slot.push_back(plan_.slot[a]);
      plan_.row_sample.push_back(entry.sample);
      plan_.row_node.push_back(entry.start + offset);
      plan_.row_entry.push_back(static_cast<std::int64_t>(a));
      plan_.row_offset.push_back(offset);
    }
  }
  is_planned_ = true;
  return plan_;
}

void WindowScheduler::check(const std::vector<std::int64_t>& accepted,
                            const std::vector<std::int64_t>& finite) const {
  for (std::size_t a = 0; a < plan_.slot.size(); ++a) {
    const std::string index = "[" + std::to_string(a) + "]";
    if (finite[a] < 0 || finite[a] > plan_.length[a]) {
      throw std::invalid_argument("finite" + index + " must be in [0, " +
                                  std::to_string(plan_.length[a]) + "], got " +
                                  std::to_string(finite[a]));
    }
    if (finite[a] > 0 && (accepted[a] < 1 || accepted[a] > finite[a])) {
      throw std::invalid_argument("accepted" + index +
                                  " must be in [1, finite = " + std::to_string(finite[a]) +
                                  "], got " + std::to_string(accepted[a]));
    }
  }
}

std::vector<Finished> WindowScheduler::step(const std::vector<std::int64_t>& accepted,
                                            const std::vector<std::int64_t>& finite) {
  if (!is_planned_) throw std::invalid_argument("step() needs a planned round: call plan() first");
  check(accepted, finite);
  std::int64_t together = std::numeric_limits<std::int64_t>::max();
  for (std::size_t a = 0; a < finite.size(); ++a) {
    if (finite[a] > 0) together = std::min(together, accepted[a]);
  }
  is_planned_ = false;
  round_ += 1;
  std::vector<Finished> finished;
  for (std::size_t a = 0; a < finite.size(); ++a) {
    const std::int64_t slot = plan_.slot[a];
    const Reason reason = move_window(slots_[static_cast<std::size_t>(slot)],
                                      lockstep_ ? together : accepted[a], finite[a], limits_);
    if (reason != kRunning) finished.push_back(finish(slot, reason));
  }
  return finished;
}

Finished WindowScheduler::finish(std::int64_t slot, Reason reason) {
  Entry& entry = slots_[static_cast<std::size_t>(slot)];
  const Finished result{entry.sample,      slot,        reason,     entry.rounds,
                        entry.evaluations, entry.start, entry.known};
  entry = Entry{};
  num_finished_ += 1;
  return result;
}

std::vector<Finished> WindowScheduler::cancel() {
  is_planned_ = false;
  std::vector<Finished> finished;
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    if (slots_[slot].sample >= 0) {
      finished.push_back(finish(static_cast<std::int64_t>(slot), kCancelled));
    }
  }
  for (; next_sample_ < num_samples_; ++next_sample_) {
    finished.push_back(Finished{next_sample_, -1, kCancelled, 0, 0, 0, 0});
    num_finished_ += 1;
  }
  return finished;
}

}  // namespace ctd
