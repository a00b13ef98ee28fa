// The whole scheduling decision, written once: by one host thread, several, or a CUDA block.
//
// A Block has rank(), size(), sync(), min(value), and exclusive_sum(value) -> Sum: the sum over
// lower ranks and over all. All are collective but rank() and size(), and sum and min are barriers.
// A phase ends with a barrier, so that the next may read what any thread wrote.
#pragma once

#include <cstdint>

#include "window_policy.h"
#include "window_state.h"

namespace ctd {

constexpr std::int64_t kMost = INT64_MAX;

struct Sum {
  std::int64_t before, total;
};

struct Range {
  std::int64_t begin, end;
};

// The items of one thread: neighbours, so that the order of threads is the order of items.
template <class Block>
CTD_HOST_DEVICE Range own_items(Block& block, std::int64_t count) {
  const std::int64_t share = (count + block.size() - 1) / block.size();
  return {least(block.rank() * share, count), least((block.rank() + 1) * share, count)};
}

// Rows of all slots if none has more than `level`.
template <class Block>
CTD_HOST_DEVICE std::int64_t rows_at_level(Block& block, const State& state, Range own,
                                           std::int64_t level) {
  std::int64_t rows = 0;
  for (std::int64_t s = own.begin; s < own.end; ++s) {
    rows += least(state.slot(kSlotLength, s), level);
  }
  return block.exclusive_sum(rows).total;
}

// Max-min fairness: the highest level at which everyone's min(wanted, level) fits the budget.
template <class Block>
CTD_HOST_DEVICE std::int64_t fair_level(Block& block, const State& state, Range own) {
  // an equal share always fits
  std::int64_t low = state.max_rows / state.header(kNumActive);
  std::int64_t high = least(state.header(kWindowSize), state.header(kNumNodes));
  while (low < high) {
    const std::int64_t level = (low + high + 1) / 2;
    if (rows_at_level(block, state, own, level) <= state.max_rows)
      low = level;
    else
      high = level - 1;
  }
  return low;
}

// Share the budget at the fair level; the remainder goes a row each from entry `turn` mod count.
// Each slot's length holds the rows that it wants, and then those that it gets.
template <class Block>
CTD_HOST_DEVICE void share_rows(Block& block, const State& state, Range own, std::int64_t turn) {
  if (rows_at_level(block, state, own, kMost) <= state.max_rows) return;
  const std::int64_t level = fair_level(block, state, own);
  const std::int64_t left = state.max_rows - rows_at_level(block, state, own, level);
  const std::int64_t first = turn % state.header(kNumActive);
  std::int64_t active = 0, hungry = 0, hungry_before_first = 0;
  for (std::int64_t s = own.begin; s < own.end; ++s) active += state.slot(kSlotSample, s) >= 0;
  std::int64_t index = block.exclusive_sum(active).before;
  for (std::int64_t s = own.begin; s < own.end; ++s) {
    const bool is_hungry = state.slot(kSlotLength, s) > level;
    hungry += is_hungry;
    hungry_before_first += is_hungry && index < first;
    index += state.slot(kSlotSample, s) >= 0;
  }
  const Sum hungry_sum = block.exclusive_sum(hungry);
  const std::int64_t skipped = block.exclusive_sum(hungry_before_first).total;
  std::int64_t place = hungry_sum.before - skipped;
  for (std::int64_t s = own.begin; s < own.end; ++s) {
    std::int64_t& length = state.slot(kSlotLength, s);
    if (length <= level) continue;
    // those before the turn come last
    const std::int64_t position = place < 0 ? place + hungry_sum.total : place;
    length = position < left ? level + 1 : level;
    ++place;
  }
}

// Waiting samples take the free slots in order; every length becomes the rows that are wanted.
template <class Block>
CTD_HOST_DEVICE void admit(Block& block, const State& state, Range own) {
  const Limits limits = state.limits();
  std::int64_t free = 0;
  for (std::int64_t s = own.begin; s < own.end; ++s) free += state.slot(kSlotSample, s) < 0;
  const Sum free_sum = block.exclusive_sum(free);
  const std::int64_t next_sample = state.header(kNextSample);
  std::int64_t candidate = next_sample + free_sum.before;
  for (std::int64_t s = own.begin; s < own.end; ++s) {
    std::int64_t admitted = -1;
    if (state.slot(kSlotSample, s) < 0 && candidate < state.num_samples) {
      admitted = candidate++;
      state.set_entry(s, new_entry(admitted, limits));
    }
    state.slot(kSlotAdmittedSample, s) = admitted;
    const Entry entry = state.entry(s);
    state.slot(kSlotLength, s) =
        entry.sample < 0 ? 0 : rows_of(entry, limits, wanted_length(entry, limits));
  }
  block.sync();
  if (block.rank() == 0) {
    const std::int64_t num_admitted = least(free_sum.total, state.num_samples - next_sample);
    state.header(kNextSample) = next_sample + num_admitted;
    state.header(kNumActive) = state.num_slots - free_sum.total + num_admitted;
  }
  block.sync();
}

// The slot of a row: the last one whose first row isn't after it. Rows are spread over threads,
// because one window may hold most of them.
CTD_HOST_DEVICE inline std::int64_t slot_of_row(const State& state, std::int64_t r) {
  std::int64_t low = 0, high = state.num_slots - 1;
  while (low < high) {
    const std::int64_t middle = (low + high + 1) / 2;
    if (state.slot(kSlotFirstRow, middle) <= r)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

template <class Block>
CTD_HOST_DEVICE void write_rows(Block& block, const State& state) {
  const std::int64_t num_rows = state.header(kNumRows);
  const Limits limits = state.limits();
  std::int64_t s = 0, first_row = 0, end_row = 0, length = 0, dense = 0;
  for (std::int64_t r = block.rank(); r < num_rows; r += block.size()) {
    if (r >= end_row) {
      s = slot_of_row(state, r);
      first_row = state.slot(kSlotFirstRow, s);
      length = state.slot(kSlotLength, s);
      dense = dense_points(state.entry(s), limits, length);
      end_row = first_row + rows_of(state.entry(s), limits, length);
    }
    const std::int64_t offset = offset_of(r - first_row, length, dense, limits.far_stride);
    state.set_row(r, s, state.slot(kSlotSample, s), state.slot(kSlotStart, s), offset);
  }
  // padding is a valid row, the first node of the first sample
  for (std::int64_t r = num_rows + block.rank(); r < state.max_rows; r += block.size()) {
    state.set_row(r, 0, 0, 0, 0);
  }
}

// The next round: admit, share the budget, open the windows and list their rows.
template <class Block>
CTD_HOST_DEVICE void schedule_plan(Block& block, const State& state) {
  const Range own = own_items(block, state.num_slots);
  admit(block, state, own);
  share_rows(block, state, own, state.header(kRound));
  const Limits limits = state.limits();
  std::int64_t rows = 0;
  for (std::int64_t s = own.begin; s < own.end; ++s) {
    Entry entry = state.entry(s);
    if (entry.sample < 0) continue;
    open_window(entry, length_of(entry, limits, entry.length));
    state.set_entry(s, entry);
    rows += rows_of(entry, limits, entry.length);
  }
  const Sum row_sum = block.exclusive_sum(rows);
  std::int64_t first_row = row_sum.before;
  for (std::int64_t s = own.begin; s < own.end; ++s) {
    state.slot(kSlotFirstRow, s) = first_row;
    const Entry entry = state.entry(s);
    if (entry.sample >= 0) first_row += rows_of(entry, limits, entry.length);
  }
  if (block.rank() == 0) state.header(kNumRows) = row_sum.total;
  block.sync();
  write_rows(block, state);
}

// The least advance of all samples that did not diverge.
template <class Block>
CTD_HOST_DEVICE std::int64_t least_advance(Block& block, const State& state, Range own,
                                           const std::int64_t* accepted,
                                           const std::int64_t* finite) {
  const Limits limits = state.limits();
  std::int64_t advance = kMost;
  for (std::int64_t s = own.begin; s < own.end; ++s) {
    const Entry entry = state.entry(s);
    if (entry.length == 0) continue;
    const std::int64_t num_finite = clamped(finite[s], 0, entry.length);
    if (num_finite == 0) continue;
    const std::int64_t most = least(num_finite, dense_points(entry, limits, entry.length));
    advance = least(advance, clamped(accepted[s], 1, most));
  }
  return block.min(advance);
}

// Move every window that had rows, record the samples that ended and free their slots. Values out
// of range are clamped, and those of slots without rows ignored: a device can't refuse them.
// Without `near` it is what was accepted.
template <class Block>
CTD_HOST_DEVICE void schedule_move(Block& block, const State& state, const std::int64_t* accepted,
                                   const std::int64_t* finite, const std::int64_t* near) {
  const Range own = own_items(block, state.num_slots);
  const Limits limits = state.limits();
  const bool is_lockstep = state.header(kLockstep) != 0;
  const std::int64_t together =
      is_lockstep ? least_advance(block, state, own, accepted, finite) : 0;
  std::int64_t num_ended = 0;
  for (std::int64_t s = own.begin; s < own.end; ++s) {
    state.set_ended(s, -1, kRunning, 0);
    Entry entry = state.entry(s);
    if (entry.length == 0) continue;
    const std::int64_t num_finite = clamped(finite[s], 0, entry.length);
    const std::int64_t most = least(num_finite, dense_points(entry, limits, entry.length));
    const std::int64_t advance = is_lockstep ? together : clamped(accepted[s], 1, most);
    const std::int64_t still = clamped(near == nullptr ? accepted[s] : near[s], 1, entry.length);
    const Reason reason = move_window(entry, advance, num_finite, still, limits);
    if (reason != kRunning) {
      state.set_ended(s, entry.sample, reason, entry.known);
      state.set_end(entry.sample, s, reason, entry);
      entry = Entry{};
      num_ended += 1;
    }
    state.set_entry(s, entry);
  }
  const std::int64_t all_ended = block.exclusive_sum(num_ended).total;
  if (block.rank() == 0) {
    state.header(kNumFinished) += all_ended;
    // once all is finished, a step that was enqueued ahead moves nothing
    state.header(kRound) += state.header(kNumRows) > 0;
  }
  block.sync();
}

// Forget everything but the limits, then plan nothing yet.
template <class Block>
CTD_HOST_DEVICE void schedule_reset(Block& block, const State& state) {
  const Range slots = own_items(block, state.num_slots);
  for (std::int64_t s = slots.begin; s < slots.end; ++s) {
    state.set_entry(s, Entry{});
    state.set_ended(s, -1, kRunning, 0);
    state.slot(kSlotFirstRow, s) = 0;
    state.slot(kSlotAdmittedSample, s) = -1;
  }
  const Range samples = own_items(block, state.num_samples);
  for (std::int64_t b = samples.begin; b < samples.end; ++b) {
    state.set_end(b, -1, kRunning, Entry{});
  }
  if (block.rank() == 0) {
    for (int field = 0; field < kNumCounters; ++field) state.data[field] = 0;
  }
  block.sync();
}

template <class Block>
CTD_HOST_DEVICE void schedule_begin(Block& block, const State& state) {
  schedule_reset(block, state);
  schedule_plan(block, state);
}

template <class Block>
CTD_HOST_DEVICE void schedule_step(Block& block, const State& state, const std::int64_t* accepted,
                                   const std::int64_t* finite) {
  schedule_move(block, state, accepted, finite, nullptr);
  schedule_plan(block, state);
}

}  // namespace ctd
