// Logarithms of hypergeometric probabilities, with proven error bounds, for certificates. O(1) per
// value.
//
// p = C(d-n,k) / C(d,k) is the probability that k entries drawn from d without replacement miss n
// given ones. With m = min(n,k), b = max(n,k), A = d-b, B = d-m, r = d-n-k, Stirling's formula
// ln x! = (x+1/2) ln x - x + ln(2 pi)/2 + delta(x) turns ln p into
//
//     -m ln(d/A) - A phi(m/A) + d phi(m/d) + ln(A B / (d r)) / 2
//         + delta(A) - delta(r) + delta(B) - delta(d),      phi(t) = (1-t) ln(1-t) + t >= 0.
//
// All sizes are exact integers, A B = d r + b m exactly, and every term is of the order of ln p or
// smaller, so that nothing cancels. For r = 0, where ln r! = 0, ln(A B/(d r))/2 - delta(r) becomes
// ln(2 pi A B/d)/2.
//
// Logarithms and phi come from atanh(w) = w + w z T(z), z = w^2, T(z) = 1/3 + z/5 + z^2/7 + ...,
// 0 <= w <= 1/3, and from additions, multiplications and divisions only. So the result does not
// depend on a mathematics library, has the same bits on every machine, and its error bound can be
// proven. Relative errors, to first order in u = 2^-53:
//   T       2.3 u by Horner. Truncation after 16 terms is 0.02 u of atanh.
//   ln(c/a) = e ln 2 + 2 atanh(w), w = (c-s)/(c+s), s = a 2^e, c/2 < s <= c: numerator, denominator
//           and e ln2_high are exact. w has u, which is 1.1 u of atanh; w z T has 5.4 u, 0.2 u of
//           atanh; each sum adds u of itself. Together 2.4 u, for any e.
//   m ln(d/A)   3.4 u.
//   A phi(m/A)  = m w (1 - (1-w) w T) for w = m/(2A-m), where 2r > A: the bracket, above 0.92, has
//           1.1 u, the rest 3 u: 4.1 u. Else m - r ln(A/r): 3.4 u of r ln(A/r) and u of itself.
//   d phi(m/d)  the first form, since m <= d/2: 4.1 u.
//   ln(A B/(d r))/2 = ln(1+q)/2, q = b m/(d r): q has 3 u. Below q = 1 the logarithm is 2 atanh(w),
//           w = q/(2+q): 6.5 u. Above, 1+q has 4 u, which is 5.8 u of its logarithm, and the rest
//           2.7 u: 8.5 u. For r = 0 the argument has 4 u and is above 3: less.
//   delta   u from the table. Else 4 u, and the series stops 2.5 u short at most: by the first term
//           left out, at x = 16.
// The small terms are summed with 3 u of each. As A phi(m/A) >= d phi(m/d), the sum of the large
// ones adds u of m ln(d/A) and 2 u of A phi(m/A) at most. The last subtraction adds u of ln p, and
// so does the addition that widens the result. `error_bound` has these coefficients, rounded up:
// the 0.6 u of m ln(d/A) alone, at least 0.2 u of ln p since A phi(m/A) <= 1.5 m ln(d/A), are more
// than all second-order terms.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "../core/device.h"

#if defined(PYCC_CUDA)
#include "../core/cuda_api.h"
#endif

namespace pycc::log_probability {

// The event: k entries drawn from d avoid n given ones (untouched), or lie among them (inside).
enum class Event : int { untouched = 0, inside = 1 };

// nearest: within a few units in the last place; down, up: a proven lower, upper bound.
enum class Rounding : int { down = -1, nearest = 0, up = 1 };

// Largest d: d + A and 2d - m are then exact in double.
constexpr std::int64_t kMaxPopulation = std::int64_t{1} << 52;

PYCC_HD std::uint64_t bits_of(double value) {
    std::uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

PYCC_HD double from_bits(std::uint64_t bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Returns condition ? x : y, by bits. The compiler may turn a conditional into a branch and move
// computations into it, which prevents vectorisation.
PYCC_HD double choose(bool condition, double x, double y) {
    const std::uint64_t mask = std::uint64_t{0} - static_cast<std::uint64_t>(condition);
    return from_bits((bits_of(x) & mask) | (bits_of(y) & ~mask));
}

PYCC_HD std::uint64_t choose(bool condition, std::uint64_t x, std::uint64_t y) {
    const std::uint64_t mask = std::uint64_t{0} - static_cast<std::uint64_t>(condition);
    return (x & mask) | (y & ~mask);
}

// x <= 2^52 as a double; not every instruction set converts vectors of 64-bit integers.
PYCC_HD double exact_double(std::uint64_t x) {
    constexpr double kUnit = 4503599627370496.0;  // 2^52: its unit in the last place is 1
    return from_bits(x + 0x4330000000000000U) - kUnit;
}

// T(z), 0 <= z <= 1/9.
template <int kTerm = 0>
PYCC_HD double atanh_series(double z) {
    constexpr int kTerms = 16;
    constexpr double kCoefficient = 1.0 / (2 * kTerm + 3);
    if constexpr (kTerm + 1 < kTerms) {
        return kCoefficient + z * atanh_series<kTerm + 1>(z);
    } else {
        return kCoefficient;
    }
}

// halvings * ln 2 + 2 atanh(w)
PYCC_HD double logarithm(double halvings, double w) {
    constexpr double kLn2High = 0x1.62e42fefa2p-1;  // 40 bits: exact times up to 2^13
    constexpr double kLn2Low = 0x1.9ef35793c7673p-41;
    const double twice = w + w, z = w * w;
    return halvings * kLn2High + (twice + (twice * z * atanh_series(z) + halvings * kLn2Low));
}

// ln(c/a) for integers 1 <= a <= c <= 2^52.
PYCC_HD double log_ratio(double c, double a) {
    const std::uint64_t exponents = (bits_of(c) >> 52) - (bits_of(a) >> 52);
    const double scaled = from_bits(bits_of(a) + (exponents << 52));  // within (c/2, 2c)
    const bool beyond = scaled > c;
    const double s = choose(beyond, 0.5 * scaled, scaled);
    return logarithm(exact_double(exponents) - choose(beyond, 1.0, 0.0), (c - s) / (c + s));
}

// ln(1+q), q >= 0; `sum` is 1+q.
PYCC_HD double log_sum(double sum, double q) {
    const std::uint64_t exponent = (bits_of(sum) >> 52) - 1023;
    const double fraction = from_bits(bits_of(sum) - (exponent << 52)) - 1.0;
    const double over = choose(exponent == 0, q, fraction);  // q keeps the digits that 1+q loses
    return logarithm(exact_double(exponent), over / (2.0 + over));
}

// x phi(m/x) for m <= x/2, both exact.
PYCC_HD double small_phi(double x, double m) {
    const double w = m / (x + (x - m));
    return m * w * (1.0 - (1.0 - w) * w * atanh_series(w * w));
}

// delta(x), the error of Stirling's formula; delta(0) is taken as 0.
PYCC_HD double stirling_error(std::uint64_t x, double value) {
    static constexpr double kExact[16] = {
        0.0,
        0x1.4c071bcda0a5bp-4,
        0x1.52a9b923ea649p-5,
        0x1.c579a268d80b3p-6,
        0x1.54a2662fd78a9p-6,
        0x1.10b4e513fcbedp-6,
        0x1.c6b167bebdf36p-7,
        0x1.85d4d612e4a86p-7,
        0x1.552805e7b3076p-7,
        0x1.2f4871b12ab64p-7,
        0x1.10f9d4c0743a7p-7,
        0x1.f0593088014f8p-8,
        0x1.c7018733aa9c6p-8,
        0x1.a40514700f36cp-8,
        0x1.86076c002d4a7p-8,
        0x1.6c08f6f194a10p-8,
    };
    const bool small = x < 16;
    const double exact = kExact[choose(small, x, 0)];
    const double one = 1.0 / choose(small, 16.0, value), z = one * one;
    const double series =
        one * (1.0 / 12 -
               z * (1.0 / 360 -
                    z * (1.0 / 1260 - z * (1.0 / 1680 - z * (1.0 / 1188 - z * (691.0 / 360360))))));
    return choose(small, exact, series);
}

// Returns ln of the probability of `event`, rounded: exactly 0 if the event is certain, -infinity
// if it is impossible, NaN outside 0 <= n, k <= d <= kMaxPopulation. It has no branches, so that a
// loop over it vectorises, and is symmetric in n and k to the bit.
PYCC_HD double log_probability(std::int64_t population, std::int64_t given, std::int64_t drawn,
                               Event event, Rounding rounding) {
    // Unsigned: negative numbers become too large, and overflow of invalid sizes is defined.
    const auto all = static_cast<std::uint64_t>(population);
    const auto asked = static_cast<std::uint64_t>(given);
    const auto taken = static_cast<std::uint64_t>(drawn);
    const auto most = static_cast<std::uint64_t>(kMaxPopulation);
    const bool valid = (all <= most) & (asked <= all) & (taken <= all);
    const std::uint64_t avoided = event == Event::inside ? all - asked : asked;
    const bool certain = (avoided == 0) | (taken == 0);
    const bool possible = taken <= all - avoided;
    const bool ordinary = valid & !certain & possible;

    const std::uint64_t n = choose(ordinary, avoided, 1), k = choose(ordinary, taken, 1);
    const std::uint64_t di = choose(ordinary, all, 2), mi = choose(n < k, n, k), bi = n + k - mi;
    const std::uint64_t ai = di - bi, ci = di - mi, ri = ai - mi;
    const double d = exact_double(di), m = exact_double(mi), b = exact_double(bi);
    const double a = exact_double(ai), c = exact_double(ci), r = exact_double(ri);
    const bool none_left = ri == 0;
    const double rest = choose(none_left, 1.0, r);

    const double first = m * log_ratio(d, a);
    const bool near = r + r > a;
    const double direct = r * log_ratio(a, rest);
    const double second = choose(near, small_phi(a, m), m - direct);
    const double third = small_phi(d, m);

    constexpr double kTwoPi = 6.283185307179586;
    const double q = b * m / (d * rest);
    const double half = 0.5 * log_sum(choose(none_left, kTwoPi * (m * c) / d, 1.0 + q), q);
    const double delta_a = stirling_error(ai, a), delta_c = stirling_error(ci, c);
    const double delta_r = stirling_error(ri, r), delta_d = stirling_error(di, d);
    const double small = half + (delta_a - delta_r) + (delta_c - delta_d);
    const double value = small - (first + (second - third));

    constexpr double kUnit = 0x1p-53;
    const double error_bound =
        kUnit * (5.0 * (first + third) + choose(near, 7.0 * second, 3.5 * second + 4.0 * direct) +
                 13.0 * (half + (delta_a + delta_r) + (delta_c + delta_d)) - 2.0 * value);
    const double moved = value + static_cast<double>(static_cast<int>(rounding)) * error_bound;
    const double rounded = choose(moved > 0.0, 0.0, moved);
    const double degenerate = choose(certain, 0.0, -std::numeric_limits<double>::infinity());
    const double defined = choose(ordinary, rounded, degenerate);
    return choose(valid, defined, std::numeric_limits<double>::quiet_NaN());
}

// Steps of the arguments: each has one element (step 0) or `count` elements (step 1).
struct Steps {
    std::int64_t population, given, drawn;
    std::int64_t count;
};

void cpu(double* out /* [count] */, const std::int64_t* population /* d */,
         const std::int64_t* given /* n */, const std::int64_t* drawn /* k */, const Steps& steps,
         Event event, Rounding rounding, int threads);

#if defined(PYCC_CUDA)
void cuda(double* out /* [count] */, const std::int64_t* population /* [1 or count], d */,
          const std::int64_t* given /* [1 or count], n */,
          const std::int64_t* drawn /* [1 or count], k */, const Steps& steps, Event event,
          Rounding rounding, cudaStream_t stream);
#endif

}  // namespace pycc::log_probability
