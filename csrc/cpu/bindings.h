#pragma once

#include <pybind11/pybind11.h>

namespace ctd {

// The sampling operations for CPU tensors, whose facades are ctd_engine/ops/*/cpp.py.
void define_cpu_ops(pybind11::module_& m);

// A run's rounds, whose facade is ctd_engine/_cpp_steps.py; the scheduler's class is there already.
void define_cpu_rounds(pybind11::module_& m);

}  // namespace ctd
