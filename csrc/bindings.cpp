// Python bindings of the window scheduler, numpy arrays or addresses, nothing of torch; with those
// of the operations the whole extension.
#include "cpu/bindings.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "host_block.h"
#include "python_values.h"
#include "window_scheduler.h"
#ifdef CTD_HAS_CUDA
#include "cuda/window_scheduler.h"
#endif

namespace py = pybind11;

namespace {

// The columns of a plan in the order of RoundPlan's fields; None when all is done.
py::object plan_columns(ctd::WindowScheduler& scheduler) {
  const ctd::Plan& plan = scheduler.plan();
  if (plan.slot.empty()) return py::none();
  return py::make_tuple(ctd::column(plan.slot), ctd::column(plan.sample), ctd::column(plan.start),
                        ctd::column(plan.length), ctd::column(plan.known), ctd::column(plan.dense),
                        ctd::column(plan.row_slot), ctd::column(plan.row_sample),
                        ctd::column(plan.row_node), ctd::column(plan.row_entry),
                        ctd::column(plan.row_offset));
}

std::int64_t* pointer(std::uintptr_t address) { return reinterpret_cast<std::int64_t*>(address); }

void schedule_begin_host(std::uintptr_t state, std::uintptr_t rows, std::int64_t num_threads) {
  const ctd::State view(pointer(state), pointer(rows));
  ctd::run_on_host(num_threads, [&](auto& block) { ctd::schedule_begin(block, view); });
}

void schedule_step_host(std::uintptr_t state, std::uintptr_t rows, std::uintptr_t accepted,
                        std::uintptr_t finite, std::int64_t num_threads) {
  const ctd::State view(pointer(state), pointer(rows));
  ctd::run_on_host(num_threads, [&](auto& block) {
    ctd::schedule_step(block, view, pointer(accepted), pointer(finite));
  });
}

// The functions of DeviceScheduler, which checks what the addresses point to.
void define_schedule(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> without_gil;
  m.def("schedule_begin", &schedule_begin_host, without_gil, py::arg("state"), py::arg("rows"),
        py::arg("num_threads"));
  m.def("schedule_step", &schedule_step_host, without_gil, py::arg("state"), py::arg("rows"),
        py::arg("accepted"), py::arg("finite"), py::arg("num_threads"));
}

#ifdef CTD_HAS_CUDA
constexpr bool kHasCuda = true;

void require_success(const char* error) {
  if (error != nullptr) {
    throw std::runtime_error("the scheduling kernel cannot be launched: " + std::string(error));
  }
}

void define_schedule_cuda(py::module_& m) {
  m.def(
      "schedule_begin_cuda",
      [](std::uintptr_t state, std::uintptr_t rows, std::int64_t num_slots, std::int64_t max_rows,
         std::int64_t device, std::uintptr_t stream) {
        require_success(
            ctd::schedule_begin_cuda({state, rows, num_slots, max_rows, device, stream}));
      },
      py::arg("state"), py::arg("rows"), py::arg("num_slots"), py::arg("max_rows"),
      py::arg("device"), py::arg("stream"));
  m.def(
      "schedule_step_cuda",
      [](std::uintptr_t state, std::uintptr_t rows, std::uintptr_t accepted, std::uintptr_t finite,
         std::int64_t num_slots, std::int64_t max_rows, std::int64_t device,
         std::uintptr_t stream) {
        require_success(ctd::schedule_step_cuda({state, rows, num_slots, max_rows, device, stream},
                                                accepted, finite));
      },
      py::arg("state"), py::arg("rows"), py::arg("accepted"), py::arg("finite"),
      py::arg("num_slots"), py::arg("max_rows"), py::arg("device"), py::arg("stream"));
}
#else
constexpr bool kHasCuda = false;

void define_schedule_cuda(py::module_&) {}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Window scheduler and CPU operations of ctd_engine, behind its Python functions.";
  py::class_<ctd::WindowScheduler>(m, "WindowScheduler")
      .def(py::init([](std::int64_t num_samples, std::int64_t num_nodes, std::int64_t window_size,
                       std::int64_t max_rows, std::int64_t num_slots, std::int64_t first_length,
                       std::int64_t max_rounds, bool lockstep, std::int64_t window_ratio,
                       std::int64_t first_window, std::int64_t far_stride) {
             const ctd::Limits limits{num_nodes,    window_size,  first_length, max_rounds,
                                      window_ratio, first_window, far_stride};
             return ctd::WindowScheduler(num_samples, limits, max_rows, num_slots, lockstep);
           }),
           py::kw_only(), py::arg("num_samples"), py::arg("num_nodes"), py::arg("window_size"),
           py::arg("max_rows"), py::arg("num_slots"), py::arg("first_length"),
           py::arg("max_rounds"), py::arg("lockstep"), py::arg("window_ratio"),
           py::arg("first_window"), py::arg("far_stride"))
      .def("plan", &plan_columns)
      .def("step",
           [](ctd::WindowScheduler& scheduler, const std::vector<std::int64_t>& accepted,
              const std::vector<std::int64_t>& finite, const std::vector<std::int64_t>& near) {
             return ctd::finished_rows(scheduler.step(accepted, finite, near));
           })
      .def("cancel",
           [](ctd::WindowScheduler& scheduler) { return ctd::finished_rows(scheduler.cancel()); })
      .def_property_readonly("round", &ctd::WindowScheduler::round)
      .def_property_readonly("num_active", &ctd::WindowScheduler::num_active)
      .def_property_readonly("num_waiting", &ctd::WindowScheduler::num_waiting)
      .def_property_readonly("num_finished", &ctd::WindowScheduler::num_finished);
  define_schedule(m);
  define_schedule_cuda(m);
  ctd::define_cpu_ops(m);
  ctd::define_cpu_rounds(m);
  m.attr("has_cuda") = kHasCuda;
}
