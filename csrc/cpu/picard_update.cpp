// The walk of ops/picard_update/kernel.py on the CPU: along the window with a chunk of D, whose
// recent states and changes stay in cache; every operation in the reference's order.
#include <algorithm>

#include "compiler.h"
#include "normals.h"
#include "ops.h"
#include "parallel.h"

namespace ctd {
namespace {

// x0 = clip(P x + Q m) of a chunk, with m = m_null + scale (m - m_null) under guidance.
template <class T, bool GUIDED, bool CLIPS>
CTD_INLINE void predict_data(Index count, T p, T q, const T* x, const T* m, const T* m_null,
                             T scale, T clip, T* x0) {
  CTD_INDEPENDENT
  for (Index i = 0; i < count; ++i) {
    T output = m[i];
    if (GUIDED) output = m_null[i] + scale * (output - m_null[i]);
    T value = p * x[i] + q * output;
    if (CLIPS) {
      // comparisons with NaN are false, so that it stays
      value = value < -clip ? -clip : value;
      value = value > clip ? clip : value;
    }
    x0[i] = value;
  }
}

// What a step reads: the node now and up to two before it, newest first.
template <class T>
struct History {
  const T* x[3];
  const T* x0[3];
  const T* change[3];
};

// x_new = sum A x + sum B x0 + C z + sum G d in the place of x_old, which `old` receives.
template <class T, int K, bool NOISE>
CTD_INLINE void step(Index count, const T* a, const T* b, T c, const T* g, const History<T>& h,
                     const T* z, T* there, T* old, T* change) {
  const T *x_0 = h.x[0], *x_1 = h.x[1], *x_2 = h.x[2];
  const T *x0_0 = h.x0[0], *x0_1 = h.x0[1], *x0_2 = h.x0[2];
  const T *d_0 = h.change[0], *d_1 = h.change[1], *d_2 = h.change[2];
  CTD_INDEPENDENT
  for (Index i = 0; i < count; ++i) {
    T value = a[0] * x_0[i];
    if (K >= 2) value += a[1] * x_1[i];
    if (K >= 3) value += a[2] * x_2[i];
    value += b[0] * x0_0[i];
    if (K >= 2) value += b[1] * x0_1[i];
    if (K >= 3) value += b[2] * x0_2[i];
    if (NOISE) value += c * z[i];
    value += g[0] * d_0[i];
    if (K >= 2) value += g[1] * d_1[i];
    if (K >= 3) value += g[2] * d_2[i];
    const T before = there[i];
    there[i] = value;
    old[i] = before;
    change[i] = value - before;
  }
}

// In a fixed order, whatever the instruction set.
template <class T>
CTD_INLINE T sum_of_squares(Index count, const T* values) {
  constexpr int kLanes = 16;
  T lanes[kLanes] = {};
  Index i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += values[i + lane] * values[i + lane];
  }
  for (; i < count; ++i) lanes[i % kLanes] += values[i] * values[i];
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

template <class T>
CTD_INLINE void predict_data(const PicardUpdate<T>& op, Index count, Index node, Index row,
                             Index first, const T* x, T* x0) {
  const T p = op.tables.p[node], q = op.tables.q[node];
  const T* m = op.m.at(row) + first;
  const T* m_null = op.m_null.data == nullptr ? nullptr : op.m_null.at(row) + first;
  const T scale = op.guidance_scale, clip = op.clip;
  if (m_null != nullptr && op.clips)
    predict_data<T, true, true>(count, p, q, x, m, m_null, scale, clip, x0);
  else if (m_null != nullptr)
    predict_data<T, true, false>(count, p, q, x, m, m_null, scale, clip, x0);
  else if (op.clips)
    predict_data<T, false, true>(count, p, q, x, m, m_null, scale, clip, x0);
  else
    predict_data<T, false, false>(count, p, q, x, m, m_null, scale, clip, x0);
}

// One window, elements first .. first + count - 1.
template <class T, int K>
CTD_INLINE void walk(const PicardUpdate<T>& op, Index entry, Index chunk) {
  const Entries& e = op.entries;
  const Tables<T>& t = op.tables;
  const Index slot = e.slot[entry], start = e.start[entry];
  const Index first = chunk * kChunk, count = std::min(kChunk, op.num_elements - first);
  T olds[K][kChunk], changes[K][kChunk], noise[kChunk], zeros[kChunk];
  std::fill(zeros, zeros + count, T(0));
  // before node 0 the coefficients are 0, and nothing has changed before the window
  History<T> h{};
  for (int k = 0; k < K; ++k) {
    const bool is_there = start >= k;
    h.x[k] = is_there ? op.x.at(slot, start - k) + first : zeros;
    h.x0[k] = is_there ? op.x0.at(slot, start - k) + first : zeros;
    h.change[k] = zeros;
  }
  for (Index j = 0; j < e.length[entry]; ++j) {
    const Index node = start + j, row = e.first_row[entry] + j;
    T* x0 = op.x0.at(slot, node) + first;
    predict_data(op, count, node, row, first, h.x[0], x0);
    h.x0[0] = x0;

    const T* z = op.z.data == nullptr ? nullptr : op.z.at(entry, j) + first;
    if (op.seeds != nullptr) {
      fill_normals(op.seeds[entry], node, kStreamStep, first, count, noise);
      z = noise;
    }
    T g[K];
    for (int k = 0; k < K; ++k) g[k] = t.g[node * K + k];
    if (op.slopes != nullptr) g[0] = op.slopes[row];
    T* there = op.x.at(slot, node + 1) + first;
    // overwrites what is K nodes back, which no later step reads
    T *old = olds[j % K], *change = changes[j % K];
    const T *a = t.a + node * K, *b = t.b + node * K;
    if (z != nullptr)
      step<T, K, true>(count, a, b, t.c[node], g, h, z, there, old, change);
    else
      step<T, K, false>(count, a, b, t.c[node], g, h, z, there, old, change);

    op.partials[(entry * e.max_length + j) * num_chunks(op.num_elements) + chunk] =
        sum_of_squares(count, change);
    if (op.change.data != nullptr) {
      std::copy(change, change + count, op.change.at(slot, node + 1) + first);
    }
    for (int k = K - 1; k > 0; --k) {
      h.x[k] = h.x[k - 1];
      h.x0[k] = h.x0[k - 1];
      h.change[k] = h.change[k - 1];
    }
    h.x[0] = old;
    h.change[0] = change;
  }
}

template <class T>
CTD_INLINE void walk(const PicardUpdate<T>& op, Index entry, Index chunk) {
  if (op.tables.order == 1)
    walk<T, 1>(op, entry, chunk);
  else if (op.tables.order == 2)
    walk<T, 2>(op, entry, chunk);
  else
    walk<T, 3>(op, entry, chunk);
}

CTD_CLONES void walk_window(const PicardUpdate<float>& op, Index entry, Index chunk) {
  walk(op, entry, chunk);
}

CTD_CLONES void walk_window(const PicardUpdate<double>& op, Index entry, Index chunk) {
  walk(op, entry, chunk);
}

template <class T>
void check(const PicardUpdate<T>& op) {
  const Entries& e = op.entries;
  for (Index entry = 0; entry < e.count; ++entry) {
    const Index start = e.start[entry], length = e.length[entry], row = e.first_row[entry];
    if (length == 0) continue;
    require_inside("slots", e.slot[entry], e.slot[entry] + 1, op.num_slots);
    require_inside("nodes", start, start + length, op.tables.num_nodes);
    require_inside("rows", row, row + length, op.num_rows);
    require_inside("points of a window", 0, length, e.max_length);
  }
}

}  // namespace

template <class T>
void picard_update(const PicardUpdate<T>& op) {
  check(op);
  const Index chunks = num_chunks(op.num_elements);
  const auto walk_item = [&](Index item) { walk_window(op, item / chunks, item % chunks); };
  for_each_item(op.entries.count * chunks, op.num_rows * op.num_elements, op.max_threads,
                walk_item);
}

template void picard_update(const PicardUpdate<float>& op);
template void picard_update(const PicardUpdate<double>& op);

}  // namespace ctd
