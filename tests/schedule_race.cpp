// Random histories on a block of four threads, for a thread sanitizer: a barrier that is missing
// in schedule.h is a data race, here as on a GPU.
#include <cstdint>
#include <random>
#include <vector>

#include "host_block.h"

int main() {
  std::mt19937_64 random(1);
  const auto draw = [&](std::int64_t most) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(most)) + 1;
  };
  for (int turn = 0; turn < 40; ++turn) {
    const std::int64_t num_slots = draw(12), num_samples = draw(20), window = draw(8);
    const bool is_lockstep = turn % 4 == 0 && num_samples <= num_slots;
    const std::int64_t max_rows = is_lockstep ? num_slots * window : num_slots + draw(10);
    std::vector<std::int64_t> data(
        static_cast<std::size_t>(ctd::state_size(num_slots, num_samples)));
    std::vector<std::int64_t> rows(static_cast<std::size_t>(ctd::kNumRowColumns * max_rows));
    data[ctd::kNumSamples] = num_samples;
    data[ctd::kNumNodes] = draw(20);
    data[ctd::kWindowSize] = window;
    data[ctd::kFirstLength] = draw(window);
    data[ctd::kMaxRoundsLimit] = 10;
    data[ctd::kWindowRatio] = turn % 2 * 400;
    data[ctd::kFirstWindow] = window;
    data[ctd::kFarStride] = draw(3);
    data[ctd::kMaxRows] = max_rows;
    data[ctd::kNumSlots] = num_slots;
    data[ctd::kLockstep] = is_lockstep;
    const ctd::State state(data.data(), rows.data());
    ctd::run_on_host(4, [&](auto& block) { ctd::schedule_begin(block, state); });
    std::vector<std::int64_t> accepted(static_cast<std::size_t>(num_slots));
    std::vector<std::int64_t> finite(static_cast<std::size_t>(num_slots));
    while (state.header(ctd::kNumActive) > 0) {
      for (std::int64_t& value : accepted) value = draw(window);
      for (std::int64_t& value : finite) value = draw(10 * window) - 1;
      ctd::run_on_host(4, [&](auto& block) {
        ctd::schedule_step(block, state, accepted.data(), finite.data());
      });
    }
    if (state.header(ctd::kNumFinished) != num_samples) return 1;
  }
  return 0;
}
