// The small operations: rows of the model's batch, points kept, and how far each window advances.
#include <algorithm>
#include <cmath>

#include "compiler.h"
#include "ops.h"
#include "parallel.h"

namespace ctd {
namespace {

template <class T>
CTD_INLINE void scale(Index count, T factor, const T* x, T* out) {
  CTD_INDEPENDENT
  for (Index i = 0; i < count; ++i) out[i] = factor * x[i];
}

CTD_CLONES void scale_row(Index count, float factor, const float* x, float* out) {
  scale(count, factor, x, out);
}

CTD_CLONES void scale_row(Index count, double factor, const double* x, double* out) {
  scale(count, factor, x, out);
}

}  // namespace

template <class T>
void gather_rows(const GatherRows<T>& op) {
  for (Index row = 0; row < op.num_rows; ++row) {
    require_inside("slots", op.row_slot[row], op.row_slot[row] + 1, op.num_slots);
    require_inside("nodes", op.row_node[row], op.row_node[row] + 1, op.num_nodes);
  }
  const auto gather_row = [&](Index row) {
    const Index node = op.row_node[row];
    if (op.model_time != nullptr) op.out_time[row] = op.model_time[node];
    scale_row(op.num_elements, op.input_scale[node], op.x.at(op.row_slot[row], node),
              op.out + row * op.num_elements);
  };
  for_each_item(op.num_rows, op.num_rows * op.num_elements, op.max_threads, gather_row);
}

template <class T>
void record_points(const RecordPoints<T>& op) {
  for (Index entry = 0; entry < op.num_windows; ++entry) {
    const Index first = op.first[entry], end = first + op.length[entry];
    if (op.length[entry] == 0) continue;
    require_inside("slots", op.slot[entry], op.slot[entry] + 1, op.num_slots);
    require_inside("samples", op.sample[entry], op.sample[entry] + 1, op.num_samples);
    require_inside("nodes", first, end, op.record.num_nodes);
    for (Index node = first; node < end; ++node) {
      const T* point = op.ring.at(op.slot[entry], node);
      std::copy(point, point + op.num_elements, op.record.at(op.sample[entry], node));
    }
  }
}

template <class T>
void trajectory_error(const TrajectoryError<T>& op) {
  for (Index entry = 0; entry < op.num_windows; ++entry) {
    const Index length = std::min(op.length[entry], op.max_length);
    Index num_converged = 0, num_finite = 0;
    // both counts end at the first point that fails, and what is not finite never converges
    bool is_converged = true;
    for (; num_finite < length; ++num_finite) {
      const T* partials = op.partials + (entry * op.max_length + num_finite) * op.num_blocks;
      T sum = 0;
      for (Index block = 0; block < op.num_blocks; ++block) sum += partials[block];
      const T error = sum / static_cast<T>(op.num_elements);
      if (!std::isfinite(error)) break;
      const Index node = op.start[entry] + 1 + num_finite;
      const T threshold = op.threshold[std::clamp<Index>(node, 0, op.num_thresholds - 1)];
      is_converged = is_converged && error <= threshold;
      num_converged += is_converged;
    }
    op.accepted[entry] = std::max<Index>(std::min(num_converged + 1, num_finite), 1);
    op.finite[entry] = num_finite;
  }
}

template void gather_rows(const GatherRows<float>& op);
template void gather_rows(const GatherRows<double>& op);
template void record_points(const RecordPoints<float>& op);
template void record_points(const RecordPoints<double>& op);
template void trajectory_error(const TrajectoryError<float>& op);
template void trajectory_error(const TrajectoryError<double>& op);

}  // namespace ctd
