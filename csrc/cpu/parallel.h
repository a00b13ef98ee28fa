// Items of work over a few threads; small work stays in the caller's.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace ctd {

// a thread costs some tens of microseconds, as much as this many elements
constexpr std::int64_t kElementsPerThread = 1 << 16;

// Call work(item) once for each item; `num_elements` is what all of them together work on. Items
// must not depend on each other, so that results do not depend on the threads.
template <class Work>
void for_each_item(std::int64_t num_items, std::int64_t num_elements, std::int64_t max_threads,
                   const Work& work) {
  const std::int64_t num_threads =
      std::min({max_threads, num_items, num_elements / kElementsPerThread});
  if (num_threads <= 1) {
    for (std::int64_t item = 0; item < num_items; ++item) work(item);
    return;
  }
  std::atomic<std::int64_t> next{0};
  const auto take_items = [&] {
    for (std::int64_t item = next++; item < num_items; item = next++) work(item);
  };
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(num_threads));
  try {
    for (std::int64_t rank = 1; rank < num_threads; ++rank) threads.emplace_back(take_items);
  } catch (const std::system_error&) {
    // the system has no more: those that there are do the work
  }
  take_items();
  for (std::thread& thread : threads) thread.join();
}

}  // namespace ctd
