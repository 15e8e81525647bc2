// The pair of windows with the largest union, computed from few pairs.
//
// A union is at most S_A + S_B, also after rounding. The search starts with a good pair: the
// fullest window and its best partner, then the best partner of that one, and so on. Candidates are
// the windows whose sum plus that of the fullest reaches the sum of this pair. From the fullest on,
// each candidate is paired with those after it as long as S_A + S_B reaches the best sum so far. If
// these are many, it is paired with all windows instead, tile by tile of places: the area that it
// shares with every window of a tile bounds all of their unions.
#include "max_pair_sum.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../core/memory.h"
#include "../core/parallel.h"
#include "../core/simd.h"

namespace pycc::max_pair_sum {
namespace {

constexpr std::int64_t kTile = 8;  // side of a tile of places

// Computes one row of the table from the previous one and a row of the map.
void table_row(double* __restrict__ lower, const double* __restrict__ upper,
               const float* __restrict__ values, std::int64_t width) noexcept {
    double sum = 0.0;
    for (std::int64_t x = 0; x < width; ++x) {
        sum += static_cast<double>(values[x]);
        lower[x + 1] = upper[x + 1] + sum;
    }
}

// Computes the sums of the windows between two table rows, and updates the maxima of columns.
PYCC_SIMD void window_row(double* __restrict__ sums, double* __restrict__ most,
                          const double* __restrict__ upper, const double* __restrict__ lower,
                          std::int64_t window, std::int64_t cols) noexcept {
    for (std::int64_t x = 0; x < cols; ++x) {
        const double sum =
            Table::between(lower[x + window] - upper[x + window], lower[x] - upper[x]);
        sums[x] = sum;
        most[x] = sum > most[x] ? sum : most[x];
    }
}

// Computes the unions of the windows of columns [first, last) in one row of places with a window at
// column `x` of the sum `own`. The rows that they share lie between two rows of the table, which
// are equal if they share none.
PYCC_SIMD void unions(double* __restrict__ out, const double* __restrict__ sums,
                      const double* __restrict__ upper, const double* __restrict__ lower,
                      std::int64_t first, std::int64_t last, std::int64_t x, std::int64_t window,
                      double own) noexcept {
    const double left = lower[x] - upper[x], right = lower[x + window] - upper[x + window];
    const std::int64_t begin = std::clamp(x - window + 1, first, last);
    const std::int64_t middle = std::clamp(x, first, last);
    const std::int64_t end = std::clamp(x + window, first, last);
    for (std::int64_t i = first; i < begin; ++i) out[i - first] = own + sums[i];
    for (std::int64_t i = begin; i < middle; ++i) {
        const double both = Table::between(lower[i + window] - upper[i + window], left);
        out[i - first] = (own + sums[i]) - both;
    }
    for (std::int64_t i = middle; i < end; ++i) {
        const double both = Table::between(right, lower[i] - upper[i]);
        out[i - first] = (own + sums[i]) - both;
    }
    for (std::int64_t i = end; i < last; ++i) out[i - first] = own + sums[i];
}

struct Candidate {
    double sum;
    std::int64_t index;
    Place place;
};

// Places of a tile: rows [top, bottom), columns [left, right).
struct Tile {
    std::int64_t top, bottom, left, right;
};

class Search {
  public:
    explicit Search(const Sizes& sizes)
        : sizes_(sizes),
          rows_(sizes.rows()),
          cols_(sizes.cols()),
          pitch_(sizes.width + 1),
          tile_rows_((rows_ + kTile - 1) / kTile),
          tile_cols_((cols_ + kTile - 1) / kTile) {
        table_.reserve((sizes.height + 1) * pitch_);  // its first row and column stay 0
        sums_.reserve(rows_ * cols_);
        columns_.reserve(cols_);
        tiles_.reserve(tile_rows_ * tile_cols_);
    }

    void best(double* value /* [1] */, std::int64_t* places /* [2,2] (y, x) */,
              const float* map /* [h,w] */, double allowance) {
        sum_windows(map);
        const BestWindow fullest = find_fullest();
        // A pair matters if pair - allowance, rounded, exceeds the fullest. It is then not below
        // their rounded sum, since rounding is monotonic and the pair is a float64 itself.
        const double least = std::nextafter(fullest.sum + allowance, 0.0);
        pair_ = {std::max(fullest.sum, least), -1, -1};
        if (reaches(fullest.sum + fullest.sum, 0)) {
            climb(fullest);
            collect(fullest.sum);
            search();
        }
        settle(value, places, fullest, pair_, allowance, cols_);
    }

  private:
    Table table() const { return {table_.data(), pitch_}; }
    Tile tile(std::int64_t i) const {
        const std::int64_t top = i / tile_cols_ * kTile, left = i % tile_cols_ * kTile;
        return {top, std::min(top + kTile, rows_), left, std::min(left + kTile, cols_)};
    }
    Candidate candidate(std::int64_t index) const {
        return {sums_.data()[index], index, {index / cols_, index % cols_}};
    }

    void sum_windows(const float* map /* [h,w] */) {
        for (std::int64_t y = 0; y < sizes_.height; ++y) {
            double* upper = table_.data() + y * pitch_;
            table_row(upper + pitch_, upper, map + y * sizes_.width, sizes_.width);
        }
        // More than the rounding errors of two rectangles, of which one contains the other.
        const double total = table_.data()[(sizes_.height + 1) * pitch_ - 1];
        slack_ = total * std::ldexp(static_cast<double>(16 * (sizes_.height + sizes_.width)), -53);
        const double* columns = columns_.data();
        for (std::int64_t y = 0; y < rows_; ++y) {
            if (y % kTile == 0) std::fill_n(columns_.data(), cols_, 0.0);
            const double* upper = table_.data() + y * pitch_;
            window_row(sums_.data() + y * cols_, columns_.data(), upper,
                       upper + sizes_.window_height * pitch_, sizes_.window_width, cols_);
            if ((y + 1) % kTile != 0 && y + 1 < rows_) continue;
            double* most = tiles_.data() + y / kTile * tile_cols_;
            for (std::int64_t x = 0; x < cols_; x += kTile) {
                *most++ = *std::max_element(columns + x, columns + std::min(x + kTile, cols_));
            }
        }
    }

    BestWindow find_fullest() const {
        const double* tiles = tiles_.data();
        BestWindow best{*std::max_element(tiles, tiles + tile_rows_ * tile_cols_), -1};
        each_tile(best.sum, [&](const Tile& at) {
            each_place(at, [&](std::int64_t index, const Place&) {
                const double sum = sums_.data()[index];
                if (sum == best.sum) best.offer(sum, index);
            });
        });
        return best;
    }

    // Calls body on the tiles with a window of at least this sum.
    template <class Body>
    void each_tile(double least, const Body& body) const {
        for (std::int64_t i = 0; i < tile_rows_ * tile_cols_; ++i) {
            if (tiles_.data()[i] >= least) body(tile(i));
        }
    }
    template <class Body>
    void each_place(const Tile& at, const Body& body) const {
        for (std::int64_t y = at.top; y < at.bottom; ++y) {
            for (std::int64_t x = at.left; x < at.right; ++x) body(y * cols_ + x, Place{y, x});
        }
    }

    // Whether a pair of windows may be better than the best; both indices are at least `low`.
    bool reaches(double sum, std::int64_t low) const {
        return sum > pair_.sum || (sum == pair_.sum && low <= pair_.first);
    }

    // Goes from the fullest window to its best partner, and on, as long as the sum increases.
    void climb(const BestWindow& fullest) {
        std::int64_t index = fullest.index;
        for (double before = -1.0; pair_.sum > before;) {
            before = pair_.sum;
            pair_all(candidate(index));
            if (pair_.first < 0) return;
            index = pair_.first == index ? pair_.second : pair_.first;
        }
    }

    // Offers the pairs of a window with every window that may be its partner in the best pair.
    void pair_all(const Candidate& a) {
        for (std::int64_t i = 0; i < tile_rows_ * tile_cols_; ++i) {
            const double sum = a.sum + tiles_.data()[i];
            if (sum < pair_.sum) continue;
            const Tile at = tile(i);
            if (!reaches(sum, std::min(a.index, at.top * cols_ + at.left))) continue;
            if (sum - shared(a.place, at) + slack_ < pair_.sum) continue;
            for (std::int64_t y = at.top; y < at.bottom; ++y) pair_row(a, y, at);
        }
    }

    // Returns the sum of the area that a window shares with every window of a tile.
    double shared(const Place& a, const Tile& at) const {
        const std::int64_t top = std::max(a.y, at.bottom - 1), left = std::max(a.x, at.right - 1);
        const std::int64_t bottom = std::min(a.y, at.top) + sizes_.window_height;
        const std::int64_t right = std::min(a.x, at.left) + sizes_.window_width;
        return bottom <= top || right <= left ? 0.0 : table().sum(top, bottom, left, right);
    }

    // Offers the pairs of a window with those of one row of a tile.
    void pair_row(const Candidate& a, std::int64_t y, const Tile& at) {
        double found[kTile];
        const std::int64_t top = std::max(a.place.y, y);
        const std::int64_t bottom = std::min(a.place.y, y) + sizes_.window_height;
        unions(found, sums_.data() + y * cols_, table_.data() + top * pitch_,
               table_.data() + std::max(bottom, top) * pitch_, at.left, at.right, a.place.x,
               sizes_.window_width, a.sum);
        // A window is not paired with itself: this union is at most the fullest window.
        for (std::int64_t x = at.left; x < at.right; ++x) {
            const double sum = found[x - at.left];
            if (sum >= pair_.sum) pair_.offer(sum, a.index, y * cols_ + x);
        }
    }

    // Lists the windows whose sum plus that of the fullest reaches the best, from the fullest on.
    void collect(double fullest) {
        candidates_.clear();
        each_tile(pair_.sum - fullest - slack_, [&](const Tile& at) {
            each_place(at, [&](std::int64_t index, const Place& place) {
                const double sum = sums_.data()[index];
                if (reaches(sum + fullest, 0)) candidates_.push_back({sum, index, place});
            });
        });
        std::sort(candidates_.begin(), candidates_.end(),
                  [](const Candidate& a, const Candidate& b) {
                      return a.sum > b.sum || (a.sum == b.sum && a.index < b.index);
                  });
        lowest_.resize(candidates_.size());  // lowest index from each candidate on
        std::int64_t low = rows_ * cols_;
        for (std::size_t i = candidates_.size(); i-- > 0;) {
            lowest_[i] = low = std::min(low, candidates_[i].index);
        }
    }

    void search() {
        constexpr std::size_t kMany = 256;  // partners: more take longer than all tiles
        for (std::size_t i = 0; i + 1 < candidates_.size(); ++i) {
            const Candidate& a = candidates_[i];
            if (!reaches(a.sum + candidates_[i + 1].sum, lowest_[i])) return;
            if (i + kMany < candidates_.size() &&
                reaches(a.sum + candidates_[i + kMany].sum, lowest_[i])) {
                pair_all(a);
                continue;
            }
            for (std::size_t j = i + 1; j < candidates_.size(); ++j) {
                const Candidate& b = candidates_[j];
                if (!reaches(a.sum + b.sum, std::min(a.index, lowest_[j]))) break;
                if (!reaches(a.sum + b.sum, std::min(a.index, b.index))) continue;
                const double sum = union_sum(table(), sizes_, a.place, a.sum, b.place, b.sum);
                pair_.offer(sum, a.index, b.index);
            }
        }
    }

    Sizes sizes_;
    std::int64_t rows_, cols_;             // of places
    std::int64_t pitch_;                   // of the table
    std::int64_t tile_rows_, tile_cols_;   // of tiles
    AlignedScratch<double> table_, sums_;  // of places
    AlignedScratch<double> columns_;       // largest of each column in a row of tiles
    AlignedScratch<double> tiles_;         // largest of each tile
    double slack_ = 0.0;
    std::vector<Candidate> candidates_;
    std::vector<std::int64_t> lowest_;
    WindowPair pair_{0.0, -1, -1};
};

}  // namespace

void cpu(double* value /* [N] */, std::int64_t* places /* [N,2,2] (y, x) */,
         const float* maps /* [N,h,w] */, const double* allowance /* [N] */, const Sizes& sizes,
         int threads) {
    constexpr std::int64_t kGrain = 1 << 14;  // cells: 0.2 ms where few pairs are left
    const std::int64_t size = sizes.height * sizes.width;
    const std::int64_t grain = std::max<std::int64_t>(kGrain / size, 1);
    parallel_for(sizes.maps, grain, threads, [&](std::int64_t begin, std::int64_t end) {
        Search search(sizes);
        for (std::int64_t n = begin; n < end; ++n) {
            search.best(value + n, places + 4 * n, maps + n * size, allowance[n]);
        }
    });
}

}  // namespace pycc::max_pair_sum
