// Normal numbers from a counter, as ctd_engine.noise makes them: Philox 4x32-10, then Box-Muller
// in float64, rounded once.
#pragma once

#include <cstdint>

namespace ctd {

enum Stream : std::int64_t { kStreamInitial = 0, kStreamStep = 1 };

// Elements first .. first + count - 1 of the noise of a node; `first` is a multiple of 4.
void fill_normals(std::int64_t seed, std::int64_t node, std::int64_t stream, std::int64_t first,
                  std::int64_t count, float* out);
void fill_normals(std::int64_t seed, std::int64_t node, std::int64_t stream, std::int64_t first,
                  std::int64_t count, double* out);

}  // namespace ctd
