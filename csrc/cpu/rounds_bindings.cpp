// Python bindings of a run's rounds, for fp32 and fp64; addresses as in arguments.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>

#include "arguments.h"
#include "bindings.h"
#include "python_values.h"
#include "rounds.h"

namespace py = pybind11;

namespace ctd {
namespace {

// addresses of the model's input scale and times, and of the thresholds
using ByNodeArgument = std::tuple<Address, Address, Address>;
// address, strides of nodes and samples
using NoiseArgument = std::tuple<Address, Index, Index>;

template <class T>
void define(py::module_& m, const std::string& suffix) {
  using Class = Rounds<T>;
  py::class_<Class>(m, ("Rounds" + suffix).c_str())
      .def(py::init([](WindowScheduler& scheduler, RingArgument x, RingArgument x0,
                       RingArgument change, RingArgument record, RingArgument record_x0,
                       TablesArgument update, TablesArgument guess, TablesArgument first_guess,
                       ByNodeArgument by_node, Address seeds, NoiseArgument noise,
                       bool guesses_noise, std::tuple<Index, Index, Index, Index> shape,
                       py::object clip) {
             const auto [num_slots, ring_nodes, num_samples, num_elements] = shape;
             const auto [input_scale, model_time, threshold] = by_node;
             const auto [z, stride_noise_node, stride_noise_sample] = noise;
             const bool clips = !clip.is_none();
             const Tables<T> solver = tables<T>(update);
             return Class(scheduler, RoundParts<T>{ring<T>(x, ring_nodes),
                                                   ring<T>(x0, ring_nodes),
                                                   ring<T>(change, ring_nodes),
                                                   ring<T>(record, solver.num_nodes + 1),
                                                   ring<T>(record_x0, solver.num_nodes + 1),
                                                   solver,
                                                   tables<T>(guess),
                                                   tables<T>(first_guess),
                                                   pointer<T>(input_scale),
                                                   pointer<T>(model_time),
                                                   pointer<T>(threshold),
                                                   pointer<Index>(seeds),
                                                   pointer<T>(z),
                                                   stride_noise_node,
                                                   stride_noise_sample,
                                                   guesses_noise,
                                                   clips,
                                                   static_cast<T>(clips ? clip.cast<double>() : 0),
                                                   num_slots,
                                                   num_samples,
                                                   num_elements});
           }),
           py::keep_alive<1, 2>(), py::arg("scheduler"), py::kw_only(), py::arg("x"), py::arg("x0"),
           py::arg("change"), py::arg("record"), py::arg("record_x0"), py::arg("update"),
           py::arg("guess"), py::arg("first_guess"), py::arg("by_node"), py::arg("seeds"),
           py::arg("noise"), py::arg("guesses_noise"), py::arg("shape"), py::arg("clip"))
      .def_property_readonly("num_rows", &Class::num_rows)
      .def_property_readonly("num_left_behind", &Class::num_left_behind)
      .def("admitted", &Class::admitted)
      .def("begin",
           [](Class& rounds, Index copies, Address x, Address times, Address row_sample,
              Index max_threads) {
             const py::gil_scoped_release without_gil;
             rounds.begin(copies, pointer<T>(x), pointer<T>(times), pointer<Index>(row_sample),
                          max_threads);
           })
      .def("correct",
           [](Class& rounds, RowsArgument outputs, RowsArgument outputs_null, double guidance_scale,
              Index max_threads) {
             std::vector<Finished> finished;
             {
               const py::gil_scoped_release without_gil;
               finished = rounds.correct(rows<T>(outputs), rows<T>(outputs_null),
                                         static_cast<T>(guidance_scale), max_threads);
             }
             return finished_rows(finished);
           })
      .def("history", [](const Class& rounds) {
        py::list records;
        for (const RoundWindows& w : rounds.history()) {
          records.append(py::make_tuple(column(w.sample), column(w.start), column(w.length)));
        }
        return records;
      });
}

}  // namespace

void define_cpu_rounds(py::module_& m) {
  define<float>(m, "_float32");
  define<double>(m, "_float64");
}

}  // namespace ctd
