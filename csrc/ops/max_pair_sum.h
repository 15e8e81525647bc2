// The largest sum of an attacked window and the fullest window after the attack, minus an
// allowance:
//
//   omega = max over W* of [S_W* + max(0, max over W of S_{W \ W*} - allowance)].
//
// S_W* + S_{W \ W*} is the sum over the union of both, which does not depend on their order, so
//
//   omega = max(max over W of S_W, max over pairs of S_{W* u W} - allowance),
//   S_{W* u W} = S_W* + S_W - S_{W* n W},
//
// and the pair with the largest union is the same for every allowance. A window and itself are no
// pair: their union is S_W, so that the first term of the maximum already covers it.
//
// All sums are of rectangles of one table T[y][x] = sum of the cells above row y and left of column
// x, in float64 and in a fixed order: along each row from the left, then T[y + 1] = T[y] + row. So
// the result is the same on every device, and the sum of a union is symmetric to the bit.
//
// Complexity: O(h w) for the table; O(P^2) unions for P places in the worst case, far fewer if few
// windows are near the maximum (see max_pair_sum.cpp).
#pragma once

#include <cstdint>

#include "../core/device.h"
#include "../core/window_sums.h"

#if defined(PYCC_CUDA)
#include "../core/cuda_api.h"
#endif

namespace pycc::max_pair_sum {

using window_sums::BestWindow;
using window_sums::Sizes;

// The table of sums. Rounding may make the sum of non-negative cells negative; it is then replaced
// by 0, so that no union exceeds S_A + S_B, on which pruning relies.
struct Table {
    const double* sums /* [h+1,w+1] */;
    std::int64_t pitch;

    // Returns a rectangle's sum, given the differences of two table rows at its right and left.
    PYCC_HD static double between(double right, double left) {
        const double sum = right - left;
        return sum > 0.0 ? sum : 0.0;
    }
    PYCC_HD double sum(std::int64_t top, std::int64_t bottom, std::int64_t left,
                       std::int64_t right) const {
        const double *upper = sums + top * pitch, *lower = sums + bottom * pitch;
        return between(lower[right] - upper[right], lower[left] - upper[left]);
    }
};

// A window by its first cell.
struct Place {
    std::int64_t y, x;
};

// Returns the sum over the union of windows p and q, whose sums are a and b.
PYCC_HD double union_sum(const Table& table, const Sizes& sizes, const Place& p, double a,
                         const Place& q, double b) {
    const std::int64_t top = p.y > q.y ? p.y : q.y, left = p.x > q.x ? p.x : q.x;
    const std::int64_t bottom = (p.y < q.y ? p.y : q.y) + sizes.window_height;
    const std::int64_t right = (p.x < q.x ? p.x : q.x) + sizes.window_width;
    const bool apart = bottom <= top || right <= left;
    return (a + b) - (apart ? 0.0 : table.sum(top, bottom, left, right));
}

// Two windows, first < second by place, and the sum of their union. Of equal pairs the one with the
// lower first wins, then the one with the lower second. Before a pair is known, first is -1 and sum
// is a lower bound that a pair has to exceed.
struct WindowPair {
    double sum;
    std::int64_t first, second;

    PYCC_HD void offer(double other, std::int64_t p, std::int64_t q) {
        const std::int64_t low = p < q ? p : q, high = p < q ? q : p;
        const bool earlier = low < first || (low == first && high < second);
        if (other > sum || (other == sum && earlier)) *this = {other, low, high};
    }
};

// Writes omega and its places: W* and W, or the fullest window alone with W at (-1, -1) if no
// second window exceeds the allowance.
PYCC_HD void settle(double* value /* [1] */, std::int64_t* places /* [2,2] (y, x) */,
                    const BestWindow& fullest, const WindowPair& pair, double allowance,
                    std::int64_t cols) {
    const bool two = pair.first >= 0 && pair.sum - allowance > fullest.sum;
    const std::int64_t first = two ? pair.first : fullest.index;
    *value = two ? pair.sum - allowance : fullest.sum;
    places[0] = first / cols, places[1] = first % cols;
    places[2] = two ? pair.second / cols : -1, places[3] = two ? pair.second % cols : -1;
}

// Cells must be finite and not negative, allowances not negative (infinity is allowed).
void cpu(double* value /* [N] */, std::int64_t* places /* [N,2,2] (y, x) */,
         const float* maps /* [N,h,w] */, const double* allowance /* [N] */, const Sizes& sizes,
         int threads);

#if defined(PYCC_CUDA)
void cuda(double* value /* [N] */, std::int64_t* places /* [N,2,2] (y, x) */,
          double* tables /* [N,h+1,w+1], scratch */, double* sums /* [N,rows,cols], scratch */,
          WindowPair* found /* [N,rows * cols], scratch */, BestWindow* fullest /* [N], scratch */,
          double* least /* [N], scratch */, const float* maps /* [N,h,w] */,
          const double* allowance /* [N] */, const Sizes& sizes, cudaStream_t stream);
#endif

}  // namespace pycc::max_pair_sum
