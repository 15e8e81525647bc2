// The largest window sum, computed from few sums: the sum of a window is bounded by those of the
// tiles that it touches, and tiles that cannot reach the best sum so far are skipped.
//
// A bound is a float32 sum of max(value, 0), enlarged by its possible rounding error: more and
// larger terms never have a smaller sum, also after rounding. A window that contains NaN or +inf
// has an infinite bound and is never skipped. The exact sums are computed in the fixed order of
// window_sums.h, independent of what is skipped. If all windows have similar sums, the bounds of
// tiles skip little; then each window is bounded separately, at half the cost of its sum.
#include "max_window_sum.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../core/memory.h"
#include "../core/parallel.h"
#include "../core/simd.h"
#include "../core/window_sums.h"

namespace pycc::max_window_sum {
namespace {

using window_sums::Area;
using window_sums::Sums;
using FourFloats [[gnu::vector_size(16)]] = float;

// Writes max(value, 0) of a row of values to `sums`, or adds it; NaN stays NaN.
template <bool kAdd>
[[gnu::always_inline]] inline void take_row(float* __restrict__ sums,
                                            const float* __restrict__ values, std::int64_t width) {
    constexpr std::int64_t kBlock = 64;  // unrolled by the compiler
    const std::int64_t whole = width / kBlock * kBlock;
    const auto take = [&](std::int64_t x) {
        const float value = values[x] < 0.0F ? 0.0F : values[x];
        sums[x] = kAdd ? sums[x] + value : value;
    };
    for (std::int64_t x = 0; x < whole; x += kBlock) {
        for (std::int64_t i = x; i < x + kBlock; ++i) take(i);
    }
    for (std::int64_t x = whole; x < width; ++x) take(x);
}

// Selects every other of eight values.
template <int kFirst>
[[gnu::always_inline]] inline FourFloats pick(const FourFloats& a, const FourFloats& b) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, kFirst, kFirst + 2, kFirst + 4, kFirst + 6);
#else
    using FourInts [[gnu::vector_size(16)]] = std::int32_t;
    return __builtin_shuffle(a, b, FourInts{kFirst, kFirst + 2, kFirst + 4, kFirst + 6});
#endif
}

// Sums neighbouring pairs of 2 * count values; count is a multiple of 4; may work in place.
[[gnu::always_inline]] inline void add_pairs(float* sums /* [count] */,
                                             const float* values /* [2*count] */,
                                             std::int64_t count) {
    for (std::int64_t x = 0; x < count; x += 4) {
        FourFloats a, b;
        std::memcpy(&a, values + 2 * x, sizeof a);
        std::memcpy(&b, values + 2 * x + 4, sizeof b);
        a = pick<0>(a, b) + pick<1>(a, b);
        std::memcpy(sums + x, &a, sizeof a);
    }
}

// Sums max(value, 0) over tiles of tile x tile values; tile is a power of two.
PYCC_SIMD void tile_sums(float* tiles /* [height / tile rounded up, pitch] */, std::int64_t pitch,
                         float* row /* [tile * pitch], scratch: 0 from width on */,
                         const float* map, std::int64_t height, std::int64_t width,
                         std::int64_t tile) noexcept {
    for (std::int64_t top = 0; top < height; top += tile, tiles += pitch) {
        take_row<false>(row, map + top * width, width);
        for (std::int64_t y = top + 1; y < std::min(top + tile, height); ++y) {
            take_row<true>(row, map + y * width, width);
        }
        std::int64_t count = tile * pitch / 2;
        for (; count > pitch; count /= 2) add_pairs(row, row, count);
        add_pairs(tiles, row, count);
    }
}

// Whether some sum is at least `least`, or with kStrictly above it. False for NaN.
template <bool kStrictly, class T>
[[gnu::always_inline]] inline bool any_of(const T* sums, std::int64_t count, T least) {
    std::int32_t reached = 0;
    for (std::int64_t x = 0; x < count; ++x) {
        reached |= (kStrictly ? sums[x] <= least : sums[x] < least) ? 0 : 1;
    }
    return reached != 0;
}

PYCC_SIMD bool any_reaches(const float* sums /* [count] */, std::int64_t count,
                           float least) noexcept {
    return any_of<false>(sums, count, least);
}
PYCC_SIMD bool any_reaches(const double* sums /* [count] */, std::int64_t count,
                           double least) noexcept {
    return any_of<false>(sums, count, least);
}
PYCC_SIMD bool any_exceeds(const double* sums /* [count] */, std::int64_t count,
                           double least) noexcept {
    return any_of<true>(sums, count, least);
}

// Replaces NaN tiles by infinity, an upper bound of any sum; returns whether all are finite.
PYCC_SIMD bool settle_tiles(float* tiles /* [count] */, std::int64_t count) noexcept {
    std::int32_t unknown = 0;
    for (std::int64_t x = 0; x < count; ++x) {
        const bool finite = tiles[x] <= std::numeric_limits<float>::max();
        tiles[x] = finite ? tiles[x] : std::numeric_limits<float>::infinity();
        unknown |= finite ? 0 : 1;
    }
    return unknown == 0;
}

// Copies a row of bounds and keeps the largest of each column.
PYCC_SIMD void keep_bounds(float* __restrict__ bounds, float* __restrict__ most,
                           const float* __restrict__ sums, std::int64_t count) noexcept {
    for (std::int64_t x = 0; x < count; ++x) {
        bounds[x] = sums[x];
        most[x] = sums[x] > most[x] ? sums[x] : most[x];
    }
}

// Marks the columns whose bound is not below `limit`.
PYCC_SIMD void mark_alive(std::int32_t* __restrict__ alive, const float* __restrict__ bounds,
                          std::int64_t count, float limit) noexcept {
    for (std::int64_t x = 0; x < count; ++x) alive[x] |= bounds[x] < limit ? 0 : 1;
}

std::int64_t round_up(std::int64_t value, std::int64_t unit) {
    return (value + unit - 1) / unit * unit;
}

// Returns the factor that makes a float32 bound at least the float64 sum: twice the rounding error
// of the longest chain of additions, of `terms` on one axis and the doublings on the other.
double outward(std::int64_t terms) {
    constexpr std::int64_t kDoublings = 2 * 64;
    constexpr std::int64_t kMost = 1 << 23;  // beyond this, the error bound does not hold
    if (terms > kMost) return std::numeric_limits<double>::infinity();
    return 1.0 + std::ldexp(static_cast<double>(terms + kDoublings), -23);
}

// Searches for the best window among some rows of places of a map.
class Search {
  public:
    explicit Search(const Sizes& sizes)
        : sizes_(sizes),
          tile_(std::min(sizes.window_height, sizes.window_width) < 64 ? 4 : 8),
          grid_height_(1 + round_up(sizes.window_height - 1, tile_) / tile_),
          grid_width_(1 + round_up(sizes.window_width - 1, tile_) / tile_),
          tile_cols_(round_up(sizes.cols(), tile_) / tile_),
          pitch_(round_up(
              std::max(round_up(sizes.width, tile_) / tile_, tile_cols_ + grid_width_ - 1), 16)) {
        row_.reserve(tile_ * pitch_);
        alive_.reserve(tile_cols_);
        most_.reserve(tile_cols_);
    }

    BestWindow best(const float* map /* [h,w] */, std::int64_t top, std::int64_t bottom) {
        map_ = map, top_ = top, bottom_ = bottom, best_ = {0.0, -1};
        const std::int64_t highest = bound_tiles();
        exact(tiles(highest / tile_cols_, highest / tile_cols_ + 1, highest % tile_cols_,
                    highest % tile_cols_ + 1));
        const std::int64_t window = sizes_.window_height;
        for (std::int64_t start = top / window * window; start < bottom; start += window) {
            search_block(std::max(start, top), std::min(start + window, bottom));
        }
        return best_;
    }

  private:
    // Returns the windows whose first value is in these tiles.
    Area tiles(std::int64_t top, std::int64_t bottom, std::int64_t left, std::int64_t right) const {
        return {top_ + top * tile_, std::min(top_ + bottom * tile_, bottom_), left * tile_,
                std::min(right * tile_, sizes_.cols())};
    }

    // Computes bounds_[tile], which up to rounding is at least the sum of each window that begins
    // in the tile: a window touches at most grid_height_ x grid_width_ tiles. Returns the tile with
    // the largest bound.
    std::int64_t bound_tiles() {
        const std::int64_t height = bottom_ - top_ + sizes_.window_height - 1;
        const std::int64_t rows = round_up(height, tile_) / tile_;
        const std::int64_t tile_rows = round_up(bottom_ - top_, tile_) / tile_;
        const std::int64_t grid_rows = std::max(rows, tile_rows + grid_height_ - 1);
        grid_.reserve(grid_rows * pitch_);
        std::fill(grid_.data() + rows * pitch_, grid_.data() + grid_rows * pitch_, 0.0F);
        tile_sums(grid_.data(), pitch_, row_.data(), map_ + top_ * sizes_.width, height,
                  sizes_.width, tile_);
        finite_ = settle_tiles(grid_.data(), rows * pitch_);
        bounds_.reserve(tile_rows * tile_cols_);
        std::fill_n(most_.data(), tile_cols_, -1.0F);
        coarse_.compute(
            grid_.data(), pitch_, grid_height_, grid_width_, {0, tile_rows, 0, tile_cols_},
            [&](std::int64_t y, std::int64_t x, const float* sums, std::int64_t count) {
                keep_bounds(bounds_.data() + y * tile_cols_ + x, most_.data() + x, sums, count);
            });
        const float* most = std::max_element(most_.data(), most_.data() + tile_cols_);
        std::int64_t highest = most - most_.data();
        const std::int64_t last = (tile_rows - 1) * tile_cols_;
        while (highest < last && bounds_.data()[highest] != *most) highest += tile_cols_;
        return highest;
    }

    // Returns the limit below which the bound of a window from row y on excludes it.
    float limit(std::int64_t y, double scale) const {
        if (best_.index < 0) return -std::numeric_limits<float>::infinity();
        if (std::isnan(best_.sum)) return std::numeric_limits<float>::infinity();
        const bool later = y > best_.index / sizes_.cols();
        if (best_.sum == 0.0 && later) return std::numeric_limits<float>::denorm_min();
        const double most = std::numeric_limits<float>::max();
        const auto nearest = static_cast<float>(std::min(best_.sum / scale, most));
        return std::nextafter(nearest, -std::numeric_limits<float>::infinity());
    }

    // Searches rows [top, bottom) of places, of one block, in the tiles that remain.
    void search_block(std::int64_t top, std::int64_t bottom) {
        const double scale = outward(2 * tile_ + grid_height_);
        const std::int64_t first = (top - top_) / tile_, last = (bottom - 1 - top_) / tile_ + 1;
        std::fill_n(alive_.data(), tile_cols_, 0);
        for (std::int64_t y = first; y < last; ++y) {
            mark_alive(alive_.data(), bounds(y), tile_cols_, limit(top_ + y * tile_, scale));
        }
        for (const auto& [left, right] : alive_runs()) {
            std::int64_t upper = first, lower = last;
            const auto dead = [&, begin = left, count = right - left](std::int64_t y) {
                return !any_reaches(bounds(y) + begin, count, limit(top_ + y * tile_, scale));
            };
            while (upper < lower && dead(upper)) ++upper;
            while (upper < lower && dead(lower - 1)) --lower;
            Area area = tiles(upper, lower, left, right);
            area.top = std::max(area.top, top), area.bottom = std::min(area.bottom, bottom);
            if (area.top >= area.bottom) continue;
            const std::int64_t window = sizes_.window_height * sizes_.window_width;
            if (finite_ && area.count() >= 2 * window) {
                filter(area);
            } else {
                exact(area);
            }
        }
    }

    // Processes runs of columns of remaining tiles; gaps too small to save time are included.
    std::vector<std::pair<std::int64_t, std::int64_t>> alive_runs() const {
        std::vector<std::pair<std::int64_t, std::int64_t>> runs;
        for (std::int64_t x = 0; x < tile_cols_; ++x) {
            if (alive_.data()[x] == 0) continue;
            if (!runs.empty() && x - runs.back().second < grid_width_) {
                runs.back().second = x + 1;
            } else {
                runs.emplace_back(x, x + 1);
            }
        }
        return runs;
    }

    const float* bounds(std::int64_t y) const { return bounds_.data() + y * tile_cols_; }

    // Bounds each window of the area separately and computes the remaining ones.
    void filter(const Area& area) {
        const double scale = outward(sizes_.window_height);
        Area left{area.top, area.top, area.right, area.left};  // nothing yet
        std::int64_t gap = 0;                                  // rows since the last remaining one
        const auto flush = [&] {
            if (left.left < left.right) exact(left);
            left = {area.top, area.top, area.right, area.left};
        };
        // A new start costs column sums over the window's height, about as much as an eighth of
        // that number of rows of sums.
        const std::int64_t most_gap = sizes_.window_height / 8;
        std::int64_t strip = area.left;
        fine_.compute(map_, sizes_.width, sizes_.window_height, sizes_.window_width, area,
                      [&](std::int64_t y, std::int64_t x, const float* sums, std::int64_t count) {
                          if (x != strip) flush();
                          strip = x;
                          const float least = limit(y, scale);
                          if (!any_reaches(sums, count, least)) {
                              if (++gap > most_gap) flush();
                              return;
                          }
                          gap = 0;
                          std::int64_t first = 0, last = count;
                          while (sums[first] < least) ++first;
                          while (sums[last - 1] < least) --last;
                          if (left.left >= left.right) left.top = y;
                          left.bottom = y + 1;
                          left.left = std::min(left.left, x + first);
                          left.right = std::max(left.right, x + last);
                      });
        flush();
    }

    // Computes the sums of an area.
    void exact(const Area& area) {
        exact_.compute(map_, sizes_.width, sizes_.window_height, sizes_.window_width, area,
                       [&](std::int64_t y, std::int64_t x, const double* sums, std::int64_t count) {
                           const std::int64_t first = y * sizes_.cols() + x;
                           if (best_.index >= 0) {
                               const bool later = first > best_.index;
                               if (later && std::isnan(best_.sum)) return;
                               if (later ? !any_exceeds(sums, count, best_.sum)
                                         : !any_reaches(sums, count, best_.sum)) {
                                   return;
                               }
                           }
                           for (std::int64_t i = 0; i < count; ++i) best_.offer(sums[i], first + i);
                       });
    }

    Sizes sizes_;
    std::int64_t tile_;                      // side of a tile
    std::int64_t grid_height_, grid_width_;  // of the window in tiles
    std::int64_t tile_cols_, pitch_;
    AlignedScratch<float> row_, grid_, bounds_, most_;
    AlignedScratch<std::int32_t> alive_;
    bool finite_ = true;  // no NaN and no +inf in the map
    Sums<float> coarse_, fine_;
    Sums<double> exact_;

    const float* map_ = nullptr;
    std::int64_t top_ = 0, bottom_ = 0;  // rows of places
    BestWindow best_{0.0, -1};
};

}  // namespace

void cpu(double* sum /* [N] */, std::int64_t* place /* [N,2] (y, x) */,
         const float* maps /* [N,h,w] */, const Sizes& sizes, int threads) {
    if (sizes.maps == 0) return;
    // A map is one piece of work, unless there are fewer maps than threads.
    constexpr std::int64_t kGrain = 1 << 18;  // values: 0.2 ms if few sums are skipped
    const std::int64_t size = sizes.height * sizes.width;
    const std::int64_t wanted = (threads + sizes.maps - 1) / sizes.maps;
    const std::int64_t bands = std::clamp<std::int64_t>(std::min(size / kGrain, sizes.rows()), 1,
                                                        std::max<std::int64_t>(wanted, 1));
    std::vector<BestWindow> found(static_cast<std::size_t>(sizes.maps * bands));
    const std::int64_t grain = std::max<std::int64_t>(kGrain * bands / size, 1);
    parallel_for(sizes.maps * bands, grain, threads, [&](std::int64_t begin, std::int64_t end) {
        Search search(sizes);
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t band = i % bands, rows = sizes.rows();
            found[static_cast<std::size_t>(i)] = search.best(
                maps + i / bands * size, rows * band / bands, rows * (band + 1) / bands);
        }
    });
    for (std::int64_t n = 0; n < sizes.maps; ++n) {
        BestWindow best{0.0, -1};
        for (std::int64_t i = n * bands; i < (n + 1) * bands; ++i) {
            const BestWindow& other = found[static_cast<std::size_t>(i)];
            best.offer(other.sum, other.index);
        }
        sum[n] = best.sum;
        place[2 * n] = best.index / sizes.cols();
        place[2 * n + 1] = best.index % sizes.cols();
    }
}

}  // namespace pycc::max_window_sum
