#include "rounds.h"

#include <algorithm>
#include <stdexcept>

namespace ctd {
namespace {

std::size_t size(Index value) { return static_cast<std::size_t>(value); }

Index count_of(const std::vector<Index>& values) { return static_cast<Index>(values.size()); }

Index most(const std::vector<Index>& values) {
  return *std::max_element(values.begin(), values.end());
}

}  // namespace

template <class T>
Rounds<T>::Rounds(WindowScheduler& scheduler, const RoundParts<T>& parts)
    : scheduler_(scheduler), parts_(parts) {}

template <class T>
const Plan& Rounds<T>::plan() {
  const Plan& plan = scheduler_.plan();
  if (plan.slot.empty()) {
    throw std::runtime_error("every sample has ended: there is no further round");
  }
  return plan;
}

template <class T>
Index Rounds<T>::num_left_behind() {
  Index sum = 0;
  for (const Index start : scheduler_.plan().start) sum += start;
  return sum;
}

template <class T>
std::vector<std::pair<Index, Index>> Rounds<T>::admitted() {
  const Plan& plan = scheduler_.plan();
  std::vector<std::pair<Index, Index>> pairs;
  for (std::size_t a = 0; a < plan.slot.size(); ++a) {
    if (plan.is_new[a]) pairs.emplace_back(plan.slot[a], plan.sample[a]);
  }
  return pairs;
}

template <class T>
const Index* Rounds<T>::seeds_of(const Plan& plan) {
  if (parts_.seeds == nullptr) return nullptr;
  seeds_.clear();
  for (const Index sample : plan.sample) seeds_.push_back(parts_.seeds[sample]);
  return seeds_.data();
}

template <class T>
StepNoise<T> Rounds<T>::noise_from(const Plan& plan, const std::vector<Index>& first) {
  noise_first_.clear();
  for (std::size_t a = 0; a < first.size(); ++a) {
    noise_first_.push_back(first[a] * parts_.stride_noise_node +
                           plan.sample[a] * parts_.stride_noise_sample);
  }
  return {parts_.noise, noise_first_.data(), parts_.stride_noise_node};
}

template <class T>
void Rounds<T>::guess(const Plan& plan, const Tables<T>& tables, const std::vector<Index>& count,
                      Index max_threads) {
  const Index max_count = most(count);
  if (max_count == 0) return;
  StepNoise<T> z{};
  const Index* seeds = nullptr;
  if (parts_.guesses_noise) {
    z = noise_from(plan, plan.known);
    seeds = seeds_of(plan);
  }
  predict_guess(PredictGuess<T>{parts_.x, parts_.x0, z, seeds, plan.slot.data(), plan.known.data(),
                                count.data(), count_of(count), max_count, tables, parts_.num_slots,
                                parts_.num_elements, max_threads});
}

template <class T>
void Rounds<T>::begin(Index copies, T* rows, T* times, Index* row_sample, Index max_threads) {
  const Plan& plan = this->plan();
  const bool has_first = parts_.first_guess.a != nullptr;
  count_.clear();
  first_count_.clear();
  for (std::size_t a = 0; a < plan.slot.size(); ++a) {
    const Index count = std::max<Index>(plan.start[a] + plan.length[a] - plan.known[a], 0);
    const bool is_first = has_first && plan.known[a] == 0;
    first_count_.push_back(is_first ? count : 0);
    count_.push_back(is_first ? 0 : count);
  }
  if (has_first) guess(plan, parts_.first_guess, first_count_, max_threads);
  guess(plan, parts_.guess, count_, max_threads);

  const Index num_rows = count_of(plan.row_slot), num_elements = parts_.num_elements;
  gather_rows(GatherRows<T>{parts_.x, plan.row_slot.data(), plan.row_node.data(),
                            parts_.input_scale, parts_.model_time, rows, times, num_rows,
                            parts_.num_slots, parts_.update.num_nodes, num_elements, max_threads});
  for (Index copy = 1; copy < copies; ++copy) {
    std::copy(rows, rows + num_rows * num_elements, rows + copy * num_rows * num_elements);
    std::copy(times, times + num_rows, times + copy * num_rows);
  }
  std::copy(plan.row_sample.begin(), plan.row_sample.end(), row_sample);
}

template <class T>
void Rounds<T>::record(const Plan& plan) const {
  const auto keep = [&](const Ring<T>& record, const Ring<T>& ring, const Index* first) {
    if (record.data == nullptr) return;
    record_points(RecordPoints<T>{record, ring, plan.slot.data(), plan.sample.data(), first,
                                  plan.length.data(), count_of(plan.slot), parts_.num_samples,
                                  parts_.num_slots, parts_.num_elements});
  };
  std::vector<Index> updated = plan.start;
  for (Index& node : updated) ++node;
  keep(parts_.record, parts_.x, updated.data());
  keep(parts_.record_x0, parts_.x0, plan.start.data());
}

template <class T>
std::vector<Finished> Rounds<T>::correct(Rows<T> m, Rows<T> m_null, T guidance_scale,
                                         Index max_threads) {
  const Plan& plan = this->plan();
  const RoundParts<T>& p = parts_;
  const Index num_windows = count_of(plan.slot), num_rows = count_of(plan.row_slot);
  const Index max_length = most(plan.length), chunks = num_chunks(p.num_elements);
  const T* slopes = nullptr;
  if (p.change.data != nullptr) {
    slopes_.resize(size(num_rows));
    secant_slopes(SecantSlopes<T>{p.x, p.x0, p.change, m, m_null, p.update, plan.row_slot.data(),
                                  plan.row_node.data(), plan.row_entry.data(), plan.known.data(),
                                  num_windows, slopes_.data(), p.num_slots, num_rows,
                                  p.num_elements, guidance_scale, p.clips, p.clip, max_threads});
    slopes = slopes_.data();
  }
  first_row_.clear();
  Index row = 0;
  for (const Index length : plan.length) {
    first_row_.push_back(row);
    row += length;
  }
  partials_.resize(size(num_windows * max_length * chunks));
  const Entries entries{plan.slot.data(),  plan.start.data(), plan.length.data(),
                        first_row_.data(), num_windows,       max_length};
  picard_update(PicardUpdate<T>{p.x, p.x0, p.change, m, m_null, noise_from(plan, plan.start),
                                seeds_of(plan), slopes, p.update, entries, partials_.data(),
                                p.num_slots, num_rows, p.num_elements, guidance_scale, p.clips,
                                p.clip, max_threads});
  record(plan);
  accepted_.resize(size(num_windows));
  finite_.resize(size(num_windows));
  trajectory_error(TrajectoryError<T>{partials_.data(), num_windows, max_length, chunks,
                                      p.num_elements, p.threshold, p.update.num_nodes + 1,
                                      plan.start.data(), plan.length.data(), accepted_.data(),
                                      finite_.data()});
  RoundWindows windows{plan.sample, plan.start, plan.length};
  std::vector<Finished> finished = scheduler_.step(accepted_, finite_, accepted_);
  history_.push_back(std::move(windows));
  return finished;
}

template class Rounds<float>;
template class Rounds<double>;

}  // namespace ctd
