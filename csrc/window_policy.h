// The scheduling policy, written once for host and device: no containers, no allocation, no throw.
// The host scheduler calls it per sample; a CUDA scheduler can call the same functions per thread.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define CTD_HOST_DEVICE __host__ __device__
#else
#define CTD_HOST_DEVICE
#endif

namespace ctd {

enum Reason : std::int64_t { kRunning = -1, kConverged = 0, kMaxRounds, kDiverged, kCancelled };

// An active sample. `length` is 0 until the next round is planned.
struct Entry {
  std::int64_t sample = -1;
  std::int64_t start = 0;
  std::int64_t length = 0;
  std::int64_t known = 0;
  std::int64_t rounds = 0;
  std::int64_t evaluations = 0;
};

struct Limits {
  std::int64_t num_nodes;
  std::int64_t window_size;
  std::int64_t first_length;
  std::int64_t max_rounds;
};

CTD_HOST_DEVICE inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// Rows that a sample would use if there were no budget.
CTD_HOST_DEVICE inline std::int64_t wanted_rows(const Entry& entry, const Limits& limits) {
  const std::int64_t whole = least(limits.window_size, limits.num_nodes - entry.start);
  return entry.rounds == 0 ? least(limits.first_length, whole) : whole;
}

// Give a sample its window; points beyond a window that shrank are dropped.
CTD_HOST_DEVICE inline void open_window(Entry& entry, std::int64_t length) {
  entry.length = length;
  entry.known = least(entry.known, entry.start + length);
}

// Move a window after a round: `advance` nodes, of which `finite` new points are finite.
CTD_HOST_DEVICE inline Reason move_window(Entry& entry, std::int64_t advance, std::int64_t finite,
                                          const Limits& limits) {
  entry.rounds += 1;
  entry.evaluations += entry.length;
  entry.known = entry.start + finite;
  entry.length = 0;
  if (finite == 0) return kDiverged;
  entry.start += advance;
  if (entry.start == limits.num_nodes) return kConverged;
  return entry.rounds >= limits.max_rounds ? kMaxRounds : kRunning;
}

// Max-min fairness: the highest level at which everyone's min(wanted, level) fits the budget.
CTD_HOST_DEVICE inline std::int64_t fair_level(const std::int64_t* wanted, std::int64_t count,
                                               std::int64_t max_rows) {
  std::int64_t low = 0, high = 0;
  for (std::int64_t i = 0; i < count; ++i) high = wanted[i] > high ? wanted[i] : high;
  while (low < high) {
    const std::int64_t level = (low + high + 1) / 2;
    std::int64_t total = 0;
    for (std::int64_t i = 0; i < count; ++i) total += least(wanted[i], level);
    if (total <= max_rows)
      low = level;
    else
      high = level - 1;
  }
  return low;
}

// Share the budget at the fair level; the remainder goes a row each from entry `turn` mod count.
CTD_HOST_DEVICE inline void share_rows(const std::int64_t* wanted, std::int64_t count,
                                       std::int64_t max_rows, std::int64_t turn,
                                       std::int64_t* given) {
  const std::int64_t level = fair_level(wanted, count, max_rows);
  std::int64_t left = max_rows;
  for (std::int64_t i = 0; i < count; ++i) {
    given[i] = least(wanted[i], level);
    left -= given[i];
  }
  for (std::int64_t i = 0; i < count && left > 0; ++i) {
    const std::int64_t entry = (turn % count + i) % count;
    if (wanted[entry] > level) {
      given[entry] += 1;
      left -= 1;
    }
  }
}

}  // namespace ctd
