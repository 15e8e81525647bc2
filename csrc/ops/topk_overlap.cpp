// The k largest cells of a row without sorting it: the k-th largest of the maxima of many small
// groups is at most the k-th largest value, so that cells below it are excluded, and few remain.
#include "topk_overlap.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>

#include "../core/memory.h"
#include "../core/parallel.h"
#include "../core/simd.h"

namespace pycc::topk_overlap {
namespace {

// Scratch memory for one row, reused over the rows of a thread; unused pages are never touched.
struct Room {
    Room(std::int64_t cells, std::int64_t groups)
        : ranks(new std::uint64_t[static_cast<std::size_t>(cells)]),
          candidates(new std::uint32_t[static_cast<std::size_t>(cells)]) {
        maxima.reserve(groups);
        keys.reserve(groups);
        alive.reserve(groups);
    }

    AlignedScratch<float> maxima;
    AlignedScratch<std::uint32_t> keys, alive;
    std::unique_ptr<std::uint64_t[]> ranks;
    std::unique_ptr<std::uint32_t[]> candidates;
};

// A row is read as `depth` parts of `count` cells; group g is the g-th cell of each part. The cells
// after the last part are in no group. If grouping does not help, there are no groups.
struct Groups {
    std::int64_t depth, count;
};

// Few groups are fast to select from, small groups leave few cells: a group has about
// sqrt(cells / k) cells, and there are at least 2 k groups.
Groups make_groups(std::int64_t cells, std::int64_t k) {
    constexpr std::int64_t kMaxDepth = 64;
    const double ratio = static_cast<double>(cells) / static_cast<double>(k);
    const std::int64_t depth =
        std::min({static_cast<std::int64_t>(std::sqrt(ratio)), cells / (2 * k), kMaxDepth});
    if (depth < 2) return {0, 0};
    constexpr std::int64_t kLine = 16;  // floats, so that every part of an aligned row is aligned
    const std::int64_t count = cells / depth / kLine * kLine;
    return count >= k ? Groups{depth, count} : Groups{0, 0};
}

// Computes the maximum of each group without NaN (unless it comes first); returns whether there is
// a NaN.
[[gnu::always_inline]] inline bool group_maxima(float* __restrict__ maxima,
                                                const float* __restrict__ row,
                                                const Groups& groups) {
    std::uint32_t magnitude = 0;
    const auto look_at = [&magnitude](float value) {
        std::uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        magnitude = std::max(magnitude, bits & 0x7FFFFFFFU);
    };
    for (std::int64_t g = 0; g < groups.count; ++g) {
        maxima[g] = row[g];
        look_at(row[g]);
    }
    for (std::int64_t i = 1; i < groups.depth; ++i) {
        const float* part = row + i * groups.count;
        for (std::int64_t g = 0; g < groups.count; ++g) {
            maxima[g] = part[g] > maxima[g] ? part[g] : maxima[g];
            look_at(part[g]);
        }
    }
    return magnitude > 0x7F800000U;
}

// Returns the k-th largest of values, 1 <= k <= count; changes their order. Each round spreads the
// range of the remaining values over the bins and keeps one bin: at most 64 / kBits rounds.
template <class Key>
[[gnu::always_inline]] inline Key kth_largest(Key* values /* [count] */, std::int64_t count,
                                              std::int64_t k) {
    constexpr int kBits = 10;
    constexpr std::int64_t kFew = 64;
    while (count > kFew) {
        Key low = values[0], high = values[0];
        for (std::int64_t i = 1; i < count; ++i) {
            low = values[i] < low ? values[i] : low;
            high = values[i] > high ? values[i] : high;
        }
        int shift = 0;
        while (((high - low) >> shift) >> kBits != 0) ++shift;
        std::uint32_t bins[1 << kBits] = {};
        for (std::int64_t i = 0; i < count; ++i) ++bins[(values[i] - low) >> shift];
        Key bin = (high - low) >> shift;
        while (k > static_cast<std::int64_t>(bins[bin])) k -= bins[bin--];
        if (shift == 0) return low + bin;
        std::int64_t kept = 0;
        for (std::int64_t i = 0; i < count; ++i) {
            const Key value = values[i];
            values[kept] = value;
            kept += (value - low) >> shift == bin ? 1 : 0;
        }
        count = kept;
    }
    std::nth_element(values, values + (k - 1), values + count, std::greater<>());
    return values[k - 1];
}

// Writes the cells of a row that may be among its k largest; returns their number.
[[gnu::always_inline]] inline std::int64_t gather_candidates(const float* row /* [cells] */,
                                                             std::int64_t cells, std::int64_t k,
                                                             const Groups& groups, Room& room) {
    std::uint32_t* candidates = room.candidates.get();
    if (groups.count == 0) {
        for (std::int64_t i = 0; i < cells; ++i) candidates[i] = static_cast<std::uint32_t>(i);
        return cells;
    }
    float* maxima = room.maxima.data();
    std::uint32_t *keys = room.keys.data(), *alive = room.alive.data();
    const bool has_nan = group_maxima(maxima, row, groups);
    for (std::int64_t g = 0; g < groups.count; ++g) keys[g] = order_key(maxima[g]);
    const float least = key_value(kth_largest(keys, groups.count, k));

    // Of equal cells the lower index ranks higher: if more than k groups have no value above
    // `least`, as in maps that are mostly 0, the first k cells equal to it suffice, and these
    // groups are not searched. No value is above NaN.
    std::int64_t tied = 0;
    for (std::int64_t g = 0; g < groups.count; ++g) tied += maxima[g] == least ? 1 : 0;
    const bool many_tied = !has_nan && tied > k;
    const auto remains = [&](float value) { return many_tied ? value > least : !(value < least); };

    // Always written, kept or not, since a branch would be unpredictable.
    std::int64_t living = 0, found = 0;
    for (std::int64_t g = 0; g < groups.count; ++g) {
        alive[living] = static_cast<std::uint32_t>(g);
        living += has_nan || remains(maxima[g]) ? 1 : 0;
    }
    const auto take = [&](std::int64_t i, bool kept) {
        candidates[found] = static_cast<std::uint32_t>(i);
        found += kept ? 1 : 0;
    };
    for (std::int64_t first = 0; first < groups.depth * groups.count; first += groups.count) {
        for (std::int64_t n = 0; n < living; ++n) {
            take(first + alive[n], remains(row[first + alive[n]]));
        }
    }
    for (std::int64_t i = groups.depth * groups.count; i < cells; ++i) take(i, remains(row[i]));
    const std::int64_t larger = found;
    for (std::int64_t i = 0; many_tied && i < cells && found - larger < k; ++i) {
        take(i, row[i] == least);
    }
    return found;
}

// Returns the k-th largest rank of a row; the scratch memory then has candidates that include all
// of the k largest.
[[gnu::always_inline]] inline std::uint64_t least_rank(const float* row /* [cells] */,
                                                       std::int64_t cells, std::int64_t k,
                                                       const Groups& groups, Room& room,
                                                       std::int64_t& found) {
    found = gather_candidates(row, cells, k, groups, room);
    const std::uint32_t* candidates = room.candidates.get();
    std::uint64_t* ranks = room.ranks.get();
    for (std::int64_t i = 0; i < found; ++i) {
        ranks[i] = cell_rank(row[candidates[i]], candidates[i]);
    }
    return kth_largest(ranks, found, k);
}

PYCC_SIMD std::int64_t row_overlap(const float* a /* [cells] */, const float* b /* [cells] */,
                                   std::int64_t cells, std::int64_t k, const Groups& groups,
                                   Room& room) noexcept {
    std::int64_t found = 0;
    const std::uint64_t least_a = least_rank(a, cells, k, groups, room, found);
    const std::uint64_t least_b = least_rank(b, cells, k, groups, room, found);
    const std::uint32_t* candidates = room.candidates.get();
    std::int64_t both = 0;
    for (std::int64_t i = 0; i < found; ++i) {
        const std::uint32_t index = candidates[i];
        const bool among_a = cell_rank(a[index], index) >= least_a;
        const bool among_b = cell_rank(b[index], index) >= least_b;
        both += among_a & among_b ? 1 : 0;
    }
    return both;
}

}  // namespace

void cpu(std::int64_t* overlap /* [rows] */, const float* a /* [rows,cells] */,
         const float* b /* [rows,cells] */, std::int64_t rows, std::int64_t cells, std::int64_t k,
         int threads) {
    if (k == 0 || k == cells) {
        std::fill(overlap, overlap + rows, k);
        return;
    }
    const Groups groups = make_groups(cells, k);
    const std::int64_t grain = std::max<std::int64_t>((1 << 19) / cells, 1);  // about 0.2 ms
    parallel_for(rows, grain, threads, [&](std::int64_t begin, std::int64_t end) {
        Room room(cells, groups.count);
        for (std::int64_t n = begin; n < end; ++n) {
            overlap[n] = row_overlap(a + n * cells, b + n * cells, cells, k, groups, room);
        }
    });
}

}  // namespace pycc::topk_overlap
