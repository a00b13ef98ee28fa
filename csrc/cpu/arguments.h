// What Python hands over, as the operations take it: addresses (0 for none), sizes and strides.
#pragma once

#include <cstdint>
#include <tuple>
#include <utility>

#include "ops.h"

namespace ctd {

using Address = std::uintptr_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// address and strides of a ring or of rows
using RingArgument = std::tuple<Address, Index, Index>;
using RowsArgument = std::pair<Address, Index>;

template <class T>
Ring<T> ring(const RingArgument& argument, Index num_nodes) {
  return {pointer<T>(std::get<0>(argument)), std::get<1>(argument), std::get<2>(argument),
          num_nodes};
}

template <class T>
Rows<T> rows(const RowsArgument& argument) {
  return {pointer<T>(argument.first), argument.second};
}

// addresses of A, B, C, G, P, Q, then N and K
using TablesArgument =
    std::tuple<Address, Address, Address, Address, Address, Address, Index, Index>;

template <class T>
Tables<T> tables(const TablesArgument& argument) {
  const auto [a, b, c, g, p, q, num_nodes, order] = argument;
  return {pointer<T>(a), pointer<T>(b), pointer<T>(c), pointer<T>(g),
          pointer<T>(p), pointer<T>(q), num_nodes,     order};
}

// addresses of slot, start, length and first_row, then A and the largest length
using EntriesArgument = std::tuple<Address, Address, Address, Address, Index, Index>;

inline Entries entries(const EntriesArgument& argument) {
  const auto [slot, start, length, first_row, count, max_length] = argument;
  return {pointer<Index>(slot),
          pointer<Index>(start),
          pointer<Index>(length),
          pointer<Index>(first_row),
          count,
          max_length};
}

}  // namespace ctd
