// What becomes of one sample's window, written once for host and device: no containers, no
// allocation, no throw. schedule.h applies it to all samples.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define CTD_HOST_DEVICE __host__ __device__
#else
#define CTD_HOST_DEVICE
#endif

namespace ctd {

enum Reason : std::int64_t { kRunning = -1, kConverged = 0, kMaxRounds, kDiverged, kCancelled };

// The smoothed advance and its ratio are kept in units of 1/256: integers, equal in any language.
constexpr std::int64_t kUnit = 256;

// An active sample; a free slot holds sample -1. `length` is 0 until the next round is planned.
struct Entry {
  std::int64_t sample = -1;
  std::int64_t start = 0;
  std::int64_t length = 0;
  std::int64_t known = 0;
  std::int64_t rounds = 0;
  std::int64_t evaluations = 0;
  std::int64_t reach = 0;
};

struct Limits {
  std::int64_t num_nodes;
  std::int64_t window_size;
  std::int64_t first_length;
  std::int64_t max_rounds;
  std::int64_t window_ratio = 0;
  std::int64_t first_window = 1;
};

CTD_HOST_DEVICE inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

CTD_HOST_DEVICE inline std::int64_t clamped(std::int64_t value, std::int64_t low,
                                            std::int64_t high) {
  return value < low ? low : least(value, high);
}

// A sample at its admission, as if it had advanced by what makes its window `first_window` long.
CTD_HOST_DEVICE inline Entry new_entry(std::int64_t sample, const Limits& limits) {
  Entry entry;
  entry.sample = sample;
  if (limits.window_ratio > 0) {
    entry.reach = kUnit * kUnit * limits.first_window / limits.window_ratio;
  }
  return entry;
}

// Rows that a sample would use if there were no budget.
CTD_HOST_DEVICE inline std::int64_t wanted_rows(const Entry& entry, const Limits& limits) {
  const std::int64_t whole = least(limits.window_size, limits.num_nodes - entry.start);
  if (entry.rounds == 0) return least(limits.first_length, whole);
  if (limits.window_ratio == 0) return whole;
  const std::int64_t unit = kUnit * kUnit;
  return clamped((limits.window_ratio * entry.reach + unit - 1) / unit, 1, whole);
}

// Give a sample its window; points beyond a window that shrank are dropped.
CTD_HOST_DEVICE inline void open_window(Entry& entry, std::int64_t length) {
  entry.length = length;
  entry.known = least(entry.known, entry.start + length);
}

// A window that was accepted whole would have reached further than was seen: count it double.
CTD_HOST_DEVICE inline std::int64_t smoothed_reach(const Entry& entry, std::int64_t advance) {
  const std::int64_t observed = advance == entry.length ? 2 * advance : advance;
  return (3 * entry.reach + kUnit * observed) / 4;
}

// Move a window after a round: `advance` nodes, of which `finite` new points are finite.
CTD_HOST_DEVICE inline Reason move_window(Entry& entry, std::int64_t advance, std::int64_t finite,
                                          const Limits& limits) {
  // a first round of one row, which the first guess needs, tells nothing of later windows
  const bool is_telling = entry.length >= 2 || entry.rounds > 0;
  if (limits.window_ratio > 0 && finite > 0 && is_telling) {
    entry.reach = smoothed_reach(entry, advance);
  }
  entry.rounds += 1;
  entry.evaluations += entry.length;
  entry.known = entry.start + finite;
  entry.length = 0;
  if (finite == 0) return kDiverged;
  entry.start += advance;
  if (entry.start == limits.num_nodes) return kConverged;
  return entry.rounds >= limits.max_rounds ? kMaxRounds : kRunning;
}

}  // namespace ctd
