// First values of the points that enter a window: x0 is held, chunk by chunk along D.
#include <algorithm>

#include "compiler.h"
#include "normals.h"
#include "ops.h"
#include "parallel.h"

namespace ctd {
namespace {

// x_new = (sum B) x0_hold + sum A x + C z
template <class T, int K, bool NOISE>
CTD_INLINE void step(Index count, T b, const T* held, const T* a, const T* const* x, T c,
                     const T* z, T* out) {
  const T *x_0 = x[0], *x_1 = x[1], *x_2 = x[2];
  CTD_INDEPENDENT
  for (Index i = 0; i < count; ++i) {
    T value = b * held[i];
    value += a[0] * x_0[i];
    if (K >= 2) value += a[1] * x_1[i];
    if (K >= 3) value += a[2] * x_2[i];
    if (NOISE) value += c * z[i];
    out[i] = value;
  }
}

template <class T, int K>
CTD_INLINE void guess(const PredictGuess<T>& op, Index entry, Index chunk) {
  const Tables<T>& t = op.tables;
  const Index slot = op.slot[entry], known = op.known[entry];
  const Index first = chunk * kChunk, count = std::min(kChunk, op.num_elements - first);
  T noise[kChunk], zeros[kChunk];
  std::fill(zeros, zeros + count, T(0));
  // before the first model call nothing is held
  const T* held = known > 0 ? op.x0.at(slot, known - 1) + first : zeros;
  const T* x[3] = {};
  for (int k = 0; k < K; ++k) x[k] = known >= k ? op.x.at(slot, known - k) + first : zeros;
  for (Index j = 0; j < op.count[entry]; ++j) {
    const Index node = known + j;
    const T* z = op.z.data == nullptr ? nullptr : op.z.at(entry, j) + first;
    if (op.seeds != nullptr) {
      fill_normals(op.seeds[entry], node, kStreamStep, first, count, noise);
      z = noise;
    }
    const T *a = t.a + node * K, *b = t.b + node * K;
    T b_sum = b[0];
    for (int k = 1; k < K; ++k) b_sum += b[k];
    T* out = op.x.at(slot, node + 1) + first;
    if (z != nullptr)
      step<T, K, true>(count, b_sum, held, a, x, t.c[node], z, out);
    else
      step<T, K, false>(count, b_sum, held, a, x, t.c[node], z, out);
    for (int k = K - 1; k > 0; --k) x[k] = x[k - 1];
    x[0] = out;
  }
}

template <class T>
CTD_INLINE void guess(const PredictGuess<T>& op, Index entry, Index chunk) {
  if (op.tables.order == 1)
    guess<T, 1>(op, entry, chunk);
  else if (op.tables.order == 2)
    guess<T, 2>(op, entry, chunk);
  else
    guess<T, 3>(op, entry, chunk);
}

CTD_CLONES void guess_points(const PredictGuess<float>& op, Index entry, Index chunk) {
  guess(op, entry, chunk);
}

CTD_CLONES void guess_points(const PredictGuess<double>& op, Index entry, Index chunk) {
  guess(op, entry, chunk);
}

}  // namespace

template <class T>
void predict_guess(const PredictGuess<T>& op) {
  for (Index entry = 0; entry < op.num_windows; ++entry) {
    const Index known = op.known[entry], count = op.count[entry];
    if (count == 0) continue;
    require_inside("slots", op.slot[entry], op.slot[entry] + 1, op.num_slots);
    require_inside("nodes", known, known + count, op.tables.num_nodes);
    require_inside("points of a guess", 0, count, op.max_count);
  }
  const Index chunks = num_chunks(op.num_elements);
  const auto guess_item = [&](Index item) { guess_points(op, item / chunks, item % chunks); };
  for_each_item(op.num_windows * chunks, op.num_windows * op.max_count * op.num_elements,
                op.max_threads, guess_item);
}

template void predict_guess(const PredictGuess<float>& op);
template void predict_guess(const PredictGuess<double>& op);

}  // namespace ctd
