#include "normals.h"

#include <cmath>
#include <cstring>

#include "compiler.h"
#include "ops.h"
#include "parallel.h"

namespace ctd {
namespace {

// counters that are worked on at a time, and the four normals of each
constexpr int kBatch = 16;

// multipliers and Weyl increments of Philox 4x32 (Salmon et al. 2011)
constexpr std::uint32_t kM0 = 0xD2511F53, kM1 = 0xCD9E8D57;
constexpr std::uint32_t kW0 = 0x9E3779B9, kW1 = 0xBB67AE85;

struct Words {
  std::uint32_t w[4][kBatch];
};

// The words of counters (first + i, node, stream, 0).
CTD_INLINE void philox(std::int64_t seed, std::uint32_t node, std::uint32_t stream,
                       std::uint32_t first, Words& words) {
  CTD_INDEPENDENT
  for (int i = 0; i < kBatch; ++i) {
    std::uint32_t k0 = static_cast<std::uint32_t>(seed);
    std::uint32_t k1 = static_cast<std::uint32_t>(static_cast<std::uint64_t>(seed) >> 32);
    std::uint32_t c0 = first + static_cast<std::uint32_t>(i), c1 = node, c2 = stream, c3 = 0;
    for (int round = 0; round < 10; ++round) {
      const std::uint64_t product0 = static_cast<std::uint64_t>(c0) * kM0;
      const std::uint64_t product1 = static_cast<std::uint64_t>(c2) * kM1;
      c0 = static_cast<std::uint32_t>(product1 >> 32) ^ c1 ^ k0;
      c2 = static_cast<std::uint32_t>(product0 >> 32) ^ c3 ^ k1;
      c1 = static_cast<std::uint32_t>(product1);
      c3 = static_cast<std::uint32_t>(product0);
      k0 += kW0;
      k1 += kW1;
    }
    words.w[0][i] = c0;
    words.w[1][i] = c1;
    words.w[2][i] = c2;
    words.w[3][i] = c3;
  }
}

CTD_INLINE std::uint64_t bits_of(double value) {
  std::uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

CTD_INLINE double from_bits(std::uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// An integer below 2^52 put into the mantissa of 2^52: exact, and a vector instruction everywhere.
constexpr std::uint64_t kTwo52Bits = 0x4330000000000000;
constexpr double kTwo52 = 4503599627370496.0;

CTD_INLINE double to_double(std::uint64_t value) { return from_bits(value | kTwo52Bits) - kTwo52; }

// Rounding the word to fp32 first makes one number for every precision and device.
CTD_INLINE double rounded_word(std::uint32_t word) {
  return static_cast<double>(static_cast<float>(to_double(word)));
}

// log(w 2^-32) for w from 1 to 2^32 of at most 24 bits: w = 2^e (1 + f), sqrt(1/2) <= 1 + f <
// sqrt(2), and log(1 + f) = f - s (f - r) with s = f / (2 + f) and r = 2 (s²/3 + s⁴/5 + ...).
CTD_INLINE double log_of_word(double w) {
  constexpr std::uint64_t kMantissa = 0x000FFFFFFFFFFFFF;
  constexpr std::uint64_t kOne = 0x3FF0000000000000, kRootHalf = 0x3FE6A09E667F3BCD;
  const std::uint64_t shifted = bits_of(w) + (kOne - kRootHalf);
  const double e = to_double(shifted >> 52) - (1023.0 + 32.0);
  const double f = from_bits((shifted & kMantissa) + kRootHalf) - 1.0;
  const double s = f / (2.0 + f);
  const double s2 = s * s;
  double r = 2.0 / 19.0;
  r = r * s2 + 2.0 / 17.0;
  r = r * s2 + 2.0 / 15.0;
  r = r * s2 + 2.0 / 13.0;
  r = r * s2 + 2.0 / 11.0;
  r = r * s2 + 2.0 / 9.0;
  r = r * s2 + 2.0 / 7.0;
  r = r * s2 + 2.0 / 5.0;
  r = r * s2 + 2.0 / 3.0;
  r = r * s2;
  // the first part of log 2 has 32 bits, so that its product with e is exact
  constexpr double kLog2High = 0x1.62e42feep-1, kLog2Low = 0x1.a39ef35793c76p-33;
  return e * kLog2High + (f + (e * kLog2Low - s * (f - r)));
}

// cos and sin of 2 pi w 2^-32 for w up to 2^32, by quarter turns that are exact.
CTD_INLINE void cos_sin_of_word(double w, double& cosine, double& sine) {
  const double turns = w * 0x1p-30;  // quarter turns, 0 to 4
  // 2^52 rounds to a whole number, whose low bits say which quarter it is
  const double rounded = turns + kTwo52;
  const std::uint64_t quarter = bits_of(rounded);
  const double t = turns - (rounded - kTwo52);
  // t is in [-1/2, 1/2] and y = t pi/2, whose series end where the next term is below rounding
  constexpr double kHalfPi = 0x1.921fb54442d18p+0, kHalfPiLow = 0x1.1a62633145c07p-54;
  const double y = t * kHalfPi;
  const double y2 = y * y;
  double p = 1.0 / 355687428096000.0;
  p = p * y2 - 1.0 / 1307674368000.0;
  p = p * y2 + 1.0 / 6227020800.0;
  p = p * y2 - 1.0 / 39916800.0;
  p = p * y2 + 1.0 / 362880.0;
  p = p * y2 - 1.0 / 5040.0;
  p = p * y2 + 1.0 / 120.0;
  p = p * y2 - 1.0 / 6.0;
  const double s = y + (y * y2 * p + t * kHalfPiLow);
  double q = 1.0 / 20922789888000.0;
  q = q * y2 - 1.0 / 87178291200.0;
  q = q * y2 + 1.0 / 479001600.0;
  q = q * y2 - 1.0 / 3628800.0;
  q = q * y2 + 1.0 / 40320.0;
  q = q * y2 - 1.0 / 720.0;
  q = q * y2 + 1.0 / 24.0;
  const double c = 1.0 - (0.5 * y2 - y2 * y2 * q);
  // a quarter turn takes (c, s) to (-s, c): swapped for odd quarters, then signs
  const std::uint64_t odd = 0 - (quarter & 1);
  const std::uint64_t cos_bits = (bits_of(c) & ~odd) | (bits_of(s) & odd);
  const std::uint64_t sin_bits = (bits_of(s) & ~odd) | (bits_of(c) & odd);
  cosine = from_bits(cos_bits ^ (((quarter + 1) & 2) << 62));
  sine = from_bits(sin_bits ^ ((quarter & 2) << 62));
}

template <class T>
CTD_INLINE void box_muller(const std::uint32_t* word_radius, const std::uint32_t* word_angle,
                           T* first, T* second) {
  CTD_INDEPENDENT
  for (int i = 0; i < kBatch; ++i) {
    // the word 0 would be log(0): it counts as 1
    const double w = rounded_word(word_radius[i] < 1 ? 1 : word_radius[i]);
    const double radius = std::sqrt(-2.0 * log_of_word(w));
    double cosine, sine;
    cos_sin_of_word(rounded_word(word_angle[i]), cosine, sine);
    first[i] = static_cast<T>(radius * cosine);
    second[i] = static_cast<T>(radius * sine);
  }
}

template <class T>
CTD_INLINE void fill(std::int64_t seed, std::int64_t node, std::int64_t stream, std::int64_t first,
                     std::int64_t count, T* out) {
  Words words;
  T normals[4][kBatch];
  T batch[4 * kBatch];
  for (std::int64_t done = 0; done < count; done += 4 * kBatch) {
    philox(seed, static_cast<std::uint32_t>(node), static_cast<std::uint32_t>(stream),
           static_cast<std::uint32_t>((first + done) / 4), words);
    box_muller(words.w[0], words.w[1], normals[0], normals[1]);
    box_muller(words.w[2], words.w[3], normals[2], normals[3]);
    for (int i = 0; i < kBatch; ++i) {
      for (int k = 0; k < 4; ++k) batch[4 * i + k] = normals[k][i];
    }
    const std::int64_t left = count - done < 4 * kBatch ? count - done : 4 * kBatch;
    std::memcpy(out + done, batch, static_cast<std::size_t>(left) * sizeof(T));
  }
}

}  // namespace

CTD_CLONES void fill_normals(std::int64_t seed, std::int64_t node, std::int64_t stream,
                             std::int64_t first, std::int64_t count, float* out) {
  fill(seed, node, stream, first, count, out);
}

CTD_CLONES void fill_normals(std::int64_t seed, std::int64_t node, std::int64_t stream,
                             std::int64_t first, std::int64_t count, double* out) {
  fill(seed, node, stream, first, count, out);
}

template <class T>
void philox_normal(const Normals<T>& op) {
  const Index chunks = num_chunks(op.num_elements);
  const auto fill_item = [&](Index item) {
    const Index row = item / chunks, first = item % chunks * kChunk;
    fill_normals(op.seeds[row], op.nodes[row], op.stream, first,
                 std::min(kChunk, op.num_elements - first), op.out + row * op.num_elements + first);
  };
  for_each_item(op.num_rows * chunks, op.num_rows * op.num_elements, op.max_threads, fill_item);
}

template void philox_normal(const Normals<float>& op);
template void philox_normal(const Normals<double>& op);

}  // namespace ctd
