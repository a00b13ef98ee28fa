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
  std::int64_t near = 0;
};

struct Limits {
  std::int64_t num_nodes;
  std::int64_t window_size;
  std::int64_t first_length;
  std::int64_t max_rounds;
  std::int64_t window_ratio = 0;
  std::int64_t first_window = 1;
  std::int64_t far_stride = 1;
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

// Points of a sample's window if there were no budget.
CTD_HOST_DEVICE inline std::int64_t wanted_length(const Entry& entry, const Limits& limits) {
  const std::int64_t whole = least(limits.window_size, limits.num_nodes - entry.start);
  if (entry.rounds == 0) return least(limits.first_length, whole);
  if (limits.window_ratio == 0) return whole;
  const std::int64_t unit = kUnit * kUnit;
  return clamped((limits.window_ratio * entry.reach + unit - 1) / unit, 1, whole);
}

// Leading points of a window that have a row each: up to the first that moved far in the last
// round, at least far_stride. Of the others every far_stride-th has one, and the last.
CTD_HOST_DEVICE inline std::int64_t dense_points(const Entry& entry, const Limits& limits,
                                                 std::int64_t length) {
  if (limits.far_stride == 1) return length;
  const std::int64_t least_dense = least(limits.far_stride, length);
  return clamped(entry.near - entry.start, least_dense, length);
}

// Rows of a window of so many points.
CTD_HOST_DEVICE inline std::int64_t rows_of(const Entry& entry, const Limits& limits,
                                            std::int64_t length) {
  const std::int64_t dense = dense_points(entry, limits, length);
  return dense + (length - dense + limits.far_stride - 1) / limits.far_stride;
}

// The longest window that an entry wants and so many rows are enough for.
CTD_HOST_DEVICE inline std::int64_t length_of(const Entry& entry, const Limits& limits,
                                              std::int64_t rows) {
  const std::int64_t whole = wanted_length(entry, limits);
  const std::int64_t dense = dense_points(entry, limits, whole);
  return rows <= dense ? rows : least(whole, dense + (rows - dense) * limits.far_stride);
}

// Which point a row of a window is: its node less start.
CTD_HOST_DEVICE inline std::int64_t offset_of(std::int64_t row, std::int64_t length,
                                              std::int64_t dense, std::int64_t far_stride) {
  return row < dense ? row : least(dense - 1 + (row - dense + 1) * far_stride, length - 1);
}

// Give a sample its window; points beyond a window that shrank are dropped.
CTD_HOST_DEVICE inline void open_window(Entry& entry, std::int64_t length) {
  entry.length = length;
  entry.known = least(entry.known, entry.start + length);
}

// Move a window after a round: `advance` nodes, of which `finite` new points are finite, and `near`
// leading points moved little. The advance is at most the points that have rows of their own.
CTD_HOST_DEVICE inline Reason move_window(Entry& entry, std::int64_t advance, std::int64_t finite,
                                          std::int64_t near, const Limits& limits) {
  const std::int64_t dense = dense_points(entry, limits, entry.length);
  // all that had rows of their own was accepted: more would have been
  const bool is_whole = advance == dense;
  // a first round of one row, which the first guess needs, tells nothing of later windows
  const bool is_telling = entry.length >= 2 || entry.rounds > 0;
  if (limits.window_ratio > 0 && finite > 0 && is_telling) {
    entry.reach = (3 * entry.reach + kUnit * (is_whole ? 2 * advance : advance)) / 4;
  }
  entry.rounds += 1;
  entry.evaluations += rows_of(entry, limits, entry.length);
  // where x0 between rows is too rough to tell what is near
  entry.near = entry.start + (is_whole && near <= advance ? 3 * advance : near);
  entry.known = entry.start + finite;
  entry.length = 0;
  if (finite == 0) return kDiverged;
  entry.start += advance;
  if (entry.start == limits.num_nodes) return kConverged;
  return entry.rounds >= limits.max_rounds ? kMaxRounds : kRunning;
}

}  // namespace ctd
