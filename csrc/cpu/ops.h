// The sampling operations on the CPU, in fp32 and fp64. Strides are in elements and the last one
// is 1; the letters are those of the ops' README files. What indices point to is checked here
// (std::out_of_range), all else by the Python facade.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace ctd {

using Index = std::int64_t;

// elements that a window is walked with at a time: their states and changes stay in cache
constexpr Index kChunk = 1024;

constexpr Index num_chunks(Index num_elements) { return (num_elements + kChunk - 1) / kChunk; }

inline void require_inside(const char* what, Index begin, Index end, Index size) {
  if (begin < 0 || begin > end || end > size) {
    throw std::out_of_range(std::string(what) + " " + std::to_string(begin) + " to " +
                            std::to_string(end) + " lie outside of the " + std::to_string(size) +
                            " that there are");
  }
}

// Points [S, R, D] of slots; node i lies at ring position i mod R.
template <class T>
struct Ring {
  T* data;
  Index stride_slot, stride_node;
  Index num_nodes;  // R

  T* at(Index slot, Index node) const {
    return data + slot * stride_slot + (node % num_nodes) * stride_node;
  }
};

// Rows [rows, D], or none.
template <class T>
struct Rows {
  const T* data;
  Index stride;

  const T* at(Index row) const { return data + row * stride; }
};

// Noise of windows, or none: the step j of entry a has data[first[a] + j stride ..].
template <class T>
struct StepNoise {
  const T* data;
  const Index* first;  // [A]
  Index stride;

  const T* at(Index entry, Index j) const { return data + first[entry] + j * stride; }
};

template <class T>
struct Tables {
  const T *a, *b, *c, *g, *p, *q;  // [N, K], [N, K], [N], [N, K], [N], [N]
  Index num_nodes;                 // N
  Index order;                     // K
};

struct Entries {
  const Index *slot, *start, *length, *first_row;  // [A]
  Index count;                                     // A
  Index max_length;
};

template <class T>
struct PicardUpdate {
  Ring<T> x, x0, change;  // the change's data may be null
  Rows<T> m, m_null;      // the last may be null
  StepNoise<T> z;         // its data may be null
  const Index* seeds;     // [A], may be null
  const T* slopes;        // [rows] in the place of the first column of G, may be null
  Tables<T> tables;
  Entries entries;
  T* partials;  // [A, max_length, chunks]
  Index num_slots, num_rows, num_elements;
  T guidance_scale;
  bool clips;
  T clip;
  Index max_threads;
};

template <class T>
struct SecantSlopes {
  Ring<T> x, x0, change;
  Rows<T> m, m_null;  // the last may be null
  Tables<T> tables;
  const Index *row_slot, *row_node, *row_entry;  // [rows]
  const Index* known;                            // [A]
  Index num_entries;                             // A
  T* slopes;                                     // [rows]
  Index num_slots, num_rows, num_elements;
  T guidance_scale;
  bool clips;
  T clip;
  Index max_threads;
};

template <class T>
struct PredictGuess {
  Ring<T> x, x0;
  StepNoise<T> z;                     // its data may be null
  const Index* seeds;                 // [A], may be null
  const Index *slot, *known, *count;  // [A]
  Index num_windows, max_count;
  Tables<T> tables;
  Index num_slots, num_elements;
  Index max_threads;
};

template <class T>
struct GatherRows {
  Ring<T> x;
  const Index *row_slot, *row_node;   // [rows]
  const T *input_scale, *model_time;  // [N], the second may be null
  T *out, *out_time;                  // [rows, D], [rows]
  Index num_rows, num_slots, num_nodes, num_elements;
  Index max_threads;
};

template <class T>
struct RecordPoints {
  Ring<T> record;  // [B, M, D]: no node wraps around
  Ring<T> ring;
  const Index *slot, *sample, *first, *length;  // [A]
  Index num_windows, num_samples, num_slots, num_elements;
};

template <class T>
struct TrajectoryError {
  const T* partials;  // [A, L, blocks]
  Index num_windows, max_length, num_blocks, num_elements;
  const T* threshold;  // [N + 1]
  Index num_thresholds;
  const Index *start, *length;  // [A]
  Index *accepted, *finite;     // [A]
};

template <class T>
struct Normals {
  const Index *seeds, *nodes;  // [rows]
  Index stream;
  T* out;  // [rows, D]
  Index num_rows, num_elements;
  Index max_threads;
};

template <class T>
void picard_update(const PicardUpdate<T>& op);
template <class T>
void secant_slopes(const SecantSlopes<T>& op);
template <class T>
void predict_guess(const PredictGuess<T>& op);
template <class T>
void gather_rows(const GatherRows<T>& op);
template <class T>
void record_points(const RecordPoints<T>& op);
template <class T>
void trajectory_error(const TrajectoryError<T>& op);
template <class T>
void philox_normal(const Normals<T>& op);

}  // namespace ctd
