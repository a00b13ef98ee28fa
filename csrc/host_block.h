// Blocks on the host: one thread, or several that meet at barriers as a CUDA block's threads do.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "schedule.h"

namespace ctd {

struct SerialBlock {
  std::int64_t rank() const { return 0; }
  std::int64_t size() const { return 1; }
  void sync() {}
  Sum exclusive_sum(std::int64_t value) { return {0, value}; }
  std::int64_t min(std::int64_t value) { return value; }
};

// What the threads of a block share.
class Team {
 public:
  explicit Team(std::int64_t num_threads) : values(static_cast<std::size_t>(num_threads)) {}

  void sync() {
    std::unique_lock<std::mutex> lock(mutex_);
    const std::int64_t meeting = meeting_;
    if (++num_arrived_ == values.size()) {
      num_arrived_ = 0;
      meeting_ += 1;
      everyone_is_here_.notify_all();
    } else {
      everyone_is_here_.wait(lock, [&] { return meeting_ != meeting; });
    }
  }

  std::vector<std::int64_t> values;

 private:
  std::mutex mutex_;
  std::condition_variable everyone_is_here_;
  std::size_t num_arrived_ = 0;
  std::int64_t meeting_ = 0;
};

class ThreadBlock {
 public:
  ThreadBlock(Team& team, std::int64_t rank) : team_(team), rank_(rank) {}

  std::int64_t rank() const { return rank_; }
  std::int64_t size() const { return static_cast<std::int64_t>(team_.values.size()); }
  void sync() { team_.sync(); }

  Sum exclusive_sum(std::int64_t value) {
    share(value);
    Sum sum{0, 0};
    for (std::int64_t r = 0; r < size(); ++r) {
      if (r == rank_) sum.before = sum.total;
      sum.total += team_.values[static_cast<std::size_t>(r)];
    }
    sync();
    return sum;
  }

  std::int64_t min(std::int64_t value) {
    share(value);
    const std::int64_t least_value = *std::min_element(team_.values.begin(), team_.values.end());
    sync();
    return least_value;
  }

 private:
  void share(std::int64_t value) {
    team_.values[static_cast<std::size_t>(rank_)] = value;
    sync();
  }

  Team& team_;
  std::int64_t rank_;
};

// Run `work(block)` on a block of host threads.
template <class Work>
void run_on_host(std::int64_t num_threads, Work work) {
  if (num_threads == 1) {
    SerialBlock block;
    work(block);
    return;
  }
  Team team(num_threads);
  std::vector<std::thread> threads;
  for (std::int64_t rank = 0; rank < num_threads; ++rank) {
    threads.emplace_back([&team, rank, &work] {
      ThreadBlock block(team, rank);
      work(block);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace ctd
