// What the scheduler decides, as Python's values.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "window_scheduler.h"

namespace ctd {

inline pybind11::array_t<std::int64_t> column(const std::vector<std::int64_t>& values) {
  return pybind11::array_t<std::int64_t>(static_cast<pybind11::ssize_t>(values.size()),
                                         values.data());
}

inline pybind11::list finished_rows(const std::vector<Finished>& finished) {
  pybind11::list rows;
  for (const Finished& f : finished) {
    rows.append(pybind11::make_tuple(f.sample, f.slot, f.reason, f.rounds, f.evaluations, f.start,
                                     f.known));
  }
  return rows;
}

}  // namespace ctd
