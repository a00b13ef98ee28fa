#include "window_scheduler.h"

#include <stdexcept>
#include <string>

namespace ctd {

namespace {

// Rows that the slots can use at most: a larger budget decides the same and costs memory.
std::int64_t useful_rows(const Limits& limits, std::int64_t max_rows, std::int64_t num_slots) {
  const std::int64_t whole = least(limits.window_size, limits.num_nodes);
  return max_rows / num_slots >= whole ? num_slots * whole : max_rows;
}

}  // namespace

WindowScheduler::WindowScheduler(std::int64_t num_samples, const Limits& limits,
                                 std::int64_t max_rows, std::int64_t num_slots, bool is_lockstep)
    : data_(static_cast<std::size_t>(state_size(num_slots, num_samples))),
      accepted_(static_cast<std::size_t>(num_slots)),
      finite_(static_cast<std::size_t>(num_slots)),
      near_(static_cast<std::size_t>(num_slots)) {
  max_rows = useful_rows(limits, max_rows, num_slots);
  rows_.resize(static_cast<std::size_t>(kNumRowColumns * max_rows));
  data_[kNumSamples] = num_samples;
  data_[kNumNodes] = limits.num_nodes;
  data_[kWindowSize] = limits.window_size;
  data_[kFirstLength] = limits.first_length;
  data_[kMaxRoundsLimit] = limits.max_rounds;
  data_[kWindowRatio] = limits.window_ratio;
  data_[kFirstWindow] = limits.first_window;
  data_[kFarStride] = limits.far_stride;
  data_[kMaxRows] = max_rows;
  data_[kNumSlots] = num_slots;
  data_[kLockstep] = is_lockstep;
  schedule_reset(block_, state());
}

std::int64_t WindowScheduler::num_active() const {
  const State view = state();
  std::int64_t count = 0;
  for (std::int64_t s = 0; s < view.num_slots; ++s) count += view.slot(kSlotSample, s) >= 0;
  return count;
}

std::int64_t WindowScheduler::num_waiting() const {
  return state().num_samples - state().header(kNextSample);
}

const Plan& WindowScheduler::plan() {
  if (is_planned_) return plan_;
  const State view = state();
  const Limits limits = view.limits();
  schedule_plan(block_, view);
  plan_ = Plan{};
  std::vector<std::int64_t> entry_of_slot(static_cast<std::size_t>(view.num_slots));
  for (std::int64_t s = 0; s < view.num_slots; ++s) {
    if (view.slot(kSlotSample, s) < 0) continue;
    entry_of_slot[static_cast<std::size_t>(s)] = static_cast<std::int64_t>(plan_.slot.size());
    plan_.slot.push_back(s);
    plan_.sample.push_back(view.slot(kSlotSample, s));
    plan_.start.push_back(view.slot(kSlotStart, s));
    plan_.length.push_back(view.slot(kSlotLength, s));
    plan_.known.push_back(view.slot(kSlotKnown, s));
    plan_.is_new.push_back(view.slot(kSlotAdmittedSample, s) >= 0);
    plan_.dense.push_back(dense_points(view.entry(s), limits, view.slot(kSlotLength, s)));
  }
  const std::int64_t num_rows = view.header(kNumRows);
  const auto column = [&](RowColumn c) {
    return std::vector<std::int64_t>(&view.row(c, 0), &view.row(c, 0) + num_rows);
  };
  plan_.row_slot = column(kRowSlot);
  plan_.row_sample = column(kRowSample);
  plan_.row_node = column(kRowNode);
  plan_.row_entry = column(kRowEntry);
  plan_.row_offset = column(kRowOffset);
  // active entries only: a row's entry is its place among them
  for (std::int64_t& entry : plan_.row_entry) {
    entry = entry_of_slot[static_cast<std::size_t>(entry)];
  }
  is_planned_ = !plan_.slot.empty();
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
                                            const std::vector<std::int64_t>& finite,
                                            const std::vector<std::int64_t>& near) {
  if (!is_planned_) throw std::invalid_argument("step() needs a planned round: call plan() first");
  check(accepted, finite);
  for (std::size_t a = 0; a < plan_.slot.size(); ++a) {
    const std::size_t s = static_cast<std::size_t>(plan_.slot[a]);
    accepted_[s] = accepted[a];
    finite_[s] = finite[a];
    near_[s] = near[a];
  }
  const State view = state();
  schedule_move(block_, view, accepted_.data(), finite_.data(), near_.data());
  is_planned_ = false;
  std::vector<Finished> ended;
  for (std::int64_t s = 0; s < view.num_slots; ++s) {
    const std::int64_t sample = view.slot(kSlotEndedSample, s);
    if (sample >= 0) ended.push_back(finished(sample));
  }
  return ended;
}

Finished WindowScheduler::finished(std::int64_t sample) const {
  const State view = state();
  return {sample,
          view.end(kEndSlot, sample),
          view.end(kEndReason, sample),
          view.end(kEndRounds, sample),
          view.end(kEndEvaluations, sample),
          view.end(kEndStart, sample),
          view.end(kEndKnown, sample)};
}

std::vector<Finished> WindowScheduler::cancel() {
  is_planned_ = false;
  const State view = state();
  std::vector<Finished> ended;
  for (std::int64_t s = 0; s < view.num_slots; ++s) {
    const Entry entry = view.entry(s);
    if (entry.sample < 0) continue;
    view.set_end(entry.sample, s, kCancelled, entry);
    view.set_entry(s, Entry{});
    ended.push_back(finished(entry.sample));
  }
  std::int64_t& next = view.header(kNextSample);
  for (; next < view.num_samples; ++next) {
    view.set_end(next, -1, kCancelled, Entry{});
    ended.push_back(finished(next));
  }
  view.header(kNumFinished) += static_cast<std::int64_t>(ended.size());
  return ended;
}

}  // namespace ctd
