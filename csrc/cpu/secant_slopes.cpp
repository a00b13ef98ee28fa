// The slopes of ops/secant_slopes/kernel.py on the CPU: two sums over the elements of a row.
#include <cmath>

#include "compiler.h"
#include "ops.h"
#include "parallel.h"

namespace ctd {
namespace {

constexpr int kLanes = 16;

// In a fixed order, whatever the instruction set.
template <class T>
CTD_INLINE T sum_of_lanes(T* lanes) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// <d, d x0> / <d, d> with d x0 = clip(P x + Q m) - x0 and m guided as in the update.
template <class T>
CTD_INLINE T response(const SecantSlopes<T>& op, Index row) {
  const Index slot = op.row_slot[row], node = op.row_node[row];
  const T p = op.tables.p[node], q = op.tables.q[node];
  const T *x = op.x.at(slot, node), *before = op.x0.at(slot, node);
  const T *moved = op.change.at(slot, node), *m = op.m.at(row);
  const T* m_null = op.m_null.data == nullptr ? nullptr : op.m_null.at(row);
  T products[kLanes] = {}, squares[kLanes] = {};
  for (Index first = 0; first < op.num_elements; first += kLanes) {
    const Index count = op.num_elements - first < kLanes ? op.num_elements - first : kLanes;
    for (Index lane = 0; lane < count; ++lane) {
      const Index i = first + lane;
      T output = m[i];
      if (m_null != nullptr) output = m_null[i] + op.guidance_scale * (output - m_null[i]);
      T now = p * x[i] + q * output;
      if (op.clips) {
        // comparisons with NaN are false, so that it stays
        now = now < -op.clip ? -op.clip : now;
        now = now > op.clip ? op.clip : now;
      }
      products[lane] += moved[i] * (now - before[i]);
      squares[lane] += moved[i] * moved[i];
    }
  }
  return sum_of_lanes(products) / sum_of_lanes(squares);
}

CTD_CLONES float response_of_row(const SecantSlopes<float>& op, Index row) {
  return response(op, row);
}

CTD_CLONES double response_of_row(const SecantSlopes<double>& op, Index row) {
  return response(op, row);
}

template <class T>
T slope(const SecantSlopes<T>& op, Index row) {
  const Index node = op.row_node[row];
  if (node >= op.known[op.row_entry[row]]) return 1;
  T a = 0, b = 0;
  for (Index k = 0; k < op.tables.order; ++k) {
    a += op.tables.a[node * op.tables.order + k];
    b += op.tables.b[node * op.tables.order + k];
  }
  const T value = a + b * response_of_row(op, row);
  // 0 / 0 where a point has not moved: no pair either
  if (!std::isfinite(value)) return 1;
  return value < 0 ? T(0) : value > 1 ? T(1) : value;
}

}  // namespace

template <class T>
void secant_slopes(const SecantSlopes<T>& op) {
  for (Index row = 0; row < op.num_rows; ++row) {
    require_inside("slots", op.row_slot[row], op.row_slot[row] + 1, op.num_slots);
    require_inside("nodes", op.row_node[row], op.row_node[row] + 1, op.tables.num_nodes);
    require_inside("entries", op.row_entry[row], op.row_entry[row] + 1, op.num_entries);
  }
  const auto write_row = [&](Index row) { op.slopes[row] = slope(op, row); };
  for_each_item(op.num_rows, op.num_rows * op.num_elements, op.max_threads, write_row);
}

template void secant_slopes(const SecantSlopes<float>& op);
template void secant_slopes(const SecantSlopes<double>& op);

}  // namespace ctd
