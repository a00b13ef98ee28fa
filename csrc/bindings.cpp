// Python bindings of the window scheduler: numpy arrays in and out, nothing of torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#include "window_scheduler.h"

namespace py = pybind11;

namespace {

py::array_t<std::int64_t> column(const std::vector<std::int64_t>& values) {
  return py::array_t<std::int64_t>(static_cast<py::ssize_t>(values.size()), values.data());
}

// The columns of a plan in the order of RoundPlan's fields; None when all is done.
py::object plan_columns(ctd::WindowScheduler& scheduler) {
  const ctd::Plan& plan = scheduler.plan();
  if (plan.slot.empty()) return py::none();
  return py::make_tuple(column(plan.slot), column(plan.sample), column(plan.start),
                        column(plan.length), column(plan.known), column(plan.row_slot),
                        column(plan.row_sample), column(plan.row_node), column(plan.row_entry),
                        column(plan.row_offset));
}

py::list finished_rows(const std::vector<ctd::Finished>& finished) {
  py::list rows;
  for (const ctd::Finished& f : finished) {
    rows.append(
        py::make_tuple(f.sample, f.slot, f.reason, f.rounds, f.evaluations, f.start, f.known));
  }
  return rows;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Window scheduler of ctd_engine; use ctd_engine.scheduling.make_scheduler.";
  py::class_<ctd::WindowScheduler>(m, "WindowScheduler")
      .def(py::init([](std::int64_t num_samples, std::int64_t num_nodes, std::int64_t window_size,
                       std::int64_t max_rows, std::int64_t num_slots, std::int64_t first_length,
                       std::int64_t max_rounds, bool lockstep) {
             const ctd::Limits limits{num_nodes, window_size, first_length, max_rounds};
             return ctd::WindowScheduler(num_samples, limits, max_rows, num_slots, lockstep);
           }),
           py::kw_only(), py::arg("num_samples"), py::arg("num_nodes"), py::arg("window_size"),
           py::arg("max_rows"), py::arg("num_slots"), py::arg("first_length"),
           py::arg("max_rounds"), py::arg("lockstep"))
      .def("plan", &plan_columns)
      .def("step",
           [](ctd::WindowScheduler& scheduler, const std::vector<std::int64_t>& accepted,
              const std::vector<std::int64_t>& finite) {
             return finished_rows(scheduler.step(accepted, finite));
           })
      .def("cancel",
           [](ctd::WindowScheduler& scheduler) { return finished_rows(scheduler.cancel()); })
      .def_property_readonly("round", &ctd::WindowScheduler::round)
      .def_property_readonly("num_active", &ctd::WindowScheduler::num_active)
      .def_property_readonly("num_waiting", &ctd::WindowScheduler::num_waiting)
      .def_property_readonly("num_finished", &ctd::WindowScheduler::num_finished);
}
