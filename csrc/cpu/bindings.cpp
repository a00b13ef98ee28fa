// Python bindings of the sampling operations: addresses (0 for none), sizes and strides, nothing
// of torch. Each operation is there for fp32 and fp64, as name_float32 and name_float64.
#include "bindings.h"

#include <string>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "ops.h"

namespace py = pybind11;

namespace ctd {
namespace {

template <class T>
void define(py::module_& m, const std::string& suffix) {
  const auto name = [&](const char* op) { return op + suffix; };
  m.def(
      name("picard_update").c_str(),
      [](RingArgument x, RingArgument x0, RingArgument change, RowsArgument m, RowsArgument m_null,
         RowsArgument z, Address seeds, Address slopes, TablesArgument table, EntriesArgument entry,
         Address partials, std::tuple<Index, Index, Index, Index> shape, double guidance_scale,
         py::object clip, Index max_threads) {
        const auto [num_slots, num_nodes, num_rows, num_elements] = shape;
        const bool clips = !clip.is_none();
        const Entries windows = entries(entry);
        std::vector<Index> first(windows.first_row, windows.first_row + windows.count);
        for (Index& place : first) place *= z.second;
        const PicardUpdate<T> op{ring<T>(x, num_nodes),
                                 ring<T>(x0, num_nodes),
                                 ring<T>(change, num_nodes),
                                 rows<T>(m),
                                 rows<T>(m_null),
                                 {pointer<T>(z.first), first.data(), z.second},
                                 pointer<Index>(seeds),
                                 pointer<T>(slopes),
                                 tables<T>(table),
                                 windows,
                                 pointer<T>(partials),
                                 num_slots,
                                 num_rows,
                                 num_elements,
                                 static_cast<T>(guidance_scale),
                                 clips,
                                 static_cast<T>(clips ? clip.cast<double>() : 0.0),
                                 max_threads};
        const py::gil_scoped_release without_gil;
        picard_update(op);
      },
      py::arg("x"), py::arg("x0"), py::arg("change"), py::arg("m"), py::arg("m_null"), py::arg("z"),
      py::arg("seeds"), py::arg("slopes"), py::arg("tables"), py::arg("entries"),
      py::arg("partials"), py::arg("shape"), py::arg("guidance_scale"), py::arg("clip"),
      py::arg("max_threads"));
  m.def(
      name("secant_slopes").c_str(),
      [](RingArgument x, RingArgument x0, RingArgument change, RowsArgument m, RowsArgument m_null,
         TablesArgument table, std::tuple<Address, Address, Address, Address, Index> indices,
         Address slopes, std::tuple<Index, Index, Index, Index> shape, double guidance_scale,
         py::object clip, Index max_threads) {
        const auto [num_slots, num_nodes, num_rows, num_elements] = shape;
        const auto [row_slot, row_node, row_entry, known, num_entries] = indices;
        const bool clips = !clip.is_none();
        const SecantSlopes<T> op{ring<T>(x, num_nodes),
                                 ring<T>(x0, num_nodes),
                                 ring<T>(change, num_nodes),
                                 rows<T>(m),
                                 rows<T>(m_null),
                                 tables<T>(table),
                                 pointer<Index>(row_slot),
                                 pointer<Index>(row_node),
                                 pointer<Index>(row_entry),
                                 pointer<Index>(known),
                                 num_entries,
                                 pointer<T>(slopes),
                                 num_slots,
                                 num_rows,
                                 num_elements,
                                 static_cast<T>(guidance_scale),
                                 clips,
                                 static_cast<T>(clips ? clip.cast<double>() : 0.0),
                                 max_threads};
        const py::gil_scoped_release without_gil;
        secant_slopes(op);
      },
      py::arg("x"), py::arg("x0"), py::arg("change"), py::arg("m"), py::arg("m_null"),
      py::arg("tables"), py::arg("indices"), py::arg("slopes"), py::arg("shape"),
      py::arg("guidance_scale"), py::arg("clip"), py::arg("max_threads"));
  m.def(
      name("predict_guess").c_str(),
      [](RingArgument x, RingArgument x0, std::tuple<Address, Index, Index> z, Address seeds,
         Address slot, Address known, Address count, Index num_windows, Index max_count,
         TablesArgument table, std::tuple<Index, Index, Index> shape, Index max_threads) {
        const auto [num_slots, num_nodes, num_elements] = shape;
        const auto [z_address, stride_z_entry, stride_z_node] = z;
        std::vector<Index> first(static_cast<std::size_t>(num_windows));
        for (std::size_t entry = 0; entry < first.size(); ++entry) {
          first[entry] = static_cast<Index>(entry) * stride_z_entry;
        }
        const PredictGuess<T> op{ring<T>(x, num_nodes),
                                 ring<T>(x0, num_nodes),
                                 {pointer<T>(z_address), first.data(), stride_z_node},
                                 pointer<Index>(seeds),
                                 pointer<Index>(slot),
                                 pointer<Index>(known),
                                 pointer<Index>(count),
                                 num_windows,
                                 max_count,
                                 tables<T>(table),
                                 num_slots,
                                 num_elements,
                                 max_threads};
        const py::gil_scoped_release without_gil;
        predict_guess(op);
      },
      py::arg("x"), py::arg("x0"), py::arg("z"), py::arg("seeds"), py::arg("slot"),
      py::arg("known"), py::arg("count"), py::arg("num_windows"), py::arg("max_count"),
      py::arg("tables"), py::arg("shape"), py::arg("max_threads"));
  m.def(
      name("gather_rows").c_str(),
      [](RingArgument x, Address row_slot, Address row_node, Address input_scale,
         Address model_time, Address out, Address out_time,
         std::tuple<Index, Index, Index, Index> shape, Index num_scales, Index max_threads) {
        const auto [num_slots, num_nodes, num_rows, num_elements] = shape;
        const GatherRows<T> op{ring<T>(x, num_nodes),
                               pointer<Index>(row_slot),
                               pointer<Index>(row_node),
                               pointer<T>(input_scale),
                               pointer<T>(model_time),
                               pointer<T>(out),
                               pointer<T>(out_time),
                               num_rows,
                               num_slots,
                               num_scales,
                               num_elements,
                               max_threads};
        const py::gil_scoped_release without_gil;
        gather_rows(op);
      },
      py::arg("x"), py::arg("row_slot"), py::arg("row_node"), py::arg("input_scale"),
      py::arg("model_time"), py::arg("out"), py::arg("out_time"), py::arg("shape"),
      py::arg("num_scales"), py::arg("max_threads"));
  m.def(
      name("record_points").c_str(),
      [](RingArgument record, RingArgument points, Address slot, Address sample, Address first,
         Address length, Index num_windows, std::tuple<Index, Index, Index> record_shape,
         std::tuple<Index, Index, Index> ring_shape) {
        const auto [num_samples, num_recorded, num_elements] = record_shape;
        const RecordPoints<T> op{ring<T>(record, num_recorded),
                                 ring<T>(points, std::get<1>(ring_shape)),
                                 pointer<Index>(slot),
                                 pointer<Index>(sample),
                                 pointer<Index>(first),
                                 pointer<Index>(length),
                                 num_windows,
                                 num_samples,
                                 std::get<0>(ring_shape),
                                 num_elements};
        const py::gil_scoped_release without_gil;
        record_points(op);
      },
      py::arg("record"), py::arg("ring"), py::arg("slot"), py::arg("sample"), py::arg("first"),
      py::arg("length"), py::arg("num_windows"), py::arg("record_shape"), py::arg("ring_shape"));
  m.def(
      name("trajectory_error").c_str(),
      [](Address partials, std::tuple<Index, Index, Index> shape, Index num_elements,
         Address threshold, Index num_thresholds, Address start, Address length, Address accepted,
         Address finite) {
        const auto [num_windows, max_length, num_blocks] = shape;
        const TrajectoryError<T> op{pointer<T>(partials),
                                    num_windows,
                                    max_length,
                                    num_blocks,
                                    num_elements,
                                    pointer<T>(threshold),
                                    num_thresholds,
                                    pointer<Index>(start),
                                    pointer<Index>(length),
                                    pointer<Index>(accepted),
                                    pointer<Index>(finite)};
        const py::gil_scoped_release without_gil;
        trajectory_error(op);
      },
      py::arg("partials"), py::arg("shape"), py::arg("num_elements"), py::arg("threshold"),
      py::arg("num_thresholds"), py::arg("start"), py::arg("length"), py::arg("accepted"),
      py::arg("finite"));
  m.def(
      name("philox_normal").c_str(),
      [](Address seeds, Address nodes, Index stream, Address out, Index num_rows,
         Index num_elements, Index max_threads) {
        const Normals<T> op{pointer<Index>(seeds),
                            pointer<Index>(nodes),
                            stream,
                            pointer<T>(out),
                            num_rows,
                            num_elements,
                            max_threads};
        const py::gil_scoped_release without_gil;
        philox_normal(op);
      },
      py::arg("seeds"), py::arg("nodes"), py::arg("stream"), py::arg("out"), py::arg("num_rows"),
      py::arg("num_elements"), py::arg("max_threads"));
}

}  // namespace

void define_cpu_ops(py::module_& m) {
  define<float>(m, "_float32");
  define<double>(m, "_float64");
}

}  // namespace ctd
