// The scheduler's whole state in two flat int64 arrays, so that a copy of one is a snapshot.
// ctd_engine/scheduling/device.py names the same columns in the same order.
#pragma once

#include <cstdint>

#include "window_policy.h"

namespace ctd {

// Counters, which a new beginning sets to zero, and then limits, which never change.
enum Header : int {
  kNextSample,
  kNumFinished,
  kRound,
  kNumRows,
  kNumActive,
  kNumCounters,
  kNumSamples = kNumCounters,
  kNumNodes,
  kWindowSize,
  kFirstLength,
  kMaxRoundsLimit,
  kWindowRatio,
  kFirstWindow,
  kFarStride,
  kMaxRows,
  kNumSlots,
  kLockstep,
  kHeaderSize
};

// Per slot: its sample, then what the last step did to it (-1: it ended or admitted none).
enum SlotColumn : int {
  kSlotSample,
  kSlotStart,
  kSlotLength,
  kSlotKnown,
  kSlotRounds,
  kSlotEvaluations,
  kSlotReach,
  kSlotNear,
  kSlotFirstRow,
  kSlotEndedSample,
  kSlotEndedReason,
  kSlotEndedKnown,
  kSlotAdmittedSample,
  kNumSlotColumns
};

// Per sample: its end, with reason -1 while there is none.
enum EndColumn : int {
  kEndSlot,
  kEndReason,
  kEndRounds,
  kEndEvaluations,
  kEndStart,
  kEndKnown,
  kNumEndColumns
};

enum RowColumn : int { kRowSlot, kRowSample, kRowNode, kRowEntry, kRowOffset, kNumRowColumns };

constexpr std::int64_t state_size(std::int64_t num_slots, std::int64_t num_samples) {
  return kHeaderSize + kNumSlotColumns * num_slots + kNumEndColumns * num_samples;
}

// A view of the two arrays, whose limits in the header never change.
struct State {
  std::int64_t* data;  // [state_size]
  std::int64_t* rows;  // [kNumRowColumns, max_rows]
  std::int64_t num_slots, num_samples, max_rows;

  CTD_HOST_DEVICE State(std::int64_t* state_data, std::int64_t* row_data)
      : data(state_data),
        rows(row_data),
        num_slots(state_data[kNumSlots]),
        num_samples(state_data[kNumSamples]),
        max_rows(state_data[kMaxRows]) {}

  CTD_HOST_DEVICE std::int64_t& header(Header field) const { return data[field]; }

  CTD_HOST_DEVICE std::int64_t& slot(SlotColumn column, std::int64_t s) const {
    return data[kHeaderSize + column * num_slots + s];
  }

  CTD_HOST_DEVICE std::int64_t& end(EndColumn column, std::int64_t sample) const {
    return data[kHeaderSize + kNumSlotColumns * num_slots + column * num_samples + sample];
  }

  CTD_HOST_DEVICE std::int64_t& row(RowColumn column, std::int64_t r) const {
    return rows[column * max_rows + r];
  }

  CTD_HOST_DEVICE void set_row(std::int64_t r, std::int64_t s, std::int64_t sample,
                               std::int64_t start, std::int64_t offset) const {
    row(kRowSlot, r) = s;
    row(kRowSample, r) = sample;
    row(kRowNode, r) = start + offset;
    row(kRowEntry, r) = s;
    row(kRowOffset, r) = offset;
  }

  CTD_HOST_DEVICE Limits limits() const {
    return {data[kNumNodes],    data[kWindowSize],  data[kFirstLength], data[kMaxRoundsLimit],
            data[kWindowRatio], data[kFirstWindow], data[kFarStride]};
  }

  CTD_HOST_DEVICE Entry entry(std::int64_t s) const {
    return {slot(kSlotSample, s), slot(kSlotStart, s),  slot(kSlotLength, s),
            slot(kSlotKnown, s),  slot(kSlotRounds, s), slot(kSlotEvaluations, s),
            slot(kSlotReach, s),  slot(kSlotNear, s)};
  }

  CTD_HOST_DEVICE void set_entry(std::int64_t s, const Entry& entry) const {
    slot(kSlotSample, s) = entry.sample;
    slot(kSlotStart, s) = entry.start;
    slot(kSlotLength, s) = entry.length;
    slot(kSlotKnown, s) = entry.known;
    slot(kSlotRounds, s) = entry.rounds;
    slot(kSlotEvaluations, s) = entry.evaluations;
    slot(kSlotReach, s) = entry.reach;
    slot(kSlotNear, s) = entry.near;
  }

  CTD_HOST_DEVICE void set_ended(std::int64_t s, std::int64_t sample, std::int64_t reason,
                                 std::int64_t known) const {
    slot(kSlotEndedSample, s) = sample;
    slot(kSlotEndedReason, s) = reason;
    slot(kSlotEndedKnown, s) = known;
  }

  CTD_HOST_DEVICE void set_end(std::int64_t sample, std::int64_t s, std::int64_t reason,
                               const Entry& entry) const {
    end(kEndSlot, sample) = s;
    end(kEndReason, sample) = reason;
    end(kEndRounds, sample) = entry.rounds;
    end(kEndEvaluations, sample) = entry.evaluations;
    end(kEndStart, sample) = entry.start;
    end(kEndKnown, sample) = entry.known;
  }
};

}  // namespace ctd
